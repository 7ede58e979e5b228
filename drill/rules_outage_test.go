package drill

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

const (
	hubPID      = 400
	hubDown     = 600 // the hub is away from here on
	hubUp       = 800
	firstFull   = 850 // refused
	lastFull    = 880
	waits       = 700 // in a spool; by 113
	forgotAck   = 595 // by 112, acknowledged just before the hub is killed
	rememberAck = 451 // by 112, long before
)

// outageRun is the sound run with a spool: the hub is killed and away for two seconds,
// then the spool is full for a while, and at the end the publisher is killed.
func outageRun() *run {
	r := soundRun()
	for n := hubDown; n <= hubUp; n++ {
		r.forget(worker(n), durable, n)
		r.handle(worker(n), durable, n, "billing", when(8)+Mono(n-hubDown)*20*time.Microsecond, 1)
	}
	for n := firstFull; n <= lastFull; n++ {
		r.answer(durable, n, witness.Refuse)
		r.forget(worker(n), durable, n)
	}
	s := r.scripts[shopPID]
	s.recs = slices.DeleteFunc(s.recs, func(l rec) bool { return l.kind == witness.Closed })
	r.ev.Phases = append(r.ev.Phases[:3], Phase{"hub away", Absences, when(6)}, Phase{"full spools", Fulls, when(8.5)}, Phase{"after", Steady, when(9)})
	o := &r.ev.Outages[0]
	o.PID, o.Killed, o.Closed, o.Gone, o.Up, o.Back = hubPID, true, 0, when(6.01), when(8), when(8.1)
	r.ev.Exits = append(r.ev.Exits, Exit{PID: hubPID, At: when(6.01), Signal: "killed", Code: -1}, Exit{PID: shopPID, At: when(10.01), Signal: "killed", Code: -1})
	r.ev.Deaths = []Death{{Name: "shop", PID: shopPID, Sent: when(10.002), Noticed: when(10.01), Left: 3}}
	r.ev.WantDeaths = 1
	r.ev.End.Stored = events - (lastFull - firstFull + 1)
	r.ev.Spools = &SpoolsEnd{}
	r.lim.MaxDelay = maps.Clone(r.lim.MaxDelay)
	r.lim.MaxDelay[Absences] = 10 * time.Millisecond // besides the time of the absence
	return r
}

func TestASoundOutageIsKept(t *testing.T) {
	v := outageRun().judge()
	mustBe(t, v, Kept)
	away := row(t, v, "durable, hub away")
	if away.Spooled != 199 || away.Lost+away.Doubled+away.Refused > 0 {
		t.Errorf("%+v", *away)
	}
	if full := row(t, v, "durable, full spool"); full.Refused != 31 || full.Lost > 0 {
		t.Errorf("%+v", *full)
	}
	for _, p := range v.Publishers {
		if p.Topic == durable && (p.Spooled != 199 || p.Refused != 31) || p.Topic == live && p.Spooled > 0 {
			t.Errorf("%+v", p)
		}
	}
}

func TestEachBrokenRuleOfOutagesNamesWhatWasPlanted(t *testing.T) {
	end := []string{violation("nothing left behind", RuleEnd, 0, "", "", 0)}
	for name, c := range map[string]wanted{
		"a spooled event lost": {func(r *run) { r.forget(worker(waits), durable, waits) },
			[]string{violation("durable, hub away", RuleLost, waits, durable, "billing", 0)}},
		"a spooled event stored twice": {func(r *run) { r.handle(112, durable, waits, "billing", when(8.3), 1) },
			[]string{violation("durable, hub away", RuleDoubled, waits, durable, "billing", 112)}},
		"more doubles than were announced": {func(r *run) {
			r.ev.Spools.Possible = 1
			r.handle(112, durable, waits, "billing", when(8.3), 1)
			r.handle(113, durable, waits+1, "billing", when(8.3), 1)
		}, []string{violation("durable, hub away", RuleDoubled, waits+1, durable, "billing", 113)}},
		"a refused event delivered": {func(r *run) {
			r.handle(worker(firstFull), durable, firstFull, "billing", published(firstFull)+time.Millisecond, 1)
		},
			[]string{violation("durable, full spool", RuleRefused, firstFull, durable, "billing", worker(firstFull))}},
		"an acknowledgement that the hub cannot have forgotten": {func(r *run) { r.handle(113, durable, rememberAck, "billing", when(8.3), 1) },
			[]string{violation("durable, hub away", RuleDoubled, rememberAck, durable, "billing", 113)}},
		"an event that its publisher has published again, in time": {func(r *run) { r.twice(rememberAck) },
			[]string{violation("durable, hub away", RuleDoubled, rememberAck, durable, "billing", 112)}},
		"a live event lost long before its publisher was killed": {func(r *run) { r.forget(worker(930), live, 930) },
			[]string{violation("live, steady", RuleLost, 930, live, "billing", 0)}},
		"a spooled event too late": {func(r *run) { r.ev.Outages[0].Up -= 100 * time.Millisecond; r.only(durable, hubDown+5) },
			[]string{violation("durable, hub away", RuleLate, hubDown+5, durable, "billing", worker(hubDown+5))}},
		"something left in a spool": {func(r *run) { r.ev.Spools.Left = 1 }, end},
		"something set aside":       {func(r *run) { r.ev.Spools.Refused = 1 }, end},
		"a damaged spool":           {func(r *run) { r.ev.Spools.Damaged = 1 }, end},
		"something stored twice":    {func(r *run) { r.ev.End.Stored++ }, end},
	} {
		t.Run(name, func(t *testing.T) {
			r := outageRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Broken)
			if got := named(v); !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", first(got), c.want)
			}
		})
	}
}

