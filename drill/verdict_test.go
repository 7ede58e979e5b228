package drill

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// The run that the tests damage: one publisher, a live and a durable topic, a
// group of two workers that is deployed, loses a worker and loses the hub, and a
// second group that only listens. Event n of each topic is published at n*step.
const (
	live    = "order.placed"
	durable = "order.paid"
	events  = 1000
	step    = 10 * time.Millisecond
	base    = Mono(1000 * time.Second)

	shopPID  = 301
	auditPID = 201
	deadPID  = 111 // of the second generation; killed at 4 s
)

// rec is one line of a journal before it has a number.
type rec struct {
	at     Mono
	kind   witness.Kind
	fields []string
}

func (l rec) about(topic string, n int) bool {
	return l.kind != witness.Header && l.kind != witness.Closed && l.fields[0] == topic && l.fields[1] == id(n)
}

func (l rec) group() string {
	if l.kind == witness.Header || len(l.fields) < 4 {
		return ""
	}
	return l.fields[3]
}

// script becomes the journal of one process.
type script struct {
	pid    int
	recs   []rec
	mangle func(lines []string) []string // what happens to the file itself
}

// run is a ledger and its evidence, in a form that is easy to damage.
type run struct {
	scripts map[int]*script
	ev      Evidence
	lim     Limits
}

func id(n int) string { return witness.ID("shop", n) }

func when(seconds float64) Mono { return base + Mono(seconds*float64(time.Second)) }

func published(n int) Mono { return base + Mono(n)*step }

// worker is who gets event n in the sound run.
func worker(n int) int {
	alive := []int{deadPID, 112}
	switch t := published(n); {
	case t < when(2.3):
		alive = []int{101, 102}
	case t >= when(4):
		alive = []int{113, 112}
	}
	return alive[n%2]
}

func soundRun() *run {
	r := &run{scripts: map[int]*script{}, lim: DefaultLimits()}
	r.open(shopPID, "publisher", "shop", "")
	r.open(auditPID, "subscriber", "audit", "")
	for pid, generation := range map[int]string{101: "1", 102: "1", deadPID: "2", 112: "2", 113: "2"} {
		r.open(pid, "subscriber", "billing", generation)
	}
	for n := 1; n <= events; n++ {
		for _, topic := range []string{live, durable} {
			t := published(n)
			r.line(shopPID, t, witness.Intent, topic, id(n), strconv.FormatInt(int64(t), 10))
			r.line(shopPID, t+time.Millisecond/2, witness.Accept, topic, id(n))
			r.handle(worker(n), topic, n, "billing", t+time.Millisecond, 1)
		}
		r.handle(auditPID, live, n, "audit", published(n)+time.Millisecond, 1)
	}
	for pid := range r.scripts {
		if pid != deadPID {
			r.line(pid, when(100), witness.Closed, "")
		}
	}
	r.ev = soundEvidence()
	return r
}

func soundEvidence() Evidence {
	created := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return Evidence{
		Expect: []Expectation{
			{Topic: live, Pattern: live, Group: "billing"},
			{Topic: live, Pattern: live, Group: "audit"},
			{Topic: durable, Pattern: durable, Group: "billing", Durable: true},
		},
		Phases: []Phase{{"warm-up", Steady, when(0)}, {"deploy 1", Deploys, when(2)}, {"kill -9", Kills, when(4)},
			{"hub restart", Outages, when(6)}, {"quiet", Steady, when(8)}},
		Deploys: []Deploy{{Name: "deploy 1", Signal: "USR2 and QUIT", Start: when(2), NewReady: when(2.2), OldGone: when(2.4),
			Old: []int{101, 102, 100}, New: []int{deadPID, 112}}},
		Kills: []Kill{{PID: deadPID, Sent: when(4), Noticed: when(4.02)}},
		Outages: []Outage{{Down: when(6), Gone: when(6.05), Up: when(6.1), Back: when(6.2), Before: 4, Closed: 4, After: 4,
			Old: StreamState{"orders", created, 590}, New: StreamState{"orders", created, 600}}},
		Quits:       []Quit{{101, when(2.2)}, {102, when(2.2)}},
		Exits:       []Exit{{PID: 101, At: when(2.4)}, {PID: 102, At: when(2.4)}, {PID: 100, At: when(2.4)}, {PID: deadPID, At: when(4.02), Signal: "killed", Code: -1}},
		End:         &EndState{Stored: events},
		Finish:      published(events),
		WantDeploys: 1, WantKills: 1, WantOutages: 1,
	}
}

func (r *run) open(pid int, role, app, generation string) {
	r.scripts[pid] = &script{pid: pid}
	r.line(pid, when(-100), witness.Header, role, strconv.Itoa(pid), app, generation, "")
}

func (r *run) line(pid int, at Mono, k witness.Kind, fields ...string) {
	s := r.scripts[pid]
	s.recs = append(s.recs, rec{at, k, fields})
}

