package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidings-go/tidings/internal/spool"
)

func TestList(t *testing.T) {
	dir := t.TempDir()
	if all, err := spool.List(filepath.Join(dir, "none")); len(all) > 0 || err != nil {
		t.Errorf("List of no directory: %v, %v", all, err)
	}
	s := open(t, dir, quiet(t))
	mustPut(t, s, "a", "b", "c")
	s.Trim(1)
	dead, err := spool.Open(dir, "billing", quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, dead, "x")
	if err := errors.Join(dead.Close(), os.WriteFile(filepath.Join(dead.Path(), "corrupt-1"), nil, 0o600), os.Mkdir(filepath.Join(dir, "other"), 0o700)); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir, "*/*")
	all, err := spool.List(dir)
	if err != nil || len(all) != 2 {
		t.Fatalf("List: %+v, %v", all, err)
	}
	oldest := rest(t, s)[0].At
	want := []spool.Info{
		{Path: dead.Path(), Name: "billing", Records: 1, Bytes: 24 + 33, Corrupt: 1, Oldest: all[0].Oldest},
		{Path: s.Path(), Name: "shop", Owned: true, Pid: os.Getpid(), Records: 2, Bytes: 24 + 3*33, Oldest: oldest},
	}
	for i := range want {
		if !all[i].Oldest.Equal(want[i].Oldest) || all[i].Oldest.IsZero() {
			t.Errorf("the oldest record is of %v, want %v", all[i].Oldest, want[i].Oldest)
		}
		all[i].Oldest, want[i].Oldest = oldest, oldest
		if all[i] != want[i] {
			t.Errorf("List: %+v, want %+v", all[i], want[i])
		}
	}
	var seen []spool.Record
	if err := spool.View(s.Path(), func(r spool.Record) bool { seen = append(seen, r); return len(seen) < 1 }); err != nil || texts(seen) != "b" {
		t.Errorf("View: %q, %v", texts(seen), err)
	}
	if after := files(t, dir, "*/*"); len(after) != len(before) {
		t.Errorf("there were %q, and are %q", before, after)
	}
}
