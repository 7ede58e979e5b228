package spool_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
)

// A process that is killed is this test binary again, told by the environment what to
// do. What it says on its standard output, before it goes on, is the ledger.
const (
	envDir   = "TEST_SPOOL_DIR"
	envPoint = "TEST_SPOOL_POINT" // where to be killed: POINT or POINT:N, the N-th time
)

var errLedger = errors.New("the process failed")

func small() spool.Options {
	return spool.Options{Max: 32 << 10, Segment: 1 << 10, OnError: func(err error) { fmt.Println("error", err) }}
}

// userProcess finishes the spools of its predecessors, then fills and trims one of its
// own, until it ends or comes to the point where it is killed.
func userProcess(dir string) error {
	killAt(os.Getenv(envPoint))
	old, err := spool.Adopt(dir, "shop", small())
	if err != nil {
		return err
	}
	for _, s := range old {
		if err := finish(s); err != nil {
			return err
		}
	}
	s, err := spool.Open(dir, "shop", small())
	if err != nil {
		return err
	}
	for i := range 12 {
		if err := appendSome(s, 5*i, 5); err != nil {
			return err
		}
		if err := note(s, "round", strconv.Itoa(i)); err != nil {
			return err
		}
		if i >= 4 {
			trim(s, uint64(4*(i-3)))
		}
	}
	return s.Close()
}

