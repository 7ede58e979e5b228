package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The rows with a broker start it from this binary.
func TestMain(m *testing.M) {
	if len(os.Args) >= 3 && os.Args[1] == serveArg {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// brief is enough to see that every candidate delivers; its figures mean
// nothing.
var brief = effort{rounds: 1, slice: time.Millisecond, fixed: 64, subs: 300}

func TestEveryRowRuns(t *testing.T) {
	var rep report
	for _, r := range rows(brief) {
		res, err := r.run(brief)
		if err != nil {
			t.Errorf("row %s at GOMAXPROCS %d: %v", r.id, r.cpu, err)
			continue
		}
		for _, f := range res.Figures {
			if f.Ns <= 0 || f.Median < f.Ns {
				t.Errorf("row %s: %s: %v ns, median %v", r.id, f.Candidate, f.Ns, f.Median)
			}
		}
		if r.goal != (goal{}) && (res.Reached == "" || res.Goal == "") {
			t.Errorf("row %s has a goal and no verdict", r.id)
		}
		rep.Rows = append(rep.Rows, res)
	}
	var b bytes.Buffer
	if err := rep.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Rows {
		if !strings.Contains(b.String(), r.Name) {
			t.Errorf("the table lacks row %s, %s", r.Row, r.Name)
		}
	}
}

// A row whose deliveries are not all there must not show a figure.
func TestLostAndDoubledAreFailures(t *testing.T) {
	o := newOrder()
	for what, calls := range map[string]int{"lost": 0, "doubled": 2} {
		op := inline(o, 1, func(n int) error {
			for range n * calls {
				handle(o)
			}
			return nil
		})
		if op(10) == nil {
			t.Errorf("inline: %s deliveries are not noticed", what)
		}
	}
	c := newCrowd(1)
	doubled := c.through(func(n int) error {
		for range 2 * n {
			c.members[0].handle(o)
		}
		return nil
	})
	if doubled(10) == nil {
		t.Error("queued: doubled deliveries are not noticed")
	}
}

func TestGoals(t *testing.T) {
	figures := func(own, floorNs, peerNs, allocs float64) result {
		r := result{Figures: []figure{{Kind: ours, Ns: own, Allocs: allocs}, {Kind: floor, Ns: floorNs}, {Kind: peer, Ns: peerNs * 3}, {Kind: peer, Ns: peerNs}}}
		return r
	}
	for _, c := range []struct {
		goal goal
		text string
		res  result
		want string
	}{
		{goal{}, "", figures(1, 1, 1, 0), ""},
		{goal{ns: 3, noAllocs: true}, "3 ns, 0 allocs", figures(2.9, 1, 1, 0), "yes"},
		{goal{ns: 3, noAllocs: true}, "3 ns, 0 allocs", figures(2.9, 1, 1, 1), "no"},
		{goal{ns: 3, noAllocs: true}, "3 ns, 0 allocs", figures(3.1, 1, 1, 0), "no"},
		{goal{ns: 15, floor: 2, either: true}, "15 ns or 2x floor", figures(18, 10, 1, 0), "yes"},
		{goal{ns: 15, floor: 2, either: true}, "15 ns or 2x floor", figures(14, 2, 1, 0), "yes"},
		{goal{ns: 15, floor: 2, either: true}, "15 ns or 2x floor", figures(21, 10, 1, 0), "no"},
		{goal{peer: 1.3}, "1.3x best peer", figures(12, 1, 10, 2), "yes"},
		{goal{peer: 1}, "ahead of best peer", figures(12, 1, 10, 0), "no"},
		{goal{floor: 0.5, noAllocs: true}, "0.5x floor, 0 allocs", figures(5, 10, 1, 0), "yes"},
	} {
		if got := c.goal.String(); got != c.text {
			t.Errorf("goal %+v is written %q, want %q", c.goal, got, c.text)
		}
		c.res.compare(c.goal)
		if c.res.Reached != c.want {
			t.Errorf("goal %q with %+v: reached %q, want %q", c.text, c.res.Figures, c.res.Reached, c.want)
		}
	}
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
	}{
		{"-row ^1$ -rounds 1 -json", 0},
		{"-row nothing-has-this-name", 2},
		{"-row (", 2},
		{"-profile nothing-has-this-name", 1},
	} {
		var stdout, stderr bytes.Buffer
		if status := run(strings.Fields(c.args), &stdout, &stderr); status != c.status {
			t.Errorf("bench %s: exit status %d, want %d\n%s", c.args, status, c.status, &stderr)
		}
		if c.status != 0 {
			if stderr.Len() == 0 {
				t.Errorf("bench %s: no word about what is wrong", c.args)
			}
			continue
		}
		var rep report
		if err := json.Unmarshal(stdout.Bytes(), &rep); err != nil || len(rep.Rows) != 1 || len(rep.Rows[0].Figures) != 2 {
			t.Errorf("bench %s: %v, printed\n%s", c.args, err, &stdout)
		}
	}
}
