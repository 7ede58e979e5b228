package spool_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/internal/spool"
)

// A model is what a spool should be: a list. Damage is predicted from where records
// are in the files.
type model struct {
	records       []string // by number-1
	lost          map[uint64]bool
	trimmed       uint64
	next          uint64
	synced        uint64 // known to have been on the disk
	notes         map[string]string
	damagedLayout map[string][]extent // by file
}

func newModel() *model {
	return &model{next: 1, lost: map[uint64]bool{}, notes: map[string]string{}, damagedLayout: map[string][]extent{}}
}

func (m *model) last() uint64 { return uint64(len(m.records)) }

// following is the number of the record to read at n; 0 if there is none.
func (m *model) following(n uint64) uint64 {
	for n = max(n, m.trimmed+1); n <= m.last(); n++ {
		if !m.lost[n] {
			return n
		}
	}
	return 0
}

func (m *model) waiting() (n uint64) {
	for at := m.following(1); at > 0; at = m.following(at + 1) {
		n++
	}
	return n
}

// A walk is a spool beside its model.
type walk struct {
	*model
	t        *testing.T
	dir      string
	s        *spool.Spool
	o        spool.Options
	reported []error
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := &walk{t: t, dir: quickDir(t), model: newModel(), o: quiet(t)}
		w.o.Max = rapid.Int64Range(4<<10, 32<<10).Draw(r, "max")
		w.o.Segment = rapid.Int64Range(100, 2<<10).Draw(r, "segment")
		w.o.OnError = func(err error) { w.reported = append(w.reported, err) }
		w.begin(r)
		defer func() { _ = w.s.Close() }()
		r.Repeat(map[string]func(*rapid.T){
			"":       w.check,
			"append": w.append,
			"next":   w.read,
			"rewind": func(r *rapid.T) {
				n := rapid.Uint64Range(w.trimmed, w.last()).Draw(r, "n")
				w.s.Rewind(n)
				w.next = n + 1
			},
			"trim": func(r *rapid.T) {
				n := rapid.Uint64Range(0, w.last()+1).Draw(r, "n")
				w.s.Trim(n)
				if n = min(n, w.last()); n > w.trimmed {
					w.trimmed, w.synced = n, w.last()
				}
			},
			"note": func(r *rapid.T) {
				key, value := rapid.SampledFrom([]string{"a", "b", ""}).Draw(r, "key"), rapid.String().Draw(r, "value")
				if err := w.s.Note(key, []byte(value), false); err != nil {
					r.Fatal(err)
				}
				w.notes[key] = value
			},
			"close":  w.close,
			"crash":  w.crash,
			"damage": w.damage,
		})
	})
}

// quickDir is in memory if the system has such a place: this is not about the loss of
// power, and needs thousands of syncs.
func quickDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "spool-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *walk) begin(r *rapid.T) {
	s, err := spool.Open(w.dir, "shop", w.o)
	if err != nil {
		r.Fatal(err)
	}
	w.s = s
	w.model = newModel()
}

// resume adopts what is in w.dir.
func (w *walk) resume(r *rapid.T) {
	all, err := spool.Adopt(w.dir, "shop", w.o)
	if err != nil {
		r.Fatal(err)
	}
	if w.waiting() == 0 {
		if len(all) > 0 {
			r.Fatalf("there is nothing to read, and Adopt returns %d spools", len(all))
		}
		w.begin(r)
		return
	}
	if len(all) != 1 {
		r.Fatalf("%d records wait, and Adopt returns %d spools", w.waiting(), len(all))
	}
	w.s = all[0]
	w.next = 1
	w.synced = w.last()
}

func (w *walk) append(r *rapid.T) {
	sizes := rapid.SliceOfN(rapid.IntRange(0, 700), 1, 12).Draw(r, "sizes")
	type answer struct {
		n    uint64
		err  error
		text string
	}
	answers := make(chan answer, len(sizes))
	for i, size := range sizes {
		text := fmt.Sprintf("%d/%d/%s", w.last(), i, strings.Repeat("x", size))
		w.s.Append([]byte(text), func(n uint64, err error) { answers <- answer{n, err, text} })
	}
	room := w.s.Stats().Bytes < w.o.Max/4 && len(sizes) < 3
	for range sizes {
		a := <-answers
		switch {
		case a.err == nil && a.n == w.last()+1:
			w.records = append(w.records, a.text)
		case a.err == nil || !errors.Is(a.err, spool.ErrFull) || room:
			r.Fatalf("Append: %d, %v; there are %d records", a.n, a.err, w.last())
		}
	}
}