// handle writes down that pid handles event n at the given time, and how the
// broker confirms it.
func (r *run) handle(pid int, topic string, n int, group string, at Mono, attempt int) {
	r.line(pid, at, witness.Begin, topic, id(n), topic, group, strconv.Itoa(attempt))
	r.line(pid, at+time.Millisecond, witness.End, topic, id(n), topic, group, "")
	if topic == durable {
		r.line(pid, at+2*time.Millisecond, witness.Ack, topic, id(n), topic, group)
	}
}

// forget takes lines about an event out of one journal; all of its lines if no
// kinds are given. As the lines are numbered later, nothing seems missing.
func (r *run) forget(pid int, topic string, n int, kinds ...witness.Kind) {
	s := r.scripts[pid]
	s.recs = slices.DeleteFunc(s.recs, func(l rec) bool {
		return l.about(topic, n) && (len(kinds) == 0 || slices.Contains(kinds, l.kind))
	})
}

// edit changes the lines of one kind about an event in one journal.
func (r *run) edit(pid int, topic string, n int, k witness.Kind, f func(*rec)) {
	for i := range r.scripts[pid].recs {
		if l := &r.scripts[pid].recs[i]; l.kind == k && l.about(topic, n) {
			f(l)
		}
	}
}

// answer replaces what the publisher was told about an event.
func (r *run) answer(topic string, n int, k witness.Kind) {
	r.edit(shopPID, topic, n, witness.Accept, func(l *rec) { l.kind, l.fields = k, append(slices.Clone(l.fields), "refused") })
}

// text is the journal as a file has it.
func (s *script) text() []string {
	recs := slices.Clone(s.recs)
	slices.SortStableFunc(recs, func(a, b rec) int { return cmp.Compare(a.at, b.at) })
	var out []string
	for i, l := range recs {
		fields := slices.Clone(l.fields)
		if l.kind == witness.Closed {
			fields = []string{strconv.Itoa(i + 1)}
		}
		for k, f := range fields {
			if f == "" {
				fields[k] = `""`
			}
		}
		out = append(out, fmt.Sprintf("%d\t%d\t%c\t%s", i+1, int64(l.at), l.kind, strings.Join(fields, "\t")))
	}
	if s.mangle != nil {
		out = s.mangle(out)
	}
	return out
}

func (r *run) judge() *Verdict {
	led := &Ledger{}
	for _, pid := range slices.Sorted(maps.Keys(r.scripts)) {
		rep := &Reporter{File: fmt.Sprintf("%d.log", pid)}
		for _, l := range r.scripts[pid].text() {
			rep.add(l)
		}
		led.Reporters = append(led.Reporters, rep)
	}
	return Judge(led, &r.ev, r.lim)
}

// named is what a verdict holds against a run, in a form to compare.
func named(v *Verdict) []string {
	var out []string
	for _, x := range v.Violations {
		out = append(out, fmt.Sprintf("%s: %s %s of %s in %s by %d", x.Promise, x.Rule, x.ID, x.Topic, x.Group, x.PID))
	}
	slices.Sort(out)
	return out
}

func row(t *testing.T, v *Verdict, promise string) *Row {
	t.Helper()
	for _, r := range v.Rows {
		if r.Promise == promise {
			return r
		}
	}
	t.Fatalf("no promise %q", promise)
	return nil
}

func mustBe(t *testing.T, v *Verdict, want Result) {
	t.Helper()
	if v.Result != want {
		t.Errorf("%s, want %s; violations %v, void %q", v.Result, want, first(named(v)), v.Void)
	}
}

// first keeps a failure readable.
func first(s []string) []string { return s[:min(len(s), 5)] }

func TestASoundRunIsKept(t *testing.T) {
	v := soundRun().judge()
	mustBe(t, v, Kept)
	if len(v.Violations) > 0 || len(v.Void) > 0 {
		t.Errorf("violations %v, void %q", first(named(v)), v.Void)
	}
	for _, r := range v.Rows {
		if r.Result != "ok" || r.Lost+r.Doubled+r.Redelivered+r.Forgiven+r.InDoubt > 0 {
			t.Errorf("%+v", *r)
		}
	}
	if r := row(t, v, "durable, accepted = handled"); r.Sent != events || r.Accepted != events || r.Handled != events {
		t.Errorf("%+v", *r)
	}
	// Two topics, ten events each between the request to go and the last begin.
	if v.InFlight != 20 {
		t.Errorf("%d in flight", v.InFlight)
	}
}

func TestEachResultHasAnExitCodeOfItsOwn(t *testing.T) {
	for r, want := range map[Result]int{Kept: 0, Broken: 1, Void: 2} {
		if got := r.ExitCode(); got != want {
			t.Errorf("%s exits with %d, want %d", r, got, want)
		}
	}
}

