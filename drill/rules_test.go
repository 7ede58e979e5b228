package drill

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// violation is how named shows one.
func violation(promise, rule string, n int, topic, group string, pid int) string {
	event := ""
	if n > 0 {
		event = id(n)
	}
	return fmt.Sprintf("%s: %s %s of %s in %s by %d", promise, rule, event, topic, group, pid)
}

// The events of these numbers, and who handles them in the sound run.
const (
	quiet   = 100 // by 101, long before any fault
	onway   = 230 // by 111, soon after the deploy
	dying   = 398 // by 111: the last one of each topic that it begins
	unsent  = 399 // by 112, above the last one that 111 began
	unborn  = 405 // by 112, published before the death of 111 was noticed plus slack
	outside = 410 // published after that
	cut     = 599 // by 112: the last one before the hub is stopped
)

type wanted struct {
	damage func(*run)
	want   []string
}

// Each rule, broken once, is broken by name: that promise, that id, that process,
// and nothing else.
func TestEachBrokenEventRuleNamesWhatWasPlanted(t *testing.T) {
	liveLost := func(n int, group string) []string {
		return []string{violation("live, steady", RuleLost, n, live, group, 0)}
	}
	late := func(n int) []string {
		return []string{violation("durable, kill -9", RuleLate, n, durable, "billing", 112)}
	}
	cases := map[string]wanted{
		"a live event lost":                      {func(r *run) { r.forget(101, live, quiet) }, liveLost(quiet, "billing")},
		"a live event lost on one of two groups": {func(r *run) { r.forget(auditPID, live, quiet) }, liveLost(quiet, "audit")},
		"a live event lost by a deploy": {func(r *run) { r.forget(deadPID, live, onway) },
			[]string{violation("live, deploy", RuleLost, onway, live, "billing", 0)}},
		"a durable event lost": {func(r *run) { r.forget(101, durable, quiet) },
			[]string{violation("durable, steady", RuleLost, quiet, durable, "billing", 0)}},
		"a live handler cut short": {func(r *run) { r.forget(101, live, quiet, witness.End) },
			[]string{violation("live, steady", RuleUnfinished, quiet, live, "billing", 101)}},
		"a durable handler cut short": {func(r *run) { r.forget(101, durable, quiet, witness.End, witness.Ack) },
			[]string{violation("durable, steady", RuleUnfinished, quiet, durable, "billing", 101)}},
		"a handler that failed": {func(r *run) { r.edit(101, live, quiet, witness.End, func(l *rec) { l.fields[4] = "boom" }) },
			[]string{violation("live, steady", RuleFailed, quiet, live, "billing", 101)}},
		"a live event in two processes of a group": {func(r *run) { r.handle(102, live, quiet, "billing", when(1.5), 1) },
			[]string{violation("live, steady", RuleDoubled, quiet, live, "billing", 102)}},
		"a live event twice in one process": {func(r *run) { r.handle(101, live, quiet, "billing", when(1.5), 1) },
			[]string{violation("live, steady", RuleDoubled, quiet, live, "billing", 101)}},
		"a durable event in two processes of a group": {func(r *run) { r.handle(102, durable, quiet, "billing", when(1.5), 2) },
			[]string{violation("durable, steady", RuleDoubled, quiet, durable, "billing", 102)}},
		"a durable event twice in one process": {func(r *run) { r.handle(101, durable, quiet, "billing", when(1.5), 2) },
			[]string{violation("durable, steady", RuleDoubled, quiet, durable, "billing", 101)}},
		"a durable event twice during a deploy": {func(r *run) { r.handle(112, durable, quiet, "billing", when(3), 2) },
			[]string{violation("durable, deploy", RuleDoubled, quiet, durable, "billing", 112)}},
		"a redelivery without a fault": {func(r *run) { r.attempt(101, quiet, 2) },
			[]string{violation("durable, steady", RuleRedelivered, quiet, durable, "billing", 101)}},
		"an acknowledgement before the end": {func(r *run) {
			r.edit(101, durable, quiet, witness.Ack, func(l *rec) { l.at -= time.Millisecond + time.Microsecond })
		}, []string{violation("durable, steady", RuleEarlyAck, quiet, durable, "billing", 101)}},
		"an acknowledgement before the begin": {func(r *run) {
			r.edit(101, durable, quiet, witness.Ack, func(l *rec) { l.at -= 5 * time.Millisecond / 2 })
		}, []string{violation("durable, steady", RuleEarlyAck, quiet, durable, "billing", 101)}},
		"a swapped live pair": {func(r *run) { r.swap(101, live, quiet) },
			[]string{violation("order per publisher", RuleOrder, quiet, live, "billing", 101)}},
		"a swapped durable pair": {func(r *run) { r.swap(101, durable, quiet) },
			[]string{violation("order per publisher", RuleOrder, quiet, durable, "billing", 101)}},
		"a live event too late": {func(r *run) { r.publishEarlier(live, 1, 4*time.Second) },
			[]string{violation("live, steady", RuleLate, 1, live, "audit", auditPID), violation("live, steady", RuleLate, 1, live, "billing", 102)}},
		"a redelivery after the ack wait of a dead process": {func(r *run) {
			r.forget(deadPID, durable, dying, witness.End, witness.Ack)
			r.handle(112, durable, dying, "billing", when(20), 2)
		}, late(dying)},
		"a refused event that arrives": {func(r *run) { r.answer(live, quiet, witness.Refuse); r.forget(auditPID, live, quiet) },
			[]string{violation("live, steady", RuleRefused, quiet, live, "billing", 101)}},
		"an event that nobody sent": {func(r *run) { r.handle(101, live, 5000, "billing", when(2.35), 1) },
			[]string{violation("ledger complete", RuleUnknown, 5000, live, "billing", 101)}},
		"a group that should not be there": {func(r *run) { r.handle(101, live, quiet, "stranger", when(1.5), 1) },
			[]string{violation("evidence", RuleUnexpected, quiet, live, "stranger", 101)}},
	}
	judgeAll(t, cases)
}