func (w *walk) read(r *rapid.T) {
	got, ok, err := w.s.Next()
	if err != nil {
		r.Fatal(err)
	}
	want := w.following(w.next)
	if ok != (want > 0) || got.N != want || (ok && string(got.Data) != w.records[want-1]) {
		r.Fatalf("Next: %d %t %.20q; want %d", got.N, ok, got.Data, want)
	}
	if ok {
		w.next = want + 1
	}
}

func (w *walk) check(r *rapid.T) {
	st := w.s.Stats()
	if st.Waiting != w.waiting() || st.Last != w.last() || st.Trimmed != w.trimmed || st.Oldest.IsZero() != (st.Waiting == 0) {
		r.Fatalf("Stats: %+v; want %d waiting, last %d, trimmed %d", st, w.waiting(), w.last(), w.trimmed)
	}
	if st.Bytes > w.o.Max {
		r.Fatalf("Stats: %+v; more than %d bytes", st, w.o.Max)
	}
	n, limit := uint64(0), rapid.IntRange(1, 10).Draw(r, "records to view")
	err := spool.View(w.s.Path(), func(rec spool.Record) bool {
		if n = w.following(n + 1); n != rec.N || limit == 0 || string(rec.Data) != w.records[n-1] {
			r.Fatalf("View: record %d, want %d and %d more", rec.N, n, limit)
		}
		limit--
		return limit > 0
	})
	if err != nil || (limit > 0 && w.following(n+1) > 0) {
		r.Fatalf("View: %v after record %d", err, n)
	}
	notes := map[string]string{}
	for k, v := range w.s.Notes() {
		notes[k] = string(v)
	}
	if !maps.Equal(notes, w.notes) {
		r.Fatalf("Notes: %q, want %q", notes, w.notes)
	}
	if len(w.reported) > 0 {
		r.Fatalf("OnError: %v", errors.Join(w.reported...))
	}
}

func (w *walk) close(r *rapid.T) {
	if err := w.s.Close(); err != nil {
		r.Fatal(err)
	}
	w.resume(r)
}

// leave is what a crash does: what is in the files stays, in another directory, since
// the lock of a process that lives cannot be taken away.
func (w *walk) leave(r *rapid.T) {
	// Files are removed by the spool's goroutine, which the second refusal finds done.
	for range 2 {
		if _, err := put(w.s, strings.Repeat("x", int(w.o.Max))); !errors.Is(err, spool.ErrFull) {
			r.Fatal(err)
		}
	}
	after := quickDir(w.t)
	copyDir(w.t, w.dir, after)
	if err := w.s.Close(); err != nil {
		r.Fatal(err)
	}
	w.dir = after
}

func (w *walk) crash(r *rapid.T) {
	w.leave(r)
	w.resume(r)
}

// damage changes some bytes of a file after a crash.
func (w *walk) damage(r *rapid.T) {
	path := w.s.Path()
	w.leave(r)
	segments := files(w.t, filepath.Join(w.dir, filepath.Base(path)), "*.seg")
	if len(segments) == 0 {
		w.resume(r)
		return
	}
	i := rapid.IntRange(0, len(segments)-1).Draw(r, "file")
	name := filepath.Base(segments[i])
	if w.damagedLayout[name] == nil {
		w.damagedLayout[name] = extents(w.t, segments[i])
	}
	edit(w.t, segments[i], func(b []byte) []byte {
		if len(b) == 0 {
			return b
		}
		from := rapid.IntRange(0, len(b)-1).Draw(r, "from")
		to := min(len(b), from+rapid.IntRange(1, 200).Draw(r, "bytes"))
		for i := from; i < to; i++ {
			b[i]++
		}
		for _, e := range w.damagedLayout[name] {
			if e.from < int64(to) && e.to > int64(from) && e.n <= w.last() {
				w.lost[e.n] = true
			}
		}
		return b
	})
	// What is broken at the end is not known to have been accepted.
	for n := w.last(); n > max(w.synced, w.trimmed) && w.lost[n]; n-- {
		w.records = w.records[:n-1]
		delete(w.lost, n)
	}
	missing := w.last() - w.trimmed - w.waiting()
	w.resume(r)
	if missing > 0 && len(w.reported) == 0 && len(files(w.t, w.dir, "*/corrupt-*")) == 0 {
		r.Fatalf("%d records are missing, and nothing was reported", missing)
	}
	w.reported = nil
}
