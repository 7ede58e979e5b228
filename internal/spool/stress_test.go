package spool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gofrs/flock"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/spool"
)

// Callers append, one goroutine reads, and another trims what was read or, at times,
// what was not. No error is met, and nothing is read twice or out of order.
func TestStress(t *testing.T) {
	o := quiet(t)
	o.Max, o.Segment = 64<<10, 2<<10
	s := open(t, quickDir(t), o)
	var last, read atomic.Uint64
	trims := loop.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			if n := last.Load(); rand.IntN(4) == 0 {
				s.Trim(n)
			} else {
				s.Trim(read.Load())
			}
			_ = s.Stats()
		}
	})
	reads := loop.Go(func(ctx context.Context) {
		for {
			select {
			case <-s.Ready():
			case <-ctx.Done():
				return
			}
			for {
				r, ok, err := s.Next()
				if err != nil {
					t.Error(err)
				}
				if !ok {
					break
				}
				if before := read.Swap(r.N); before >= r.N {
					t.Errorf("record %d is read after %d", r.N, before)
				}
			}
		}
	})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 2000 {
				n, err := put(s, strings.Repeat("x", rand.IntN(500)))
				if err != nil && !errors.Is(err, spool.ErrFull) {
					t.Error(err)
				}
				for err == nil {
					if now := last.Load(); n <= now || last.CompareAndSwap(now, n) {
						break
					}
				}
			}
		})
	}
	callers.Wait()
	reads.StopAndWait()
	trims.StopAndWait()
}

// A spool whose owner makes or removes it is nobody else's.
func TestOwnerComesAndGoes(t *testing.T) {
	dir := quickDir(t)
	var adopters []*loop.Loop
	for range 2 {
		adopters = append(adopters, loop.Go(func(ctx context.Context) {
			for ctx.Err() == nil {
				if all, err := spool.Adopt(dir, "shop", quiet(t)); len(all) > 0 || err != nil {
					t.Errorf("Adopt: %d spools, %v", len(all), err)
				}
			}
		}))
	}
	for range 1000 {
		s, err := spool.Open(dir, "shop", quiet(t))
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, s, "a")
		s.Trim(1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range adopters {
		l.StopAndWait()
	}
	if left := files(t, dir, "*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func stopAt(t *testing.T, f func(point string)) {
	before := spool.StopAt(f)
	t.Cleanup(func() { spool.StopAt(before) })
}

// Whoever asks whether a spool has an owner must not pass for one.
func TestAdoptWhileAnotherProcessAsks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	asks := flock.New(filepath.Join(s.Path(), "owner"))
	if ok, err := asks.TryRLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	stopAt(t, func(point string) {
		if point == "asked" {
			_ = asks.Close()
		}
	})
	if got := texts(rest(t, adopt(t, dir, quiet(t)))); got != "a" {
		t.Errorf("adopted: %q", got)
	}
}

// What is trimmed while it is being read is no damage.
func TestTrimWhileReading(t *testing.T) {
	o := quiet(t)
	o.Max = 4 << 10
	s := open(t, t.TempDir(), o)
	mustPut(t, s, strings.Repeat("x", 600), "a")
	mustPut(t, s, "b") // in the next file
	stopAt(t, func(point string) {
		if point != "reading" {
			return
		}
		s.Trim(2)
		for range 2 { // the second refusal finds the file removed
			if _, err := put(s, strings.Repeat("x", 5000)); !errors.Is(err, spool.ErrFull) {
				t.Error(err)
			}
		}
	})
	if got := texts(rest(t, s)); got != "b" || len(files(t, s.Path(), "*.seg")) != 1 {
		t.Errorf("read %.10q, with files %q", got, files(t, s.Path(), "*.seg"))
	}
}