// What the promise excludes around a fault ends exactly where it says.
func TestForgivenessEndsWhereItShould(t *testing.T) {
	lost := func(n int, topic, group, row string) []string {
		return []string{violation(row, RuleLost, n, topic, group, 0)}
	}
	judgeAll(t, map[string]wanted{
		"an id before the last that the dead worker began": {func(r *run) { r.forget(deadPID, live, dying-2) }, lost(dying-2, live, "billing", "live, kill -9")},
		"an id sent after the death":                       {func(r *run) { r.forget(113, live, outside) }, lost(outside, live, "billing", "live, kill -9")},
		"a group that the dead worker was not in":          {func(r *run) { r.forget(auditPID, live, unborn) }, lost(unborn, live, "audit", "live, kill -9")},
		"a durable id that it can have been sent":          {func(r *run) { r.forget(112, durable, unborn) }, lost(unborn, durable, "billing", "durable, kill -9")},
		"a durable event that died with it": {func(r *run) { r.forget(deadPID, durable, dying, witness.End, witness.Ack) },
			[]string{violation("durable, kill -9", RuleUnfinished, dying, durable, "billing", deadPID)}},
		"a durable event that it had acknowledged": {func(r *run) { r.handle(112, durable, dying, "billing", when(5), 2) },
			[]string{violation("durable, kill -9", RuleDoubled, dying, durable, "billing", 112)}},
		"a handler of a survivor": {func(r *run) { r.forget(112, live, unsent, witness.End) },
			[]string{violation("live, kill -9", RuleUnfinished, unsent, live, "billing", 112)}},
		"a live event just before the outage":    {func(r *run) { r.forget(113, live, 594) }, lost(594, live, "billing", "live, hub restart")},
		"a live event just after the outage":     {func(r *run) { r.forget(112, live, 621) }, lost(621, live, "billing", "live, hub restart")},
		"a durable event in the outage":          {func(r *run) { r.forget(112, durable, 605) }, lost(605, durable, "billing", "durable, hub restart")},
		"a live event that was begun in it":      {func(r *run) { r.forget(112, live, 605, witness.End) }, []string{violation("live, hub restart", RuleUnfinished, 605, live, "billing", 112)}},
		"a double after it in the same process":  {func(r *run) { r.again(cut, 112, when(6.3)) }, []string{violation("durable, hub restart", RuleDoubled, cut, durable, "billing", 112)}},
		"a double after it of what was settled":  {func(r *run) { r.handle(113, durable, cut, "billing", when(6.3), 2) }, []string{violation("durable, hub restart", RuleDoubled, cut, durable, "billing", 113)}},
		"a live double after it":                 {func(r *run) { r.handle(113, live, cut, "billing", when(6.3), 1) }, []string{violation("live, hub restart", RuleDoubled, cut, live, "billing", 113)}},
		"a redelivery of what came after it":     {func(r *run) { r.attempt(112, 701, 2) }, []string{violation("durable, hub restart", RuleRedelivered, 701, durable, "billing", 112)}},
		"a double of what was begun after it":    {func(r *run) { r.again(701, 113, when(7.5)) }, []string{violation("durable, hub restart", RuleDoubled, 701, durable, "billing", 113)}},
		"a double before it":                     {func(r *run) { r.again(597, 113, when(5.99)) }, []string{violation("durable, kill -9", RuleDoubled, 597, durable, "billing", 113)}},
		"an order that it does not explain":      {func(r *run) { r.instead(602, 112, when(6.5)) }, []string{violation("order per publisher", RuleOrder, 602, durable, "billing", 112)}},
		"a handler cut short that another redid": {func(r *run) { r.forget(112, durable, cut, witness.End); r.again(cut, 113, when(6.3)) }, []string{violation("durable, kill -9", RuleUnfinished, cut, durable, "billing", 112)}},
	})
}