func killAt(where string) {
	point, nth, _ := strings.Cut(where, ":")
	left, _ := strconv.Atoi(nth)
	spool.StopAt(func(p string) {
		if p != point {
			return
		}
		if left--; left <= 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
}

// finish reads what waits and trims it, every few records.
func finish(s *spool.Spool) error {
	id := filepath.Base(s.Path())
	fmt.Println("adopted", id, string(s.Notes()["round"]))
	for {
		r, ok, err := s.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		fmt.Println("read", id, r.N, string(r.Data))
		if r.N%7 == 0 {
			trim(s, r.N)
		}
	}
	trim(s, s.Stats().Last)
	return s.Close()
}

// appendSome appends records that say in what order, all at once.
func appendSome(s *spool.Spool, from, n int) error {
	id := filepath.Base(s.Path())
	errs := make(chan error, n)
	for i := range n {
		s.Append(fmt.Appendf(nil, "%s/%d/%s", id, from+i+1, strings.Repeat("x", 10*i)), func(n uint64, err error) {
			if err == nil {
				fmt.Println("accepted", id, n)
			}
			errs <- err
		})
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	return err
}

func trim(s *spool.Spool, n uint64) {
	id := filepath.Base(s.Path())
	fmt.Println("trims", id, n)
	s.Trim(n)
	fmt.Println("trimmed", id, n)
}

// note stores some kilobytes more each time, so that files of notes are replaced.
func note(s *spool.Spool, key, value string) error {
	if err := s.Note("filler", bytes.Repeat([]byte("f"), 12<<10), false); err != nil {
		return err
	}
	id := filepath.Base(s.Path())
	fmt.Println("notes", id, value)
	if err := s.Note(key, []byte(value), true); err != nil {
		return err
	}
	fmt.Println("noted", id, value)
	return nil
}

// runUser runs a userProcess and enters in the ledger what it says. killed is whether
// it came to the point.
func runUser(t *testing.T, dir, point string, l *ledger) (killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDir+"="+dir, envPoint+"="+point)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	l.enter(out)
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%v: %v", errLedger, err)
	}
	return false
}

// A ledger holds, by spool, what processes said.
type ledger struct {
	t      *testing.T
	spools map[string]*account
}

// An account is a spool's. Numbers are of records.
type account struct {
	accepted       uint64
	trims, trimmed uint64
	notes, noted   int
	read           uint64 // by the process that has it now
	seen           map[uint64]bool
}

func newLedger(t *testing.T) *ledger { return &ledger{t, map[string]*account{}} }

func (l *ledger) of(id string) *account {
	if l.spools[id] == nil {
		l.spools[id] = &account{notes: -1, noted: -1, seen: map[uint64]bool{}}
	}
	return l.spools[id]
}

func (l *ledger) enter(r io.Reader) {
	for in := bufio.NewScanner(r); in.Scan(); {
		w := strings.SplitN(in.Text(), " ", 4)
		for len(w) < 4 {
			w = append(w, "")
		}
		a := l.of(w[1])
		n, _ := strconv.ParseUint(w[2], 10, 64)
		switch w[0] {
		case "accepted":
			if n != a.accepted+1 {
				l.t.Errorf("%s: record %d is accepted after %d", w[1], n, a.accepted)
			}
			a.accepted = n
		case "trims":
			a.trims = n
		case "trimmed":
			a.trimmed = n
		case "notes":
			a.notes = int(n)
		case "noted":
			a.noted = int(n)
		case "adopted":
			l.adopted(w[1], w[2])
		case "read":
			l.read(w[1], n, w[3])
		default:
			l.t.Errorf("the process says %q", in.Text())
		}
	}
}

// adopted checks what an adopter finds besides records.
func (l *ledger) adopted(id, round string) {
	a := l.of(id)
	a.read = 0
	i := -1
	if round != "" {
		i, _ = strconv.Atoi(round)
	}
	if i < a.noted || i > a.notes {
		l.t.Errorf("%s: the note is of round %d, want %d to %d", id, i, a.noted, a.notes)
	}
}

func (l *ledger) read(id string, n uint64, data string) {
	a := l.of(id)
	if want := fmt.Sprintf("%s/%d/", id, n); !strings.HasPrefix(data, want) || strings.Trim(data[len(want):], "x") != "" {
		l.t.Errorf("%s: record %d is %q, want %q", id, n, data, want)
	}
	switch {
	case n <= a.trimmed:
		l.t.Errorf("%s: record %d is read, though %d were trimmed", id, n, a.trimmed)
	case a.read == 0 && n > a.trims+1:
		l.t.Errorf("%s: the first record read is %d, but at most %d were trimmed", id, n, a.trims)
	case a.read > 0 && n != a.read+1:
		l.t.Errorf("%s: record %d is read after %d", id, n, a.read)
	}
	a.read = n
	a.seen[n] = true
}

// settle adopts what is left, and compares.
func (l *ledger) settle(dir string) {
	l.t.Helper()
	all, err := spool.Adopt(dir, "shop", quiet(l.t))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, s := range all {
		id := filepath.Base(s.Path())
		l.adopted(id, string(s.Notes()["round"]))
		for _, r := range rest(l.t, s) {
			l.read(id, r.N, string(r.Data))
		}
		s.Trim(s.Stats().Last)
		if err := s.Close(); err != nil {
			l.t.Error(err)
		}
	}
	for id, a := range l.spools {
		for n := a.trims + 1; n <= a.accepted; n++ {
			if !a.seen[n] {
				l.t.Errorf("%s: record %d was accepted and is lost", id, n)
			}
		}
	}
	if left := files(l.t, dir, "*"); len(left) > 0 {
		l.t.Errorf("everything is done, but there is %q", left)
	}
}

// Kill -9 wherever the disk has just been changed, each time that a process comes
// there, while it fills a spool of its own and while it finishes another's.
func TestKilledAtEachPoint(t *testing.T) {
	for _, point := range spool.Points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for nth := 1; ; nth++ {
				dir := t.TempDir()
				l := newLedger(t)
				if !runUser(t, dir, "synced:9", l) {
					t.Fatal("the first process was not killed")
				}
				killed := runUser(t, dir, fmt.Sprintf("%s:%d", point, nth), l)
				l.settle(dir)
				if t.Failed() {
					t.Fatalf("killed at %s, %d", point, nth)
				}
				if !killed {
					if nth == 1 {
						t.Errorf("no process came to %s", point)
					}
					return
				}
			}
		})
	}
}
