package drill

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// hubRun is the sound run with a hub that outlives its deploy, and is then killed in one
// process and taken over by another.
func hubRun() *run {
	r := soundRun()
	d := &r.ev.Deploys[0]
	same := HubRun{PID: hubPID, Server: "NA"}
	d.Hub = &HubRuns{Before: same, After: same}
	r.ev.Deploys = append(r.ev.Deploys, *d)
	r.ev.Deploys[1].Name, r.ev.Deploys[1].Start = "deploy 2", when(2.01)
	r.ev.Deploys[1].Hub = &HubRuns{Before: same, After: same}
	r.ev.Phases[3].Kind = Takeover
	o := &r.ev.Outages[0]
	o.Host, o.PID, o.Next, o.Killed, o.Closed = "in worker 0, pid 400", hubPID, "in shop-1, pid 500", true, 0
	r.ev.Exits = append(r.ev.Exits, Exit{PID: hubPID, At: o.Gone, Signal: "killed", Code: -1})
	return r
}

func TestAHubThatIsLeftAloneAndTakenOverIsKept(t *testing.T) {
	r := hubRun()
	r.forget(112, live, 605) // as in any outage
	v := r.judge()
	mustBe(t, v, Kept)
	if row := row(t, v, "live, hub moved"); row.Forgiven != 1 {
		t.Errorf("%+v", *row)
	}
	var text strings.Builder
	if err := v.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nin worker 0, pid 400  killed   in shop-1, pid 500  10ms\n", "pid 400 in deploy 1 (USR2 and QUIT), deploy 2 (USR2 and QUIT)\n",
		"1 times, at most 10ms without", "1 moves of the hub"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	r.ev.Outages[0].Next = keptHost
	if kind := r.ev.Outages[0].kind(); kind != Outages {
		t.Errorf("a hub that its master has started again is a %q", kind)
	}
}

func TestEachBrokenRuleOfHubsIsNamed(t *testing.T) {
	touched := []string{violation("deploys leave the hub alone", RuleHub, 0, "", "", hubPID)}
	judgeRuns(t, hubRun, map[string]wanted{
		"another process after a deploy":   {func(r *run) { r.ev.Deploys[1].Hub.After.PID++ }, touched},
		"the same process, started again":  {func(r *run) { r.ev.Deploys[1].Hub.After.Server = "NB" }, touched},
		"another one between two deploys":  {func(r *run) { h := r.ev.Deploys[1].Hub; h.Before.Server, h.After.Server = "NB", "NB" }, touched},
		"nothing is accepted for too long": {func(r *run) { r.lim.Silence = 9 * time.Millisecond }, []string{violation("the hub is soon there again", RuleLate, 0, "", "", hubPID)}},
		"an empty store": {func(r *run) { r.ev.Outages[0].New.Created = when0.Add(time.Hour) },
			[]string{violation("durable, hub moved", RuleStream, 0, "", "", 0)}},
		"a durable event in the outage": {func(r *run) { r.forget(112, durable, 605) },
			[]string{violation("durable, hub moved", RuleLost, 605, durable, "billing", 0)}},
	})
}

var when0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A hub that somebody has ended between two deploys may be another one after that.
func TestAHubMayChangeBetweenDeploysIfItWasEnded(t *testing.T) {
	r := hubRun()
	h := r.ev.Deploys[1].Hub
	h.Before.Server, h.After.Server = "NB", "NB"
	r.ev.Outages[0].Down = when(2.005)
	if got := named(r.judge()); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, RuleHub) }) {
		t.Error(first(got))
	}
}

func TestAHubThatDidNotEndAsItShouldIsVoid(t *testing.T) {
	for name, damage := range map[string]func(*run){
		"it has ended by itself":   func(r *run) { r.ev.Exits[4].Signal = "" },
		"its end was not seen":     func(r *run) { r.ev.Exits = r.ev.Exits[:4] },
		"it was to stop, and died": func(r *run) { r.ev.Outages[0].Killed = false },
	} {
		t.Run(name, func(t *testing.T) {
			r := hubRun()
			damage(r)
			v := r.judge()
			mustBe(t, v, Void)
			if !strings.Contains(strings.Join(v.Void, "\n"), "the end of the hub (in worker 0, pid 400) met nobody") {
				t.Error(v.Void)
			}
		})
	}
}

// A publisher that had to end before the others was not blocked.
func TestAPublisherMayLeave(t *testing.T) {
	r := soundRun()
	r.ev.Finish += 3 * time.Second
	mustBe(t, r.judge(), Void)
	r.ev.Leavers = []Quit{{PID: shopPID, At: published(events)}}
	mustBe(t, r.judge(), Kept)
}

// What a publisher had heard nothing of when it was killed says that it was blocked only
// if that had lasted.
func TestTheLastWordsOfAPublisherAreNotRefused(t *testing.T) {
	for name, c := range map[string]struct {
		from, to int
		want     Result
	}{
		"just before": {960, 1000, Kept},
		"long before": {910, 950, Void},
	} {
		t.Run(name, func(t *testing.T) {
			r := outageRun()
			r.lim.Accepted = 0.98
			s := r.scripts[shopPID]
			for n := c.from; n <= c.to; n++ {
				s.recs = slices.DeleteFunc(s.recs, func(l rec) bool { return l.kind == witness.Accept && l.about(durable, n) })
			}
			mustBe(t, r.judge(), c.want)
		})
	}
}
