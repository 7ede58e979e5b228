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

var mutants = flag.Bool("mutants", false, "drill binaries with planted defects: two minutes")

// A drill that finds nothing proves something only if it would have found what is
// wrong. Each of these is a defect that real applications have had. Run it with
//
//	go test ./drill -run Mutants -mutants
func TestMutants(t *testing.T) {
	if !*mutants {
		t.Skip("takes two minutes: run with -mutants")
	}
	bin := buildCLI(t, "-tags", "mutants")
	for _, m := range []struct{ name, promise, rule string }{
		{"no-flush-after-sub", "live, deploy", drill.RuleLost},
		{"ack-before-handler", "durable, kill -9", drill.RuleUnfinished},
		{"drain-not-waited", "live, deploy", drill.RuleLost},
		{"ready-before-bind", "live, deploy", drill.RuleLost},
		{"stop-before-ready", "live, deploy", drill.RuleLost},
	} {
		t.Run(m.name, func(t *testing.T) {
			v, code := drilled(t, bin, "--mutant", m.name)
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
			if m.name == "stop-before-ready" {
				checkGapIsNamed(t, v)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		if v, code := drilled(t, bin); code != 0 || v.Result != drill.Kept {
			t.Errorf("exit status %d and %s without a defect, want 0 and %s: %v, void: %v", code, v.Result, drill.Kept, v.Violations, v.Void)
		}
	})
}

// drilled runs a drill as short as is still valid.
func drilled(t *testing.T, bin string, args ...string) (drill.Verdict, int) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	cmd := exec.Command(bin, append([]string{"drill", "--short", "--json", "--for=18s", "--dir=" + dir}, args...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var v drill.Verdict
	if bad := json.Unmarshal([]byte(out.String()), &v); bad != nil {
		t.Fatalf("no verdict: %v: %v\n%s", err, bad, errs.String())
	}
	return v, cmd.ProcessState.ExitCode()
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