func judgeAll(t *testing.T, cases map[string]wanted) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := soundRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Broken)
			if got := named(v); !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", first(got), c.want)
			}
			for _, row := range v.Rows {
				if (row.Result == string(Broken)) != (row.Violations > 0) {
					t.Errorf("%s is %s with %d violations", row.Promise, row.Result, row.Violations)
				}
			}
		})
	}
}

// Where nothing is promised the run is kept, and the table shows what it cost.
func TestWhatThePromiseExcludesIsForgivenAndCounted(t *testing.T) {
	for name, c := range map[string]struct {
		damage  func(*run)
		promise string
		figure  func(*Row) int
	}{
		"died in the hands of the worker": {func(r *run) { r.forget(deadPID, live, dying, witness.End) }, "live, kill -9", forgiven},
		"can have been sent to it":        {func(r *run) { r.forget(112, live, unsent) }, "live, kill -9", forgiven},
		"sent before its death was seen":  {func(r *run) { r.forget(112, live, unborn) }, "live, kill -9", forgiven},
		"durable, redone by a neighbour": {func(r *run) {
			r.forget(deadPID, durable, dying, witness.End, witness.Ack)
			r.handle(112, durable, dying, "billing", when(9), 2)
		}, "durable, kill -9", redelivered},
		"durable, begun elsewhere the second time": {func(r *run) { r.attempt(113, 400, 2) }, "durable, kill -9", redelivered},
		"live while the hub was away":              {func(r *run) { r.forget(112, live, 605) }, "live, hub restart", forgiven},
		"live in the hub's hands":                  {func(r *run) { r.forget(113, live, 596) }, "live, hub restart", forgiven},
		"durable, not settled before the hub went": {func(r *run) { r.again(cut, 113, when(6.3)) }, "durable, hub restart", redelivered},
		"handed out anew after the restart":        {func(r *run) { r.instead(596, 112, when(6.3)) }, "order per publisher", redelivered},
		"live, never answered":                     {func(r *run) { r.forget(shopPID, live, quiet, witness.Accept) }, "live, steady", doubts},
		"live, never answered nor seen": {func(r *run) {
			r.forget(shopPID, live, quiet, witness.Accept)
			r.forget(101, live, quiet)
			r.forget(auditPID, live, quiet)
		}, "live, steady", doubts},
		"durable, told to be in doubt, and stored": {func(r *run) { r.answer(durable, quiet, witness.Doubt) }, "durable, steady", doubts},
		"durable, told to be in doubt, and lost": {func(r *run) {
			r.answer(durable, quiet, witness.Doubt)
			r.forget(101, durable, quiet)
			r.ev.End.Stored--
		}, "durable, steady", doubts},
	} {
		t.Run(name, func(t *testing.T) {
			r := soundRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Kept)
			if n := c.figure(row(t, v, c.promise)); n < 1 {
				t.Errorf("the table does not show it: %+v", *row(t, v, c.promise))
			}
		})
	}
}

