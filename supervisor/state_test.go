//go:build unix

package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A copy is there for as long as something may be started from it: of the last good
// release, and of the one that is on probation. One that was removed is made again.
func TestCopiesAreThereWhileTheyAreNeeded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openState(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	keep := func(text string) *release {
		t.Helper()
		path := filepath.Join(dir, text)
		if err := os.WriteFile(path, []byte(text), 0o750); err != nil {
			t.Fatal(err)
		}
		p, err := programAt(path)
		if err == nil {
			err = s.keep(&p)
		}
		if err != nil {
			t.Fatal(err)
		}
		return &release{command: []string{path}, program: p}
	}
	kept := func(r *release) bool {
		t.Helper()
		text, err := os.ReadFile(r.program.kept)
		return err == nil && string(text) == filepath.Base(r.command[0])
	}
	good, next := keep("good"), keep("next")
	if err := s.record(good.command, good, next); err != nil {
		t.Fatal(err)
	}
	if !kept(good) || !kept(next) {
		t.Errorf("good: %v, on probation: %v", kept(good), kept(next))
	}
	if info, err := os.Stat(good.program.kept); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if err := s.record(good.command, good, good); err != nil {
		t.Fatal(err)
	}
	if !kept(good) || kept(next) {
		t.Errorf("good: %v, taken back: %v", kept(good), kept(next))
	}
	if err := s.keep(&next.program); err != nil || !kept(next) {
		t.Errorf("tried once more: %v, %v", kept(next), err)
	}
	rec, err := s.load()
	if err != nil || rec.Command[0] != good.command[0] {
		t.Errorf("record: %+v, %v", rec, err)
	}
	if info, err := os.Stat(s.recordFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the record: %v, %v", info, err)
	}
}

// A copy that cannot be made leaves nothing behind, and the error names both files.
func TestACopyThatCannotBeMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openState(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "app")
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := programAt(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.path, "programs")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.path, "programs"), nil, 0o600); err != nil { // in the way
		t.Fatal(err)
	}
	if err := s.keep(&p); err == nil || !strings.Contains(err.Error(), s.path+": keep a copy of "+path) || p.kept != "" {
		t.Errorf("kept as %q: %v", p.kept, err)
	}
	if left, err := filepath.Glob(filepath.Join(s.path, ".program-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