// twice has an event be published twice, and handled twice by the same process.
func (r *run) twice(n int) {
	r.line(shopPID, published(n)-time.Microsecond, witness.Plan, durable, id(n), "", string(witness.Twice))
	r.handle(worker(n), durable, n, "billing", when(8.3), 1)
}

// only has all other events of the absence begin in time, whenever that is.
func (r *run) only(topic string, late int) {
	for n := hubDown; n < hubUp; n++ {
		if n != late {
			r.edit(shopPID, topic, n, witness.Accept, func(l *rec) { l.at = when(7.99) })
		}
	}
}

func TestWhatAnOutageForgivesIsCounted(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*run)
		row    string
		count  func(*Row) int
	}{
		"an acknowledgement that was lost with the hub": {func(r *run) { r.handle(113, durable, forgotAck, "billing", when(8.3), 1) },
			"durable, hub away", func(r *Row) int { return r.Redelivered }},
		"a double that was announced": {func(r *run) {
			r.ev.Spools.Possible = 1
			r.ev.End.Stored++
			r.handle(112, durable, waits, "billing", when(8.3), 1)
		}, "durable, hub away", func(r *Row) int { return r.Redelivered }},
		"an event that its publisher has published again, too late": {func(r *run) { r.twice(forgotAck); r.ev.End.Stored++ },
			"durable, hub away", func(r *Row) int { return r.Redelivered }},
		"a live event that went with its publisher": {func(r *run) { r.forget(worker(990), live, 990) },
			"live, steady", func(r *Row) int { return r.Forgiven }},
	} {
		t.Run(name, func(t *testing.T) {
			r := outageRun()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Kept)
			if n := c.count(row(t, v, c.row)); n != 1 {
				t.Errorf("%d are counted", n)
			}
		})
	}
}

func TestAnOutageThatProvesNothingIsVoid(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*run)
		why    string
	}{
		"nothing was spooled":                  {func(r *run) { r.lim.Spooled = 200 }, "only 199 events were accepted"},
		"no spool was full":                    {func(r *run) { r.lim.Refused = 32 }, "only 31 events were refused"},
		"refused without a full spool":         {func(r *run) { r.ev.Phases[4].Kind = Steady; r.lim.Accepted = 0.99 }, "of what shop published"},
		"a death too few":                      {func(r *run) { r.ev.WantDeaths = 2 }, "2 kills of publishers were planned"},
		"a publisher that ended by itself":     {func(r *run) { r.ev.Exits[5] = Exit{PID: shopPID} }, "the kill -9 of the publisher shop missed"},
		"publishers that left nothing":         {func(r *run) { r.ev.Deaths[0].Left = 0 }, "has left anything"},
		"a hub that was not killed":            {func(r *run) { r.ev.Exits[4].Signal = "" }, "met nobody"},
		"a publisher that was blocked":         {func(r *run) { r.ev.Deaths[0].Sent += 3 * time.Second }, "behind its schedule"},
		"a publisher that was not killed then": {func(r *run) { r.ev.Deaths = nil; r.ev.WantDeaths = 0 }, "has left anything"},
	} {
		t.Run(name, func(t *testing.T) {
			r := outageRun()
			c.damage(r)
			v := r.judge()
			if why := strings.Join(v.Void, "\n"); !strings.Contains(why, c.why) {
				t.Errorf("%s, void because of %q, want %q; %v", v.Result, v.Void, c.why, first(named(v)))
			}
		})
	}
}