// What proves nothing must say so, and must not be called broken either.
func TestARunThatProvesNothingIsVoid(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*run)
		why    string
	}{
		"a deploy without new pids":        {func(r *run) { r.ev.Deploys[0].New = nil }, "no new processes"},
		"a deploy that kept a pid":         {func(r *run) { r.ev.Deploys[0].New = []int{101, 112} }, "no new processes"},
		"an idle new generation":           {func(r *run) { r.ev.Deploys[0].New = []int{999} }, "the new generation has handled 0 events"},
		"an idle old generation":           {func(r *run) { r.ev.Deploys[0].Old = []int{100} }, "the old generation has handled 0 events"},
		"a deploy too few":                 {func(r *run) { r.ev.WantDeploys = 2 }, "2 deploys were planned, 1 happened"},
		"no kill":                          {func(r *run) { r.ev.WantKills = 2 }, "2 kills were planned, 1 happened"},
		"no restart of the hub":            {func(r *run) { r.ev.WantOutages = 2 }, "2 restarts of the hub were planned, 1 happened"},
		"a kill whose victim lived":        {func(r *run) { r.ev.Exits = r.ev.Exits[:3] }, "its end was not seen"},
		"a kill whose victim left itself":  {func(r *run) { r.ev.Exits[3] = Exit{PID: deadPID} }, "it ended with status 0"},
		"a hub restart that met nobody":    {func(r *run) { r.ev.Outages[0].Closed = 0 }, "met nobody"},
		"a hub that had no clients":        {func(r *run) { r.ev.Outages[0].Before = 0 }, "met nobody"},
		"a hub that was not seen to go":    {func(r *run) { r.ev.Outages[0].Gone = 0 }, "met nobody"},
		"too little in flight":             {func(r *run) { r.ev.Quits[0].At, r.ev.Quits[1].At = when(2.28), when(2.4) }, "were in flight"},
		"no request to go was seen":        {func(r *run) { r.ev.Quits = nil }, "only 0 events were in flight"},
		"publishers that were refused":     {refuseMany, "of what shop published on order.placed was accepted"},
		"publishers that were blocked":     {func(r *run) { r.ev.Finish += 3 * time.Second }, "behind its schedule"},
		"a schedule with holes":            {func(r *run) { skip(r, 500) }, "skipped 1 events"},
		"an unknown end":                   {func(r *run) { r.ev.End = nil }, "is not known"},
		"nothing expected":                 {expectNothing, "nothing was expected"},
		"too few events":                   {func(r *run) { r.lim.PerWorker = events + 1 }, "only 1000 events were published"},
		"whoever ran it found it wanting":  {func(r *run) { r.ev.Void = []string{"the clock stood still"} }, "the clock stood still"},
		"a store that nobody looked up":    {func(r *run) { r.ev.Outages[0].Old, r.ev.Outages[0].New = StreamState{}, StreamState{} }, "which store"},
		"a kill of a worker that was idle": {killIdle, "it was not at work"},
	} {
		t.Run(name, func(t *testing.T) {
			r := soundRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Void)
			if !strings.Contains(strings.Join(v.Void, "\n"), c.why) {
				t.Errorf("void because of %q, want %q", v.Void, c.why)
			}
			if row(t, v, "evidence").Result != "void" {
				t.Error("the table does not show it")
			}
		})
	}
}

// Several plans of the same size that all failed must each be named.
func TestEveryFaultThatDidNotHappenIsNamed(t *testing.T) {
	r := soundRun()
	r.ev.Deploys, r.ev.Outages, r.ev.WantKills = nil, nil, 1
	v := r.judge()
	why := strings.Join(v.Void, "\n")
	mustBe(t, v, Void)
	for _, what := range []string{"1 deploys were", "1 restarts of the hub were"} {
		if !strings.Contains(why, what) {
			t.Errorf("%q is missing in %q", what, v.Void)
		}
	}
}

// A loss that was seen is a loss, however poor the rest of the run.
func TestBrokenOverrulesVoid(t *testing.T) {
	r := soundRun()
	r.ev.WantKills = 2
	r.forget(worker(100), live, 100)
	mustBe(t, r.judge(), Broken)
}

func refuseMany(r *run) {
	for n := 100; n < 300; n++ {
		r.answer(live, n, witness.Refuse)
		r.forget(worker(n), live, n)
		r.forget(auditPID, live, n)
	}
}

func skip(r *run, n int) {
	for pid := range r.scripts {
		r.forget(pid, live, n)
	}
}

func expectNothing(r *run) {
	r.ev.Expect = nil
	for _, s := range r.scripts {
		s.recs = slices.DeleteFunc(s.recs, func(l rec) bool { return l.group() != "" })
	}
	r.ev.End.Stored = 0
}

// killIdle: the victim had only just started, and what it had done was done by
// its neighbour.
func killIdle(r *run) {
	from, to := r.scripts[deadPID], r.scripts[112]
	to.recs = append(to.recs, from.recs[1:]...)
	from.recs = from.recs[:1]
}
