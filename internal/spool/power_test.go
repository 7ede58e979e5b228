package spool_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
)

// A disk knows what is left of the files below a directory when the power goes: the
// names that were there when their directory was synced last, with what a file held
// when it was synced last. Whether a removal reached the disk nobody knows: either
// may be.
type disk struct {
	t     *testing.T
	root  string
	mu    sync.Mutex
	names map[string]map[string]bool // by directory
	bytes map[string][]byte          // by file
}

func newDisk(t *testing.T) *disk {
	d := &disk{t: t, root: quickDir(t), names: map[string]map[string]bool{}, bytes: map[string][]byte{}}
	before := spool.OnSync(d.synced)
	t.Cleanup(func() { spool.OnSync(before) })
	return d
}

func (d *disk) synced(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !strings.HasPrefix(path, d.root) {
		return // what is adopted from an image
	}
	st, err := os.Stat(path)
	if err != nil {
		d.t.Error(err)
		return
	}
	if !st.IsDir() {
		if d.bytes[path], err = os.ReadFile(path); err != nil {
			d.t.Error(err)
		}
		return
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		d.t.Error(err)
	}
	d.names[path] = map[string]bool{}
	for _, e := range entries {
		d.names[path][e.Name()] = true
	}
}

// image is the directory after a loss of power.
func (d *disk) image(removed bool) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	to := quickDir(d.t)
	for dir := range d.names[d.root] {
		if err := os.Mkdir(filepath.Join(to, dir), 0o700); err != nil {
			d.t.Error(err)
		}
		path := filepath.Join(d.root, dir)
		for name := range d.names[path] {
			file := filepath.Join(path, name)
			if _, err := os.Stat(file); err != nil && removed {
				continue
			}
			if err := os.WriteFile(filepath.Join(to, dir, name), d.bytes[file], 0o600); err != nil {
				d.t.Error(err)
			}
		}
	}
	return to
}

// cut takes the power away, both ways, and compares what is left with what was
// accepted, of which all up to trimmed may be gone.
func (d *disk) cut(accepted, trimmed uint64, note string) {
	d.t.Helper()
	for _, removed := range []bool{true, false} {
		all, err := spool.Adopt(d.image(removed), "shop", quiet(d.t))
		if err != nil {
			d.t.Fatal(err)
		}
		var got []spool.Record
		for _, s := range all {
			got = append(got, rest(d.t, s)...)
			if n := string(s.Notes()["note"]); n != note {
				d.t.Errorf("the note is …%s, want …%s", n[max(0, len(n)-3):], note[max(0, len(note)-3):])
			}
			if err := s.Close(); err != nil {
				d.t.Error(err)
			}
		}
		if len(all) > 1 || (len(all) == 0 && accepted > trimmed) {
			d.t.Fatalf("%d spools are left", len(all))
		}
		for i, r := range got {
			if r.N != got[0].N+uint64(i) || !strings.HasPrefix(string(r.Data), strconv.FormatUint(r.N, 10)+" ") {
				d.t.Fatalf("record %d is %.10q and follows %d", r.N, r.Data, got[0].N)
			}
		}
		if len(got) > 0 && (got[0].N > trimmed+1 || got[len(got)-1].N < accepted) {
			d.t.Fatalf("left are %d to %d; accepted were %d, trimmed %d", got[0].N, got[len(got)-1].N, accepted, trimmed)
		}
	}
}

func TestLossOfPower(t *testing.T) {
	d := newDisk(t)
	o := quiet(t)
	o.Max, o.Segment = 16<<10, 1<<10
	s := open(t, d.root, o)
	accepted, trimmed, note := uint64(0), uint64(0), ""
	for i := range 60 {
		for range 1 + i%3 {
			mustPut(t, s, fmt.Sprint(accepted+1, " ", strings.Repeat("x", 37*i%500)))
			accepted++
			d.cut(accepted, trimmed, note)
		}
		if i%4 == 3 {
			note = strings.Repeat("n", 9000) + strconv.Itoa(i)
			if err := s.Note("note", []byte(note), true); err != nil {
				t.Fatal(err)
			}
			d.cut(accepted, trimmed, note)
		}
		if i%5 == 4 {
			trimmed = accepted - uint64(i%10)
			s.Trim(trimmed)
			d.cut(accepted, trimmed, note)
		}
	}
}

// Its owner was killed before it had synced; the next one reads only what no loss of
// power takes away.
func TestAdoptedRecordsAreSynced(t *testing.T) {
	made := t.TempDir()
	s := open(t, made, quiet(t))
	mustPut(t, s, "1 a", "2 b")
	d := newDisk(t)
	copyDir(t, made, d.root)
	d.synced(d.root)
	s = adopt(t, d.root, quiet(t))
	if got := texts(rest(t, s)); got != "1 a 2 b" {
		t.Errorf("adopted: %q", got)
	}
	d.cut(2, 0, "")
}