func forgiven(r *Row) int    { return r.Forgiven }
func redelivered(r *Row) int { return r.Redelivered }
func doubts(r *Row) int      { return r.InDoubt }

// Without the fault that forgives it, what was forgiven is a violation.
func TestOnlyAFaultThatHappenedForgives(t *testing.T) {
	r := soundRun()
	r.forget(113, live, 596)
	r.ev.Outages, r.ev.WantOutages = nil, 0
	v := r.judge()
	mustBe(t, v, Broken)
	if want := violation("live, hub restart", RuleLost, 596, live, "billing", 0); !slices.Equal(named(v), []string{want}) {
		t.Errorf("got %v, want %s", first(named(v)), want)
	}
}

// A group that hears nothing is missed event by event, however well others hear.
func TestUnionOverGroupsDoesNotHideADeafOne(t *testing.T) {
	r := soundRun()
	for n := 1; n <= events; n++ {
		r.forget(auditPID, live, n)
	}
	v := r.judge()
	mustBe(t, v, Broken)
	lost := 0
	for _, x := range v.Violations {
		if x.Rule != RuleLost || x.Group != "audit" {
			t.Fatalf("%+v", x)
		}
		lost++
	}
	inOutage := 0
	for n := 1; n <= events; n++ {
		if published(n)+time.Millisecond/2 >= when(5.95) && published(n) <= when(6.2) {
			inOutage++
		}
	}
	if lost != events-inOutage {
		t.Errorf("%d named, want %d", lost, events-inOutage)
	}
}

// network makes the restart of the hub a fault of the network.
func (r *run) network() {
	r.ev.Outages[0].Network = "cut"
	r.rename(Networks)
}

// node makes it the death of a node, and the next leader as much later.
func (r *run) node(elected time.Duration) {
	o := &r.ev.Outages[0]
	o.Node, o.Elected = "node-1", o.Down+elected
	r.rename(Nodes)
}

func (r *run) rename(kind Kind) {
	for i := range r.ev.Phases {
		if r.ev.Phases[i].Kind == Outages {
			r.ev.Phases[i].Kind = kind
		}
	}
}

// How long nothing was handled after the death of a node is shown beside how much of that
// is the elections'.
func TestTheStallOfADeadNodeIsShown(t *testing.T) {
	r := soundRun()
	r.node(150 * time.Millisecond)
	for i := range r.ev.Expect {
		r.ev.Expect[i].Keyed = r.ev.Expect[i].Durable // which is no other subscription
	}
	o := r.ev.Outages[0]
	last, first := 0, 0 // before it and after it
	for n := 1; n <= events; n++ {
		switch {
		case published(n) < o.Down:
			last = n
		case published(n) < o.Down+200*time.Millisecond:
			r.forget(worker(n), durable, n)
		case first == 0:
			first = n
		}
	}
	v := r.judge()
	want := fmt.Sprintf("1 nodes killed (%v without an event, of which 150ms without a leader)", (published(first) - published(last)).Round(time.Millisecond))
	if note := row(t, v, "evidence").Note; !strings.Contains(note, want) {
		t.Errorf("%q says nothing of %q", note, want)
	}
}

