package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
)

func TestNothingIsAcceptedBeforeItIsSynced(t *testing.T) {
	s := open(t, t.TempDir(), quiet(t))
	syncing, goOn := make(chan bool), make(chan bool)
	syncs := 0
	s.SetSync(func(f *os.File) error {
		syncs++
		syncing <- true
		<-goOn
		return spool.Fdatasync(f)
	})
	answers := make(chan error, 11)
	put := func() { s.Append([]byte("a"), func(_ uint64, err error) { answers <- err }) }
	put()
	<-syncing
	for range 10 { // they wait, and share the next one
		put()
	}
	if _, ok, err := s.Next(); ok || err != nil {
		t.Errorf("a record is read that is not on the disk: %v", err)
	}
	select {
	case err := <-answers:
		t.Errorf("a record is accepted that is not on the disk: %v", err)
	case <-s.Ready():
		t.Error("Ready says there is a record")
	default:
	}
	goOn <- true
	<-syncing
	if got := len(rest(t, s)); got != 1 || <-answers != nil || len(answers) > 0 {
		t.Errorf("after the first sync %d records are read and %d more are accepted", got, len(answers))
	}
	goOn <- true
	for range 10 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if syncs != 2 {
		t.Errorf("%d syncs, want 2", syncs)
	}
}

// A record whose sync failed is not read, whatever became of it on the disk; its
// number goes to the next one, which is in another file.
func TestFailedSync(t *testing.T) {
	for name, fail := range map[string]func(f *os.File) error{
		"": func(*os.File) error { return syscall.EIO },
		"and the file cannot be cut": func(f *os.File) error {
			return errors.Join(syscall.EIO, f.Close())
		},
		"and the file is cut in the middle of a record": func(f *os.File) error {
			st, err := f.Stat()
			return errors.Join(syscall.EIO, err, f.Truncate(st.Size()-3), f.Close())
		},
	} {
		t.Run("sync fails "+name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, quiet(t))
			mustPut(t, s, "a", "b")
			s.SetSync(fail)
			_, err := put(s, "lost")
			if !errors.Is(err, spool.ErrSync) || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), s.Path()) {
				t.Errorf("Append: %v", err)
			}
			if _, err := put(s, "lost too"); !errors.Is(err, spool.ErrSync) {
				t.Errorf("Append: %v", err)
			}
			if got := files(t, s.Path(), "*.seg"); len(got) != 1 {
				t.Errorf("files: %q; want the first one", got)
			}
			s.SetSync(spool.Fdatasync)
			if n, err := put(s, "c"); n != 3 || err != nil {
				t.Errorf("the next record: %d, %v", n, err)
			}
			if got := texts(rest(t, s)); got != "a b c" {
				t.Errorf("read %q", got)
			}
			if st := s.Stats(); st.Waiting != 3 || st.Last != 3 {
				t.Errorf("Stats: %+v", st)
			}
			after := t.TempDir()
			copyDir(t, dir, after)
			s = adopt(t, after, quiet(t))
			if got := texts(rest(t, s)); got != "a b c" {
				t.Errorf("adopted: %q", got)
			}
			mustPut(t, s, "d")
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if got := texts(rest(t, adopt(t, after, quiet(t)))); got != "a b c d" {
				t.Errorf("adopted again: %q", got)
			}
		})
	}
}

// A write that fails for another reason than space is undone, too.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a")
	if err := os.Chmod(s.Path(), 0o500); err != nil {
		t.Fatal(err)
	}
	s.SetSync(func(*os.File) error { return syscall.EIO })
	if _, err := put(s, "b"); !errors.Is(err, spool.ErrSync) {
		t.Errorf("Append: %v", err)
	}
	s.SetSync(spool.Fdatasync)
	// The next file cannot be made, as long as the directory is gone.
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(s.Path(), moved); err != nil {
		t.Fatal(err)
	}
	_, err := put(s, "b")
	if err == nil || errors.Is(err, spool.ErrFull) || errors.Is(err, spool.ErrSync) || !strings.Contains(err.Error(), s.Path()) {
		t.Errorf("Append: %v", err)
	}
	if err := errors.Join(os.Rename(moved, s.Path()), os.Chmod(s.Path(), 0o700)); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "b")
	if got := texts(rest(t, s)); got != "a b" {
		t.Errorf("read %q", got)
	}
}

func TestBound(t *testing.T) {
	o := quiet(t)
	o.Max = 4 << 10
	s := open(t, t.TempDir(), o)
	for range 3 {
		mustPut(t, s, strings.Repeat("x", 1000))
	}
	_, err := put(s, strings.Repeat("x", 1000))
	if !errors.Is(err, spool.ErrFull) || !strings.Contains(err.Error(), s.Path()) || !strings.Contains(err.Error(), "SpoolMax (4096)") {
		t.Errorf("Append: %v", err)
	}
	mustPut(t, s, "there is space for a small one")
	s.Trim(2)
	mustPut(t, s, strings.Repeat("x", 1000))
	if _, err := put(s, strings.Repeat("x", 5000)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("a record above the bound: %v", err)
	}
	s.Trim(5)
	mustPut(t, s, strings.Repeat("x", 3900)) // all of the space, but for headers
	if st := s.Stats(); st.Bytes > o.Max {
		t.Errorf("%d bytes, more than %d", st.Bytes, o.Max)
	}
}

// What callbacks may call does not wait for them.
func TestCallbacksCallTheSpool(t *testing.T) {
	s := open(t, t.TempDir(), quiet(t))
	done := make(chan error)
	s.Append([]byte("a"), func(n uint64, err error) {
		if err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.Waiting != 1 {
			t.Errorf("Stats: %+v", st)
		}
		err = s.Note("key", nil, true)
		s.Trim(n)
		s.Append([]byte("b"), func(_ uint64, err2 error) { done <- errors.Join(err, err2) })
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := texts(rest(t, s)); got != "b" {
		t.Errorf("read %q", got)
	}
}
