package drill

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

const cutCell = "draining: TERM"

// signalsRun is the sound run, in which a signal cut off the worker that was killed.
func signalsRun() *run {
	r := soundRun()
	r.ev.CutOff, r.ev.Kills, r.ev.WantKills = r.ev.Kills, nil, 0
	r.ev.End.AckWait = ms(5 * time.Second)
	for i, p := range r.ev.Phases {
		if p.Kind == Kills {
			r.ev.Phases[i] = Phase{cutCell, Signals, p.Start}
		}
	}
	r.ev.Cells = []*Cell{
		{Name: cutCell, State: "draining", Signal: "TERM", To: toMaster, Effect: "status 0", Start: when(4), End: when(4.1), Workers: []int{deadPID, 112}},
		{Name: "paused: QUIT to a worker", State: "paused", Signal: "QUIT", To: toWorker, Nothing: "there is no worker"},
	}
	return r
}

// hurry bounds all delays by a second.
func (r *run) hurry() {
	for kind := range r.lim.MaxDelay {
		r.lim.MaxDelay[kind] = time.Second
	}
}

func TestASignalThatDoesWhatItShouldIsKept(t *testing.T) {
	v := signalsRun().judge()
	mustBe(t, v, Kept)
	if r := row(t, v, "live, "+cutCell); r.Sent < 200 || r.Handled != r.Sent || r.Forgiven != 0 {
		t.Errorf("%+v", *r)
	}
	var text strings.Builder
	if err := v.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"draining  TERM    the master  ok  ", "status 0\n", "meaningless: there is no worker\n", "1 cells, 1 are meaningless, 1 workers were cut off"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "live, "+cutCell) {
		t.Error("a cell is in both tables")
	}
}

// What a signal may cost is forgiven and counted in its cell.
func TestWhatASignalMayCutOffIsForgivenAndCounted(t *testing.T) {
	for name, c := range map[string]struct {
		damage  func(*run)
		promise string
		figure  func(*Row) int
	}{
		"in the hands of the worker": {func(r *run) { r.forget(deadPID, live, dying, witness.End) }, "live, " + cutCell, forgiven},
		"on its way to it":           {func(r *run) { r.forget(112, live, unsent) }, "live, " + cutCell, forgiven},
		"on its way to one of the cell before": {func(r *run) {
			r.forget(112, live, unsent)
			c := r.ev.Cells[0]
			c.Start, c.End = r.ev.CutOff[0].Noticed+Mono(50*time.Millisecond), c.End+Mono(time.Second)
			for i, p := range r.ev.Phases {
				if p.Name == cutCell {
					r.ev.Phases[i].Start = c.Start
				}
			}
		}, "live, " + cutCell, forgiven},
		"durable, after the ack wait": {func(r *run) {
			r.forget(deadPID, durable, dying, witness.End, witness.Ack)
			r.handle(112, durable, dying, "billing", when(9.9), 2)
			r.hurry() // which this exceeds
		}, "durable, " + cutCell, redelivered},
	} {
		t.Run(name, func(t *testing.T) {
			r := signalsRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Kept)
			if n := c.figure(row(t, v, c.promise)); n != 1 {
				t.Errorf("the table shows %d of it: %+v", n, *row(t, v, c.promise))
			}
		})
	}
}