func TestRedeliveriesHaveABudget(t *testing.T) {
	for _, kind := range []Kind{Kills, Outages, Networks} {
		r := soundRun()
		if kind == Networks {
			r.network()
		}
		r.lim.Redeliveries = map[Kind]int{Kills: 3, Outages: 3, Networks: 3}
		pids, ns := []int{112, 113}, []int{401, 402, 403, 404}
		if kind != Kills {
			ns = []int{601, 602, 603, 604}
		}
		for _, n := range ns[:3] {
			r.attempt(pids[(n+1)%2], n, 2)
		}
		if kind != Kills {
			r.ev.Kills, r.ev.WantKills = nil, 0
			r.line(deadPID, when(100), witness.Closed, "")
		}
		mustBe(t, r.judge(), Kept)
		r.attempt(pids[(ns[3]+1)%2], ns[3], 2)
		v := r.judge()
		mustBe(t, v, Broken)
		if want := violation("durable, "+string(kind), RuleBudget, 0, "", "", 0); !slices.Equal(named(v), []string{want}) {
			t.Errorf("got %v, want %s", first(named(v)), want)
		}
	}
}

// attempt changes how often the broker says it has delivered a durable event.
func (r *run) attempt(pid, n, attempt int) {
	r.edit(pid, durable, n, witness.Begin, func(l *rec) { l.fields[4] = fmt.Sprint(attempt) })
}

// again: the acknowledgement of durable event n did not get through, and it is
// delivered to pid.
func (r *run) again(n, pid int, at Mono) {
	r.forget(worker(n), durable, n, witness.Ack)
	r.handle(pid, durable, n, "billing", at, 2)
}

// instead: another process than the sound run's gets durable event n, for the
// first time as far as the broker knows.
func (r *run) instead(n, pid int, at Mono) {
	r.forget(worker(n), durable, n)
	r.handle(pid, durable, n, "billing", at, 1)
}

// swap lets a worker get event n after the next one that it is sent.
func (r *run) swap(pid int, topic string, n int) {
	for i := range r.scripts[pid].recs {
		switch l := &r.scripts[pid].recs[i]; {
		case l.about(topic, n):
			l.at += 2 * step
		case l.about(topic, n+2):
			l.at -= 2 * step
		}
	}
}

// publishEarlier moves a publication, and so lengthens its way.
func (r *run) publishEarlier(topic string, n int, by time.Duration) {
	for i := range r.scripts[shopPID].recs {
		if l := &r.scripts[shopPID].recs[i]; l.about(topic, n) {
			l.at -= by
		}
	}
}

