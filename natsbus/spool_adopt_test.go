package natsbus_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// left runs a process that spools, until it ends, and returns what it has accepted.
func left(t *testing.T, url, dir string, env ...string) (accepted []string) {
	t.Helper()
	p := testkit.Spawn(t, append(env, spoolerEnv+"="+url, spoolDir+"="+dir, spoolLife+"=0")...)
	for line := range p.Lines() {
		if id, ok := strings.CutPrefix(line, "accepted "); ok {
			accepted = append(accepted, id)
		} else if strings.HasPrefix(line, "failed") {
			t.Fatal(line)
		}
	}
	return accepted
}

// The clock was set back: what a dead process has spooled was accepted tomorrow. Nobody
// knows how long that is in doubt, so it is looked up, and stored once.
func TestASpoolOfTomorrow(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	url := srv.URL() + "?duplicates=" + window.String()
	accepted := left(t, url, dir, spoolPoint+"=acknowledged", spoolAhead+"=24h")
	before, _ := storedIDs(t, srv.URL(), "shop")
	srv.Restart()
	forget(t)
	all, _, err := natsbus.Spools(dir)
	if err != nil || len(all) != 1 || !all[0].Oldest.After(time.Now().Add(23*time.Hour)) {
		t.Fatalf("left: %+v, %v", all, err)
	}
	var waits []string
	for e, err := range natsbus.SpoolEvents(all[0].Path) {
		if err != nil {
			t.Fatal(err)
		}
		waits = append(waits, e.ID)
	}
	if !slices.ContainsFunc(waits, func(id string) bool { return slices.Contains(before, id) }) {
		t.Fatalf("stored: %q, in the spool: %q: nothing is in doubt, so this proves nothing", before, waits)
	}
	a := open(t, url, spooling(dir))
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	seen := map[string]int{}
	for _, id := range ids {
		seen[id]++
	}
	for _, id := range append(accepted, waits...) {
		if seen[id] != 1 {
			t.Errorf("event %s is stored %d times", id, seen[id])
		}
	}
	if s := a.Stats(); s.Possible != 0 {
		t.Errorf("%d possible doubles", s.Possible)
	}
}

// A part of what a dead process has left is damaged: it is set aside, what is missing is
// named, and the rest arrives, in order.
func TestADamagedSpoolIsAdopted(t *testing.T) {
	srv, dir, log := testkit.Server(t), t.TempDir(), &logged{}
	srv.Shutdown()
	accepted := left(t, srv.URL(), dir)
	if len(accepted) != perLife {
		t.Fatalf("%d were accepted", len(accepted))
	}
	segments, err := filepath.Glob(filepath.Join(dir, "*", "*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("%q, %v", segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	cfg := log.config()
	cfg.App, cfg.Durable, cfg.SpoolDir = "shop", []string{"order.>"}, dir
	a, err := natsbus.Open(within(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	publish(t, a, adapter.Durable, "own", "order.placed")
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	ids, _ := storedIDs(t, srv.URL(), "shop")
	var missing []string
	for _, id := range accepted {
		if !slices.Contains(ids, id) {
			missing = append(missing, id)
		}
	}
	want := append(slices.DeleteFunc(slices.Clone(accepted), func(id string) bool { return slices.Contains(missing, id) }), "own")
	if len(missing) != 1 || !slices.Equal(ids, want) {
		t.Errorf("stored: %q; missing: %q", ids, missing)
	}
	aside, err := filepath.Glob(filepath.Join(dir, "*", "corrupt-*"))
	if err != nil || len(aside) != 1 || !log.has(aside[0]) || !log.has("is missing") {
		t.Errorf("set aside: %q, %v; it is said: %v", aside, err, len(aside) == 1 && log.has(aside[0]))
	}
}
