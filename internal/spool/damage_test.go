package spool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/spool"
)

// An extent is where a record is in a file, as the format has it.
type extent struct {
	n        uint64
	from, to int64
}

func extents(t testing.TB, file string) (out []extent) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for off := 24; off < len(b); {
		end := off + 32 + int(binary.LittleEndian.Uint32(b[off+4:]))
		out = append(out, extent{binary.LittleEndian.Uint64(b[off+8:]), int64(off), int64(end)})
		off = end
	}
	return out
}

// edit changes a file as damage would.
func edit(t testing.TB, file string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Each kind of damage to three files of three records, and what remains.
func TestDamage(t *testing.T) {
	zero := func(from, to int64) func(b []byte) []byte {
		return func(b []byte) []byte { clear(b[from:to]); return b }
	}
	for name, c := range map[string]struct {
		file   int
		change func(e []extent) func(b []byte) []byte
		want   string // what is read
		error  string // part of it; "" if there is none
		aside  int64  // bytes that are set aside
	}{
		"header":         {0, func([]extent) func([]byte) []byte { return zero(3, 4) }, "1 2 3 4 5 6 7 8 9", "24 bytes from offset 0 on cannot be read, no record is missing", 24},
		"head of record": {1, func(e []extent) func([]byte) []byte { return zero(e[1].from, e[1].from+1) }, "1 2 3 4 6 7 8 9", "record 5 is missing", 0},
		"length":         {1, func(e []extent) func([]byte) []byte { return zero(e[1].from+4, e[1].from+5) }, "1 2 3 4 6 7 8 9", "record 5 is missing", 0},
		"data":           {1, func(e []extent) func([]byte) []byte { return zero(e[1].to-1, e[1].to) }, "1 2 3 4 6 7 8 9", "record 5 is missing", 0},
		"two records":    {1, func(e []extent) func([]byte) []byte { return zero(e[0].to-1, e[1].from+9) }, "1 2 3 6 7 8 9", "records 4 to 5 are missing", 0},
		"a whole file":   {1, func(e []extent) func([]byte) []byte { return zero(0, e[2].to) }, "1 2 3 7 8 9", "records 4 to 6 are missing", 0},
		"an empty file":  {1, func([]extent) func([]byte) []byte { return func([]byte) []byte { return nil } }, "1 2 3 7 8 9", "records 4 to 6 are missing: no file holds them", 0},
		"end of a file":  {0, func(e []extent) func([]byte) []byte { return func(b []byte) []byte { return b[:e[2].to-1] } }, "1 2 4 5 6 7 8 9", "record 3 is missing", 0},
		"bytes between":  {0, func(e []extent) func([]byte) []byte { return insert(e[1].from, "garbage") }, "1 2 3 4 5 6 7 8 9", "7 bytes from offset", 7},
		"a record again": {0, func(e []extent) func([]byte) []byte {
			return func(b []byte) []byte { return insert(e[1].to, string(b[e[1].from:e[1].to]))(b) }
		}, "1 2 3 4 5 6 7 8 9", "no record is missing", 114},
		"the last bytes, never accepted as far as one can tell": {2, func(e []extent) func([]byte) []byte { return func(b []byte) []byte { return b[:e[2].to-1] } }, "1 2 3 4 5 6 7 8", "", 0},
		"bytes at the end": {2, func(e []extent) func([]byte) []byte { return func(b []byte) []byte { return append(b, "garbage"...) } }, "1 2 3 4 5 6 7 8 9", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, after := t.TempDir(), t.TempDir()
			o := quiet(t)
			o.Max, o.Segment = 4<<10, 300
			s := open(t, dir, o)
			for i := range 9 {
				mustPut(t, s, fmt.Sprint(i+1, " ", strings.Repeat("x", 80)))
			}
			copyDir(t, dir, after)
			segments := files(t, after, "*/*.seg")
			edit(t, segments[c.file], c.change(extents(t, segments[c.file])))
			var reported []string
			o.OnError = func(err error) { reported = append(reported, err.Error()) }
			s = adopt(t, after, o)
			if got := numbers(rest(t, s)); got != c.want {
				t.Errorf("read %q, want %q", got, c.want)
			}
			all := strings.Join(reported, "\n")
			switch {
			case c.error == "" && all != "":
				t.Errorf("errors: %s", all)
			case c.error != "" && (len(reported) != 1 || !strings.Contains(all, c.error)):
				t.Errorf("errors: %s; want %q", all, c.error)
			case strings.Contains(all, "damaged") && !strings.Contains(all, segments[c.file]):
				t.Errorf("%s does not name %s", all, segments[c.file])
			}
			aside := files(t, s.Path(), "corrupt-*")
			if damaged := strings.Contains(all, "damaged"); damaged != (len(aside) == 1) {
				t.Errorf("set aside: %q, with error %q", aside, all)
			}
			for _, f := range aside {
				if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 || (c.aside > 0 && st.Size() != c.aside) || !strings.Contains(all, f) {
					t.Errorf("set aside: %v, %v; want 0600, %d bytes and a name in %q", st, err, c.aside, all)
				}
			}
			lost := uint64(9 - len(strings.Fields(c.want)))
			if c.error == "" {
				lost = 0
			}
			if st := s.Stats(); st.Lost != lost || st.Waiting != uint64(len(strings.Fields(c.want))) {
				t.Errorf("Stats: %+v, want %d lost", st, lost)
			}
			again(t, s, after, c.want, o, &reported)
		})
	}
}