// Broken promises that are not about one event.
func TestEachBrokenRuleOfTheRunIsNamed(t *testing.T) {
	drop := func(i int) func([]string) []string {
		return func(l []string) []string { return slices.Delete(l, i, i+1) }
	}
	ledger := func(pid int) []string { return []string{violation("ledger complete", RuleLedger, 0, "", "", pid)} }
	event := func(topic string, pid int) []string {
		return []string{violation("ledger complete", RuleLedger, quiet, topic, "", pid)}
	}
	end := []string{violation("nothing left behind", RuleEnd, 0, "", "", 0)}
	process := func(pid int) []string { return []string{violation("evidence", RuleProcess, 0, "", "", pid)} }
	stream := []string{violation("durable, hub restart", RuleStream, 0, "", "", 0)}
	judgeAll(t, map[string]wanted{
		"a missing line": {func(r *run) {
			r.line(auditPID, when(50), witness.Nack, live, id(quiet), live, "audit", "no")
			r.scripts[auditPID].mangle = func(l []string) []string { return drop(len(l) - 2)(l) }
		}, ledger(auditPID)},
		"a line that cannot be read": {func(r *run) {
			r.line(auditPID, when(50), witness.Nack, live, id(quiet), live, "audit", "no")
			r.scripts[auditPID].mangle = func(l []string) []string { l[len(l)-2] = "?"; return l }
		}, ledger(auditPID)},
		"a journal without its end": {func(r *run) {
			r.scripts[auditPID].mangle = func(l []string) []string { return drop(len(l) - 1)(l) }
		}, ledger(auditPID)},
		"an accept of nothing":         {func(r *run) { r.line(shopPID, when(50), witness.Accept, live, id(quiet)) }, event(live, shopPID)},
		"an accept by another process": {func(r *run) { r.line(auditPID, when(50), witness.Accept, live, id(quiet)) }, event(live, auditPID)},
		"an id used twice":             {func(r *run) { r.line(shopPID, when(5), witness.Intent, live, id(quiet), "0") }, event(live, shopPID)},
		"an end without a begin":       {func(r *run) { r.line(112, when(50), witness.End, live, id(quiet), live, "billing", "") }, event(live, 112)},
		"something still pending":      {func(r *run) { r.ev.End.Pending = 1 }, end},
		"something unacknowledged":     {func(r *run) { r.ev.End.AckPending = 1 }, end},
		"less stored than accepted":    {func(r *run) { r.ev.End.Stored-- }, end},
		"more stored than accepted":    {func(r *run) { r.ev.End.Stored++ }, end},
		"a stream created anew":        {func(r *run) { r.ev.Outages[0].New.Created = time.Now() }, stream},
		"a stream that went back":      {func(r *run) { r.ev.Outages[0].New.LastSeq = 589 }, stream},
		"another stream":               {func(r *run) { r.ev.Outages[0].New.Name = "other" }, stream},
		"clients that did not return": {func(r *run) { r.ev.Outages[0].After = 3 },
			[]string{violation("live, hub restart", RuleProcess, 0, "", "", 0)}},
		"clients that the network lost": {func(r *run) { r.network(); r.ev.Outages[0].After = 3 },
			[]string{violation("live, network fault", RuleProcess, 0, "", "", 0)}},
		"another stream behind the network": {func(r *run) { r.network(); r.ev.Outages[0].New.Name = "other" },
			[]string{violation("durable, network fault", RuleStream, 0, "", "", 0)}},
		"a deploy that failed":                {func(r *run) { r.ev.Deploys[0].Failure = "never ready" }, process(0)},
		"an old worker that failed":           {func(r *run) { r.ev.Exits[0].Code = 1 }, process(101)},
		"an old worker that had to be killed": {func(r *run) { r.ev.Exits[0].Signal = "killed" }, process(101)},
		"an old master that did not exit":     {func(r *run) { r.ev.Exits = slices.Delete(r.ev.Exits, 2, 3) }, process(100)},
		"whoever ran it saw it break":         {func(r *run) { r.ev.Broken = []string{"a worker would not start"} }, process(0)},
	})
}

// The record of what was accepted is gone: nothing that was handled has an origin,
// and the broker holds what nobody claims.
func TestAMissingJournalOfAPublisherIsNoticed(t *testing.T) {
	r := soundRun()
	delete(r.scripts, shopPID)
	v := r.judge()
	mustBe(t, v, Broken)
	got := named(v)
	for _, want := range []string{
		violation("ledger complete", RuleUnknown, quiet, live, "audit", auditPID),
		violation("ledger complete", RuleUnknown, quiet, durable, "billing", 101),
		violation("nothing left behind", RuleEnd, 0, "", "", 0),
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, first(got))
		}
	}
}
