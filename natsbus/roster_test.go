package natsbus

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Whoever lives is counted as alive, whoever leaves is not counted, and whoever
// leaves with events in hand is found once.
func TestRoster(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, err := rosterOf("S", "C", time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	other, err := rosterOf("S", "C", time.Unix(2, 0))
	if err != nil || other.dir == r.dir {
		t.Errorf("a stream that was made anew has the old roster: %v", err)
	}
	leave, err := r.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	count := func(own string, alive, dead int) {
		t.Helper()
		a, d, err := r.others(own)
		if err != nil || a != alive || d != dead {
			t.Errorf("seen by %q: %d alive, %d dead, %v; want %d and %d", own, a, d, err, alive, dead)
		}
	}
	join := func(name string) *place {
		t.Helper()
		p, err := r.join(name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := join("a"), join("b")
	count("a", 1, 0)
	count("", 2, 0)
	b.leave(true)
	count("a", 0, 0)
	b = join("b")
	b.leave(false)
	count("a", 0, 1)
	count("a", 0, 0)
	a.leave(false)
	count("", 0, 1)

	soon, cancel := withLimit(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.enter(soon); err == nil {
		t.Error("two are inside at once")
	}
	leave()
	again, err := r.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
	last := join("last")
	last.leave(true)
	if _, err := os.Stat(r.dir); !os.IsNotExist(err) {
		t.Errorf("the last one has left, and the roster is still there: %v", err)
	}
	if again, err = r.enter(t.Context()); err != nil {
		t.Fatalf("nobody can come any more: %v", err)
	}
	again()
	if err := os.MkdirAll(other.dir, 0o700); err != nil {
		t.Fatal(err)
	}

	// A directory that others can write to proves nothing.
	if err := os.Chmod(filepath.Dir(r.dir), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := rosterOf("S", "C", time.Unix(1, 0)); err == nil {
		t.Error("a directory that is open to all was taken")
	}
}

// Who leaves last removes the roster, also when somebody is about to let go of the gate: of
// two that leave at once, the one before has still seen the file of the other.
func TestTheLastRemovesTheRoster(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, err := rosterOf("S", "C", time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	leave, err := r.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.join("a")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(2*gateRetry, leave)
	p.leave(true)
	if _, err := os.Stat(filepath.Dir(r.dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left behind: %v", err)
	}
}
