package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
)

func TestRecordsAreReadInOrder(t *testing.T) {
	s := open(t, t.TempDir(), quiet(t))
	mustPut(t, s, "a", "b", "", "d")
	<-s.Ready()
	got := rest(t, s)
	if texts(got) != "a b  d" {
		t.Errorf("read %q", texts(got))
	}
	for i, r := range got {
		if r.N != uint64(i+1) || r.At.IsZero() {
			t.Errorf("record %d has number %d and time %v", i+1, r.N, r.At)
		}
	}
	s.Rewind(2)
	if got := texts(rest(t, s)); got != " d" {
		t.Errorf("after Rewind(2): %q", got)
	}
	s.Trim(3)
	s.Rewind(0)
	if got := texts(rest(t, s)); got != "d" {
		t.Errorf("after Trim(3): %q", got)
	}
	if st := s.Stats(); st.Waiting != 1 || st.Last != 4 || st.Trimmed != 3 || !st.Oldest.Equal(got[3].At) {
		t.Errorf("Stats: %+v", st)
	}
}

func TestWhatWaitsIsAdopted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a", "b", "c")
	s.Trim(1)
	if err := s.Note("base", []byte("17"), true); err != nil {
		t.Fatal(err)
	}
	if all, err := spool.Adopt(dir, "shop", quiet(t)); len(all) > 0 || err != nil {
		t.Fatalf("its owner lives, and Adopt returned %d, %v", len(all), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	if _, err := put(s, "d"); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Append after Close: %v", err)
	}
	if all, err := spool.Adopt(dir, "sho", quiet(t)); len(all) > 0 || err != nil {
		t.Fatalf("another name's: %d, %v", len(all), err)
	}
	s = adopt(t, dir, quiet(t))
	<-s.Ready()
	if got := texts(rest(t, s)); got != "b c" {
		t.Errorf("adopted: %q", got)
	}
	if n, err := put(s, "d"); n != 4 || err != nil {
		t.Errorf("the next record has number %d, %v", n, err)
	}
	if got := string(s.Notes()["base"]); got != "17" {
		t.Errorf("note: %q", got)
	}
	if err := s.Note("base", []byte("18"), false); err != nil {
		t.Fatal(err)
	}
	if got := files(t, s.Path(), "*.notes"); len(got) != 1 || string(s.Notes()["base"]) != "18" {
		t.Errorf("files of notes: %q", got)
	}
	s.Trim(4)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir, "*"); len(left) > 0 {
		t.Errorf("nothing waits, but there is %q", left)
	}
}

func TestTrimmedSpaceIsGivenBack(t *testing.T) {
	o := quiet(t)
	o.Max, o.Segment = 64<<10, 4<<10
	s := open(t, t.TempDir(), o)
	data := strings.Repeat("x", 1000)
	var last uint64
	for range 10 {
		for {
			n, err := put(s, data)
			if errors.Is(err, spool.ErrFull) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = n
		}
		if st := s.Stats(); st.Bytes > o.Max || st.Bytes < o.Max-2000 {
			t.Errorf("full at %d of %d bytes", st.Bytes, o.Max)
		}
		s.Trim(last)
	}
	mustPut(t, s, "a")
	if st := s.Stats(); st.Bytes > 100 {
		t.Errorf("%d bytes for a small record", st.Bytes)
	}
	if n := len(files(t, s.Path(), "*.seg")); n != 1 {
		t.Errorf("%d files", n)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir, name string
		o         spool.Options
		want      string
	}{
		{file, "shop", quiet(t), file},
		{filepath.Join(file, "below"), "shop", quiet(t), file},
		{dir, "a/b", quiet(t), "without a slash"},
		{dir, "", quiet(t), "1 to 200 bytes"},
		{dir, "shop", spool.Options{Max: 10}, "Options.Max"},
		{dir, "shop", spool.Options{Segment: -1}, "Options.Segment"},
	} {
		_, err := spool.Open(c.dir, c.name, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%q, %q): %v; want %q in it", c.dir, c.name, err, c.want)
		}
	}
}
