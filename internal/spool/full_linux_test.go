package spool_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
	"github.com/tidings-go/tidings/internal/testkit"
)

// envFull is the directory on which the test process mounts a small disk.
const envFull = "TEST_SPOOL_FULL"

func init() { processes[envFull] = fullProcess }

// The disk is real, 256 KiB large and in namespaces of its own, which the test needs.
func TestFullDisk(t *testing.T) {
	testkit.InNamespaces(t, envFull)
}

// fullProcess fills the disk again and again.
func fullProcess(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	var reported []error
	o := spool.Options{OnError: func(err error) { reported = append(reported, err) }}
	s, err := spool.Open(dir, "shop", o)
	if err != nil {
		return err
	}
	ballast := dir + "/ballast"
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); err != nil {
		return err
	}
	f := &filler{s: s}
	if err := f.fill(dir); err != nil {
		return err
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	before := f.accepted()
	if err := f.fill(dir); err != nil {
		return fmt.Errorf("with space again: %w", err)
	}
	if f.accepted() < before+30 {
		return fmt.Errorf("64 KiB more took only %d more records", f.accepted()-before)
	}
	if err := s.Note("key", make([]byte, 64<<10), true); !errors.Is(err, spool.ErrFull) {
		return fmt.Errorf("a note on the full disk: %w", err)
	}
	if err := f.readAll(); err != nil {
		return err
	}
	s.Trim(s.Stats().Last) // the disk is full as yet
	if err := f.fill(dir); err != nil {
		return fmt.Errorf("after Trim: %w", err)
	}
	if f.accepted() < before {
		return fmt.Errorf("after Trim there was space for only %d records", f.accepted())
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(ballast, make([]byte, 256<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("a file as large as the disk: %w", err)
	}
	if _, err := spool.Open(dir, "other", o); !errors.Is(err, spool.ErrFull) || !strings.Contains(err.Error(), dir) {
		return fmt.Errorf("Open on the full disk: %w", err)
	}
	all, err := spool.Adopt(dir, "shop", o)
	if err != nil || len(all) != 1 {
		return fmt.Errorf("adopt from the full disk: %d, %w", len(all), err)
	}
	f.s = all[0]
	if err := errors.Join(f.readAll(), f.s.Close(), errors.Join(reported...)); err != nil {
		return err
	}
	fmt.Println(testkit.Alone)
	return nil
}

// A filler puts records until there is no space, and knows which were accepted.
type filler struct {
	s       *spool.Spool
	tries   int
	waiting []string
}

func (f *filler) accepted() int { return len(f.waiting) }

// fill puts groups of records of different sizes, so that a group finds no space in
// its middle, until even a small one has none.
func (f *filler) fill(dir string) error {
	const group = 7
	for refused := 0; refused < 3*group; {
		f.tries++
		type answer struct {
			text string
			err  error
		}
		answers := make(chan answer, group)
		for i := range group {
			text := fmt.Sprintf("%d/%d/%s", f.tries, i, strings.Repeat("x", 600*i))
			f.s.Append([]byte(text), func(_ uint64, err error) { answers <- answer{text, err} })
		}
		for range group {
			switch a := <-answers; {
			case a.err == nil:
				f.waiting = append(f.waiting, a.text)
				refused = 0
			case !errors.Is(a.err, spool.ErrFull):
				return fmt.Errorf("record %d: %w", f.tries, a.err)
			case !strings.Contains(a.err.Error(), dir):
				return fmt.Errorf("%w: does not name %s", a.err, dir)
			default:
				refused++
			}
		}
	}
	return nil
}

// readAll reads from the beginning and compares.
func (f *filler) readAll() error {
	f.s.Rewind(0)
	for _, want := range f.waiting {
		r, ok, err := f.s.Next()
		if err != nil || !ok || string(r.Data) != want {
			return fmt.Errorf("read record %d, %t, %w: %.10q, want %.10q", r.N, ok, err, r.Data, want)
		}
	}
	if r, ok, err := f.s.Next(); ok || err != nil {
		return fmt.Errorf("record %d (%.10q, %w) was never accepted", r.N, r.Data, err)
	}
	f.waiting = nil
	return nil
}
