//go:build unix

package drill_test

import (
	"cmp"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill"
	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

var mutants = flag.Bool("mutants", false, "drill binaries with planted defects: nine minutes")

// A drill that finds nothing proves something only if it would have found what is
// wrong. Each of these is a defect that real applications have had. Run it with
//
//	go test ./drill -run Mutants -mutants
func TestMutants(t *testing.T) {
	if !*mutants {
		t.Skip("takes nine minutes: run with -mutants")
	}
	bin := buildCLI(t, "-tags", "mutants")
	cells := func(names string) []string { return []string{"--signals", "--cells=^(" + names + ")$"} }
	outage := []string{"--scenario=outage", "--for=6s"}
	hub := []string{"--scenario=hub", "--for=6s"}
	failing := []string{"--scenario=sole", "--for=6s"} // the shortest in which handlers fail
	for _, m := range []struct {
		name, promise, rule string
		args                []string
	}{
		{"no-flush-after-sub", "live, deploy", drill.RuleLost, nil},
		{"ack-before-handler", "durable, steady", drill.RuleEarlyAck, failing},
		{"drain-not-waited", "live, deploy", drill.RuleLost, nil},
		{"ready-before-bind", "live, deploy", drill.RuleLost, nil},
		{"stop-before-ready", "live, deploy", drill.RuleLost, nil},
		{"not-resubscribed", "live, hub restart", drill.RuleLost, nil},
		{"queue-not-drained", "live, deploy", drill.RuleLost, nil},
		{"upgrade-stops-old-first", "live, running: USR2", drill.RuleLost, cells("running: USR2")},
		{"burst-loses-kinds", "signals do what the table says", drill.RuleEffect, cells("running: a burst of USR1, TTIN, HUP, USR2")},
		{"nak-as-term", "durable, steady", drill.RuleNotRetried, failing},
		{"key-dropped", "order per key", drill.RuleHeld, failing},
		{"term-without-letter", "dead letters = what was planted", drill.RuleNoLetter, failing},
		{"receipt-miscounts", "counts of receipts = the ledger's", drill.RuleCounts, []string{"--scenario=release", "--for=6s"}},
		{"spool-trimmed-early", "durable, hub away", drill.RuleLost, outage},
		{"refill-reordered", "order per publisher", drill.RuleOrder, outage},
		{"batch-duplicate-taken", "durable, hub restart", drill.RuleLost, outage},
		{"doubt-not-looked-up", "durable, hub away", drill.RuleDoubled, outage},
		{"hub-not-synced", "acknowledged = on the disk", drill.RuleUnsynced, []string{"--scenario=sync", "--for=6s"}},
		{"upgrade-stops-hub", "deploys leave the hub alone", drill.RuleHub, hub},
		{"takeover-forgets", "durable, hub moved", drill.RuleStream, hub},
		{"no-heartbeat", "durable, slow handler", drill.RuleRedelivered, []string{"--scenario=slow", "--for=6s"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			tries := 1
			if slices.Equal(m.args, outage) {
				tries = 3 // a kill at a random instant may meet nothing
			}
			v, code := drilled(t, bin, append(m.args, "--mutant", m.name)...)
			for ; code == 0 && tries > 1; tries-- {
				v, code = drilled(t, bin, append(m.args, "--mutant", m.name)...)
			}
			if code != 1 || v.Result != drill.Broken {
				t.Errorf("exit status %d and %s, want 1 and %s", code, v.Result, drill.Broken)
			}
			found := map[string]int{}
			for _, x := range v.Violations {
				found[x.Promise+": "+x.Rule]++
			}
			t.Logf("%s: %v", m.name, found)
			if found[m.promise+": "+m.rule] == 0 {
				t.Errorf("nobody says that %q is broken by %q", m.promise, m.rule)
			}
			switch m.name {
			case "stop-before-ready":
				checkGapIsNamed(t, v)
			case "queue-not-drained":
				// Unlike drain-not-waited it ends well, as far as anybody is told.
				if n := found[m.promise+": "+m.rule]; n != len(v.Violations) {
					t.Errorf("%d of %d violations are of %s", n, len(v.Violations), m.promise)
				}
			}
		})
	}
	for name, args := range map[string][]string{"none": nil, "none, signals": cells("running: (USR2|a burst of USR1.*)"), "none, outage": outage, "none, network": {"--scenario=network", "--for=14s"}} {
		t.Run(name, func(t *testing.T) {
			if v, code := drilled(t, bin, args...); code != 0 || v.Result != drill.Kept {
				t.Errorf("exit status %d and %s without a defect, want 0 and %s: %v, void: %v", code, v.Result, drill.Kept, v.Violations, v.Void)
			}
		})
	}
}

// drilled runs a drill as short as is still valid.
func drilled(t *testing.T, bin string, args ...string) (drill.Verdict, int) {
	t.Helper()
	for try := 1; ; try++ {
		dir := filepath.Join(t.TempDir(), "run")
		cmd := exec.Command(bin, append([]string{"drill", "--short", "--json", "--for=18s", "--dir=" + dir}, args...)...)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		var v drill.Verdict
		if bad := json.Unmarshal([]byte(out.String()), &v); bad != nil {
			t.Fatalf("no verdict: %v: %v\n%s", err, bad, errs.String())
		}
		if code := cmd.ProcessState.ExitCode(); code != 2 || try == voidTries {
			return v, code
		}
		t.Logf("it proves nothing: %v", v.Void)
	}
}

// checkGapIsNamed: the verdict must name the live events that were published while
// no worker was ready.
func checkGapIsNamed(t *testing.T, v drill.Verdict) {
	t.Helper()
	gaps := unserved(t, filepath.Join(v.Dir, "master.events"), v.Evidence.Finish)
	var whole time.Duration
	for _, g := range gaps {
		whole += g[1] - g[0]
	}
	if whole < 300*time.Millisecond {
		t.Errorf("workers were missing for %v, want 300ms at least", whole)
	}
	named := map[string]bool{}
	for _, x := range v.Violations {
		named[x.Topic+" "+x.ID] = true
	}
	led, err := drill.ReadLedger(v.Dir)
	if err != nil {
		t.Fatal(err)
	}
	all, hit := 0, 0
	for _, r := range led.Reporters {
		for _, e := range r.Entries {
			if e.Kind != witness.Accept || e.Topic != "cart.viewed" {
				continue
			}
			if slices.ContainsFunc(gaps, func(g [2]time.Duration) bool { return g[0] <= e.At && e.At <= g[1] }) {
				all++
				if named[e.Topic+" "+e.ID] {
					hit++
				}
			}
		}
	}
	t.Logf("%d of %d live events of %v without a worker are named", hit, all, whole)
	if all == 0 || hit*10 < all*9 {
		t.Errorf("%d of %d live events of %v without a worker are named, want 90 %%", hit, all, whole)
	}
}

// unserved are the times, after the start, in which no worker was ready that had
// not been asked to go.
func unserved(t *testing.T, file string, end time.Duration) (gaps [][2]time.Duration) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var events []supervisor.Event
	for line := range strings.Lines(string(b)) {
		var e supervisor.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	slices.SortStableFunc(events, func(a, b supervisor.Event) int { return cmp.Compare(a.MonoNS, b.MonoNS) })
	serving := map[int]bool{}
	var since time.Duration
	for _, e := range events {
		before := len(serving)
		switch e.Event {
		case supervisor.EventWorkerReady:
			serving[e.PID] = true
		case supervisor.EventWorkerQuitSent, supervisor.EventWorkerExited:
			delete(serving, e.PID)
		}
		at := time.Duration(e.MonoNS)
		switch {
		case at > end:
			return gaps
		case before > 0 && len(serving) == 0:
			since = at
		case before == 0 && len(serving) > 0 && since > 0:
			gaps = append(gaps, [2]time.Duration{since, at})
		}
	}
	return gaps
}