func insert(at int64, what string) func([]byte) []byte {
	return func(b []byte) []byte {
		return append(append(append([]byte{}, b[:at]...), what...), b[at:]...)
	}
}

func numbers(records []spool.Record) string {
	var out []string
	for _, r := range records {
		n, _, _ := strings.Cut(string(r.Data), " ")
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

// again reads once more, goes on, and has it adopted once more: what was reported is
// not reported again.
func again(t *testing.T, s *spool.Spool, dir, want string, o spool.Options, reported *[]string) {
	t.Helper()
	before := len(*reported)
	s.Rewind(0)
	mustPut(t, s, "new")
	if got := numbers(rest(t, s)); got != want+" new" {
		t.Errorf("read again: %q, want %q", got, want+" new")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = adopt(t, dir, o)
	if got := numbers(rest(t, s)); got != want+" new" {
		t.Errorf("adopted again: %q, want %q", got, want+" new")
	}
	// Missing files are reported by each owner; there is nothing to set aside that would tell.
	if len(*reported) != before && !strings.Contains((*reported)[before], "no file holds them") {
		t.Errorf("reported again: %q", (*reported)[before:])
	}
	damaged := len(files(t, s.Path(), "corrupt-*")) > 0
	s.Trim(s.Stats().Last)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left := files(t, dir, "*"); (len(left) > 0) != damaged {
		t.Errorf("left: %q", left)
	}
	if all, err := spool.Adopt(dir, "shop", o); len(all) > 0 || err != nil {
		t.Errorf("there is nothing to read, but Adopt returns %d, %v", len(all), err)
	}
	if left := files(t, dir, "*/corrupt-*"); (len(left) > 0) != damaged {
		t.Errorf("left: %q", left)
	}
}

// After a Close, or a Trim behind it, the last record is known to have been accepted.
func TestDamageToTheLastRecord(t *testing.T) {
	for _, how := range []string{"closed", "trimmed"} {
		t.Run(how, func(t *testing.T) {
			dir, after := t.TempDir(), t.TempDir()
			s := open(t, dir, quiet(t))
			mustPut(t, s, "1", "2", "3", "4")
			if how == "closed" {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				s.Trim(1)
			}
			copyDir(t, dir, after)
			file := files(t, after, "*/*.seg")[0]
			edit(t, file, func(b []byte) []byte { return b[:extents(t, file)[2].to-1] })
			var reported []error
			o := quiet(t)
			o.OnError = func(err error) { reported = append(reported, err) }
			s = adopt(t, after, o)
			if got := rest(t, s); got[len(got)-1].N != 2 {
				t.Errorf("read %v", got)
			}
			if len(reported) != 1 || !strings.Contains(reported[0].Error(), "records 3 to 4 are missing") {
				t.Errorf("errors: %v", reported)
			}
			if n, err := put(s, "5"); n != 5 || err != nil {
				t.Errorf("the next record has number %d, %v", n, err)
			}
			if got := numbers(rest(t, s)); got != "5" {
				t.Errorf("read on: %q", got)
			}
		})
	}
}

// Damage that comes while a process owns the spool is met by its reader.
func TestDamageWhileOwned(t *testing.T) {
	var reported []string
	o := quiet(t)
	o.Max, o.Segment = 4<<10, 300
	o.OnError = func(err error) { reported = append(reported, err.Error()) }
	s := open(t, t.TempDir(), o)
	for i := range 9 {
		mustPut(t, s, fmt.Sprint(i+1, " ", strings.Repeat("x", 80)))
	}
	segments := files(t, s.Path(), "*.seg")
	edit(t, segments[0], func(b []byte) []byte { clear(b[extents(t, segments[0])[1].from:]); return b })
	if err := os.Remove(segments[1]); err != nil {
		t.Fatal(err)
	}
	edit(t, segments[2], func(b []byte) []byte { b[extents(t, segments[2])[1].to-1]++; return b })
	for range 2 {
		s.Rewind(0)
		if got := numbers(rest(t, s)); got != "1 7 9" {
			t.Errorf("read %q", got)
		}
	}
	if st := s.Stats(); st.Lost != 6 || st.Waiting != 3 {
		t.Errorf("Stats: %+v", st)
	}
	all := strings.Join(reported, "\n")
	for _, want := range []string{"records 2 to 3 are missing", segments[1] + " is not there any more", "records 4 to 6 are missing", "record 8 is missing"} {
		if strings.Count(all, want) != 1 {
			t.Errorf("errors:\n%s\nwant once %q", all, want)
		}
	}
	s.Trim(9)
	if st := s.Stats(); st.Lost != 0 || st.Waiting != 0 {
		t.Errorf("all done: %+v", st)
	}
}

func TestDamagedPosition(t *testing.T) {
	dir, after := t.TempDir(), t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a", "b", "c")
	s.Trim(1)
	s.Trim(2)
	copyDir(t, dir, after)
	file := files(t, after, "*/position")[0]
	edit(t, file, func(b []byte) []byte { b[33]++; return b }) // the newer one
	if got := texts(rest(t, adopt(t, after, quiet(t)))); got != "b c" {
		t.Errorf("with the older position: %q", got)
	}
	after = t.TempDir()
	copyDir(t, dir, after)
	file = files(t, after, "*/position")[0]
	edit(t, file, func(b []byte) []byte { b[1]++; b[33]++; return b })
	var reported []string
	o := quiet(t)
	o.OnError = func(err error) { reported = append(reported, err.Error()) }
	if got := texts(rest(t, adopt(t, after, o))); got != "a b c" {
		t.Errorf("without a position: %q", got)
	}
	if len(reported) != 1 || !strings.Contains(reported[0], filepath.Dir(file)) {
		t.Errorf("errors: %q", reported)
	}
}

func TestNewerVersionIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a")
	path := s.Path()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := files(t, path, "*.seg")[0]
	edit(t, file, func(b []byte) []byte { return spool.WithVersion(b, filepath.Base(file), 2) })
	all, err := spool.Adopt(dir, "shop", quiet(t))
	if len(all) > 0 || err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Adopt: %d, %v", len(all), err)
	}
	if len(files(t, path, "*.seg")) != 1 {
		t.Error("it was removed")
	}
}

func TestDamagedNotes(t *testing.T) {
	dir, after := t.TempDir(), t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a")
	for i := range 9 {
		if err := s.Note(fmt.Sprint("key", i), []byte{byte(i)}, i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	copyDir(t, dir, after)
	const size = 32 + 2 + 4 + 1
	edit(t, files(t, after, "*/*.notes")[0], func(b []byte) []byte { b[4*size+35]++; return b[:len(b)-1] })
	var reported []string
	o := quiet(t)
	o.OnError = func(err error) { reported = append(reported, err.Error()) }
	got := adopt(t, after, o).Notes()
	if len(got) != 7 || got["key4"] != nil || got["key8"] != nil || string(got["key7"]) != "\x07" {
		t.Errorf("notes: %q", got)
	}
	if len(reported) != 1 || !strings.Contains(reported[0], "note 5 is missing") {
		t.Errorf("errors: %q", reported)
	}
}

// A payload that looks like a record of another file, behind a broken header.
func TestRecordInARecord(t *testing.T) {
	dir, after := t.TempDir(), t.TempDir()
	s := open(t, dir, quiet(t))
	at := time.Now()
	mustPut(t, s, "1", string(spool.AppendRecord(nil, 0, 3, at, []byte("invented"))), "3")
	copyDir(t, dir, after)
	file := files(t, after, "*/*.seg")[0]
	edit(t, file, func(b []byte) []byte { b[extents(t, file)[1].from]++; return b })
	o := quiet(t)
	o.OnError = func(error) {}
	if got := texts(rest(t, adopt(t, after, o))); got != "1 3" {
		t.Errorf("read %q", got)
	}
}

// A page that the disk cannot read hides nothing else.
type badPage struct {
	f        io.ReaderAt
	from, to int64
	fails    int
}

func (d *badPage) ReadAt(b []byte, off int64) (int, error) {
	if d.fails > 0 && off < d.to && off+int64(len(b)) > d.from {
		d.fails--
		return int(max(0, d.from-off)), syscall.EIO
	}
	return d.f.ReadAt(b, off)
}

func TestUnreadablePage(t *testing.T) {
	b := bytes.Repeat([]byte("0123456789"), 2000)
	broken := bytes.Clone(b)
	clear(broken[8192:12288])
	for fails, want := range map[int][]byte{0: b, 3: b, 100: broken} {
		for _, off := range []int64{0, 100} {
			got, whole, err := spool.ReadRange(&badPage{bytes.NewReader(b), 8192, 12288, fails}, off, int64(len(b))-off)
			if whole == (fails > 3) || err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("%d failures, from %d on: %v, and it is not what it should be", fails, off, err)
			}
		}
	}
	got, _, err := spool.ReadRange(bytes.NewReader(b), 19990, 30)
	if err != nil || string(got) != "0123456789"+strings.Repeat("\x00", 20) {
		t.Errorf("behind the end: %q, %v", got, err)
	}
}

func TestRemovedWhileOwned(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a")
	if err := os.Remove(files(t, s.Path(), "*.seg")[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := put(s, "b"); !errors.Is(err, spool.ErrSync) || !strings.Contains(err.Error(), "somebody has removed it") {
		t.Errorf("to a file that was removed: %v", err)
	}
	mustPut(t, s, "c")
	if err := os.RemoveAll(s.Path()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := put(s, "d"); err == nil || !strings.Contains(err.Error(), s.Path()) {
			t.Errorf("to a directory that was removed: %v", err)
		}
	}
}

// The clock was set back, in a process and between two.
func TestClock(t *testing.T) {
	dir := t.TempDir()
	for i, seconds := range [][]int64{{1000, 3000, 2000}, {500}} {
		path := filepath.Join(dir, fmt.Sprintf("shop.%016x", i))
		b := spool.AppendHeader(nil, 0, 1)
		for n, at := range seconds {
			b = spool.AppendRecord(b, 0, uint64(n+1), time.Unix(at, 0), []byte{byte('a' + n)})
		}
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "000000000001-00000000.seg"), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := spool.Adopt(dir, "shop", quiet(t))
	if err != nil || len(all) != 2 {
		t.Fatal(len(all), err)
	}
	if got := texts(rest(t, all[1])); got != "a b c" {
		t.Errorf("read %q", got)
	}
	mustPut(t, all[1], "d")
	if got := rest(t, all[1]); texts(got) != "d" || got[0].N != 4 || time.Since(got[0].At) > time.Hour {
		t.Errorf("read on: %v", got)
	}
	all[1].Trim(1)
	if st := all[1].Stats(); !st.Oldest.Equal(time.Unix(3000, 0)) {
		t.Errorf("Stats: %+v", st)
	}
	for _, s := range all {
		s.Trim(s.Stats().Last)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What the disk cannot read at present is kept, even if it may be the end of a write.
func TestUnreadableEnd(t *testing.T) {
	for first, want := range map[int]string{4000: "b", 4090: ""} { // it ends on the first page, or the second
		dir, after := t.TempDir(), t.TempDir()
		s := open(t, dir, quiet(t))
		mustPut(t, s, strings.Repeat("a", first), "b", "c")
		copyDir(t, dir, after)
		good := spool.OnRead(func(f io.ReaderAt) io.ReaderAt { return &badPage{f, 4096, 8192, 1000} })
		t.Cleanup(func() { spool.OnRead(good) })
		var reported []string
		o := quiet(t)
		o.OnError = func(err error) { reported = append(reported, err.Error()) }
		all, err := spool.Adopt(after, "shop", o)
		if err != nil || len(reported) != 1 || !strings.Contains(reported[0], "cannot be read") {
			t.Errorf("Adopt: %v, errors %q", err, reported)
		}
		got := ""
		for _, s := range all {
			got = strings.Trim(texts(rest(t, s)), "a ")
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		spool.OnRead(good)
		if got := texts(rest(t, adopt(t, after, quiet(t)))); !strings.HasSuffix(got, "a b c") {
			t.Errorf("with a good disk: %.20q", got)
		}
	}
}