func TestEachBrokenRuleOfSignalsIsNamed(t *testing.T) {
	effect := violation("signals do what the table says", RuleEffect, 0, "", "", 0)
	cell := func(class, rule string, n int, topic string, pid int) []string {
		group := "billing"
		if n == 0 {
			group = ""
		}
		return []string{violation(class+", "+cutCell, rule, n, topic, group, pid)}
	}
	judgeRuns(t, signalsRun, map[string]wanted{
		"another effect": {func(r *run) { r.ev.Cells[0].Wrong = []string{"it goes on"} }, []string{effect}},
		"two of them":    {func(r *run) { r.ev.Cells[0].Wrong = []string{"it goes on", "it has no name"} }, []string{effect, effect}},
		"a live event lost that others got": {func(r *run) { r.forget(113, live, outside) },
			cell("live", RuleLost, outside, live, 0)},
		"a live event lost before the signal": {func(r *run) { r.forget(deadPID, live, dying-2) },
			cell("live", RuleLost, dying-2, live, 0)},
		"a live event begun by another": {func(r *run) { r.forget(112, live, unsent, witness.End) },
			cell("live", RuleUnfinished, unsent, live, 112)},
		"a durable event that died with it": {func(r *run) { r.forget(deadPID, durable, dying, witness.End, witness.Ack) },
			cell("durable", RuleUnfinished, dying, durable, deadPID)},
		"a durable event too late": {func(r *run) {
			r.forget(deadPID, durable, dying, witness.End, witness.Ack)
			r.hurry()
			r.handle(112, durable, dying, "billing", when(10.5), 2)
		}, cell("durable", RuleLate, dying, durable, 112)},
		"a durable event as late that was sent afterwards": {func(r *run) {
			r.hurry()
			r.shift(113, outside, 3*time.Second/2)
		}, append(cell("durable", RuleLate, outside, durable, 113), violation("order per publisher", RuleOrder, outside, durable, "billing", 113))},
		"more live events than it can have had": {func(r *run) { r.lim.CutOff = 0; r.forget(deadPID, live, dying, witness.End) },
			cell("live", RuleBudget, 0, "", 0)},
		"more redeliveries": {func(r *run) { r.lim.Redeliveries[Signals] = 0; r.attempt(113, 400, 2) },
			cell("durable", RuleBudget, 0, "", 0)},
	})
}

// Without leave to cut off, nothing is forgiven.
func TestASignalThatMayCutOffNobodyForgivesNothing(t *testing.T) {
	r := signalsRun()
	r.ev.CutOff = nil
	r.forget(deadPID, live, dying, witness.End)
	v := r.judge()
	mustBe(t, v, Broken)
	if got, want := named(v), []string{
		violation("ledger complete", RuleLedger, 0, "", "", deadPID),
		violation("live, "+cutCell, RuleUnfinished, dying, live, "billing", deadPID),
	}; !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestASignalThatMetNothingIsVoid(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*run)
		why    string
	}{
		"the state was over": {func(r *run) { r.ev.Cells[0].Missed = "it was over" }, cutCell + ": it was over"},
		"nothing was sent":   {func(r *run) { r.lim.PerCell = 10000 }, "live, " + cutCell + ": 400 events were sent; it proves nothing below 10000"},
		"an idle worker":     {func(r *run) { r.ev.Cells[0].Workers = []int{112, 999} }, cutCell + ": 1 of 2 workers had nothing to do"},
	} {
		r := signalsRun()
		c.damage(r)
		v := r.judge()
		mustBe(t, v, Void)
		if !slices.ContainsFunc(v.Void, func(s string) bool { return s == c.why }) {
			t.Errorf("%s: %q, want %q", name, v.Void, c.why)
		}
	}
}

// The matrix is whole: each signal for each master of each state, and each that a
// worker knows for each worker.
func TestTheMatrixIsWhole(t *testing.T) {
	all := map[string]play{}
	for _, p := range plays() {
		if _, twice := all[p.name()]; twice {
			t.Errorf("%s is there twice", p.name())
		}
		if (p.effect == nil) == (p.why == "") {
			t.Errorf("%s: an effect %v, or a reason for none %q", p.name(), p.effect != nil, p.why)
		}
		all[p.name()] = p
	}
	for i := range states {
		for _, to := range states[i].masters {
			for _, row := range supervisor.Signals() {
				if name := (play{state: &states[i], signal: row.Name, to: to}).name(); all[name].effect == nil {
					t.Errorf("no %s", name)
				}
			}
		}
	}
	short := map[string]bool{}
	for _, name := range shortly {
		p, ok := all[name]
		if !ok || p.why != "" {
			t.Errorf("a short run plays %q, and there is no such cell", name)
			continue
		}
		short[p.state.name] = true
	}
	if len(short) != len(states) {
		t.Errorf("a short run has only the states %v", slices.Sorted(maps.Keys(short)))
	}
}
