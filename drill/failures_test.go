package drill

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// The sound run with orders that fail. 101 gets the even ones at that time, so all
// of these have the same key there.
const (
	flaky   = 140
	poison  = 160
	panicky = 180
	held    = 229 // by 102, which is asked to go meanwhile
	deadly  = 650 // by 115, which dies of it, and its like
	crashed = 115

	retry = 10 * time.Millisecond
)

var redrive = when(20)

// key is that of a durable event. In each process two of them alternate.
func key(n int) string { return fmt.Sprint("customer-", n%4) }

// failingRun is sound: flaky is retried, poison and panicky are given up, redriven
// and handled. A second group gets all of them, and none fails there.
func failingRun() *run {
	r := soundRun()
	for n := 1; n <= events; n++ {
		r.line(shopPID, published(n), witness.Plan, durable, id(n), key(n), "")
		r.handle(auditPID, durable, n, "audit", published(n)+time.Millisecond, 1)
	}
	r.ev.Expect[2].Keyed, r.ev.Expect[2].GivesUp = true, true
	r.ev.Expect = append(r.ev.Expect, Expectation{Topic: durable, Pattern: durable, Group: "audit", Durable: true})
	r.ev.WantFates = []witness.Fate{witness.Flaky, witness.Poison, witness.Panics}
	r.ev.Redrive = &Redrive{At: redrive}
	r.fails(101, flaky, witness.Flaky, 2)
	r.handle(101, durable, flaky, "billing", published(flaky)+time.Millisecond+2*retry, 3)
	r.fails(101, poison, witness.Poison, 1)
	r.fails(101, panicky, witness.Panics, 3)
	for _, n := range []int{poison, panicky} {
		r.giveUp(n)
		r.handle(112, durable, n, "billing", redrive+Mono(n)*time.Millisecond, 1)
	}
	return r
}

// plant says what was planted in an event.
func (r *run) plant(n int, f witness.Fate) {
	r.edit(shopPID, durable, n, witness.Plan, func(l *rec) { l.fields[3] = string(f) })
}

// fails lets the handler of an event fail so often, with the time of a retry in
// between.
func (r *run) fails(pid, n int, f witness.Fate, times int) {
	r.plant(n, f)
	r.forget(pid, durable, n)
	for i := range times {
		r.fail(pid, n, published(n)+time.Millisecond+time.Duration(i)*retry, i+1, "planted")
	}
}

func (r *run) fail(pid, n int, at Mono, attempt int, why string) {
	r.line(pid, at, witness.Begin, durable, id(n), durable, "billing", fmt.Sprint(attempt))
	r.line(pid, at+time.Millisecond, witness.End, durable, id(n), durable, "billing", why)
}

func letterOf(n int) Letter {
	return Letter{Topic: durable, ID: id(n), Pattern: durable, Group: "billing", Reason: "planted", Attempts: 1, Deliveries: 1}
}

// giveUp makes a dead letter of an event, and redrives it.
func (r *run) giveUp(n int) {
	r.ev.Letters = append(r.ev.Letters, letterOf(n))
	r.ev.Redrive.Done++
}

// dropLetter takes back what giveUp did, and what came of it.
func (r *run) dropLetter(n int) {
	r.ev.Letters = slices.DeleteFunc(r.ev.Letters, func(l Letter) bool { return l.ID == id(n) })
	r.ev.Redrive.Done--
	r.forget(112, durable, n)
}

func ofKey(rule string, n, pid int) []string {
	return []string{violation("order per key", rule, n, durable, "billing", pid)}
}

func TestWhatFailsAsPlantedIsKept(t *testing.T) {
	v := failingRun().judge()
	mustBe(t, v, Kept)
	for _, r := range v.Rows {
		if r.Result != "ok" || r.Lost+r.Doubled+r.Redelivered+r.Forgiven > 0 {
			t.Errorf("%+v", *r)
		}
	}
	for promise, want := range map[string]string{
		"order per key":                   "4 keys, held 4 times for a retry",
		"dead letters = what was planted": "2 planted, 2 dead letters; met: flaky 1, panics 1, poison 1",
		"redriven once, to its group":     "2 given again, 2 handled, 0 letters left",
	} {
		if got := row(t, v, promise).Note; got != want {
			t.Errorf("%s: %q, want %q", promise, got, want)
		}
	}
	if n := row(t, v, "durable, steady").Retried; n != 4 {
		t.Errorf("%d retries, want 4", n)
	}
}

func TestEachBrokenRuleOfFailuresIsNamed(t *testing.T) {
	letter := func(rule string, n int, group string) string {
		return violation("dead letters = what was planted", rule, n, durable, group, 0)
	}
	again := func(n int, topic, group string) string {
		return violation("redriven once, to its group", RuleRedrive, n, topic, group, 0)
	}
	steady := func(rule string, n int, group string, pid int) string {
		return violation("durable, steady", rule, n, durable, group, pid)
	}
	judgeRuns(t, failingRun, map[string]wanted{
		"a failure that is not retried": {func(r *run) { r.forget(101, durable, flaky); r.fails(101, flaky, witness.Flaky, 1) },
			[]string{steady(RuleNotRetried, flaky, "billing", 101)}},
		"a failure that nobody planted": {func(r *run) { r.plant(flaky, ""); r.ev.WantFates = nil },
			[]string{steady(RuleFailed, flaky, "billing", 101), steady(RuleFailed, flaky, "billing", 101)}},
		"poison that is not given up": {func(r *run) { r.dropLetter(poison) },
			[]string{letter(RuleNoLetter, poison, "billing")}},
		"poison given up twice": {func(r *run) { r.giveUp(poison) },
			[]string{letter(RuleLetter, poison, "billing")}},
		"something sound given up": {func(r *run) { r.giveUp(flaky); r.handle(112, durable, flaky, "billing", redrive+time.Second, 1) },
			[]string{letter(RuleLetter, flaky, "billing"), steady(RuleDoubled, flaky, "billing", 112)}},
		"poison given up for a group that did not fail": {func(r *run) {
			r.giveUp(poison)
			r.ev.Letters[len(r.ev.Letters)-1].Group = "audit"
		}, []string{letter(RuleLetter, poison, "audit"), again(poison, durable, "audit")}},
		"a redrive that is not handled": {func(r *run) { r.forget(112, durable, poison) },
			[]string{again(poison, durable, "billing")}},
		"a redrive handled twice": {func(r *run) { r.handle(113, durable, poison, "billing", redrive+time.Second, 1) },
			[]string{again(poison, durable, "billing")}},
		"a redrive to another group": {func(r *run) { r.handle(auditPID, durable, poison, "audit", redrive+time.Second, 1) },
			[]string{steady(RuleDoubled, poison, "audit", auditPID), again(poison, durable, "audit")}},
		"a redrive of not all":               {func(r *run) { r.ev.Redrive.Done-- }, []string{again(0, "", "")}},
		"a letter that outlives its redrive": {func(r *run) { r.ev.Redrive.Left = []Letter{letterOf(poison)} }, []string{again(poison, durable, "billing")}},
		"the next of a key begun while one waits": {func(r *run) { r.shift(101, flaky+4, -4*step+3*time.Millisecond) },
			ofKey(RuleHeld, flaky+4, 101)},
		"the next of a key begun while one works": {func(r *run) {
			r.edit(101, durable, flaky+4, witness.End, func(l *rec) { l.at += 4*step - time.Millisecond/2 })
			r.edit(101, durable, flaky+4, witness.Ack, func(l *rec) { l.at += 4 * step })
		}, ofKey(RuleHeld, flaky+8, 101)},
		"two of a key swapped": {func(r *run) { r.shift(101, quiet, 4*step); r.shift(101, quiet+4, -4*step) },
			ofKey(RuleOrder, quiet, 101)},
	})
}

// shift moves all that a process did with a durable event.
func (r *run) shift(pid, n int, by time.Duration) {
	for _, k := range []witness.Kind{witness.Begin, witness.End, witness.Ack} {
		r.edit(pid, durable, n, k, func(l *rec) { l.at += by })
	}
}

// Order per key says nothing about events of two keys.
func TestOtherKeysMayPass(t *testing.T) {
	r := failingRun()
	r.swap(101, durable, quiet) // with the next but one, of another key
	mustBe(t, r.judge(), Kept)
	r.ev.Expect[2].Keyed = false
	v := r.judge()
	if want := violation("order per publisher", RuleOrder, quiet, durable, "billing", 101); !slices.Equal(named(v), []string{want}) {
		t.Errorf("without a key: got %v, want %s", first(named(v)), want)
	}
}

// After its letter was redriven an event does not hold its key from before.
func TestWhatWasGivenUpHoldsNoKey(t *testing.T) {
	r := failingRun()
	r.forget(112, durable, poison)
	r.line(101, when(100), witness.Closed, "") // it has not gone
	r.handle(101, durable, poison, "billing", redrive+time.Second, 1)
	r.scripts[101].recs = slices.DeleteFunc(r.scripts[101].recs, func(l rec) bool { return l.kind == witness.Closed })
	r.line(101, when(100), witness.Closed, "")
	mustBe(t, r.judge(), Kept)
}

// cutRun: 102 is asked to go while it works on an event, and does not wait for it.
// The event is handed back, named, and handled by the next generation.
func cutRun() *run {
	r := failingRun()
	r.plant(held, witness.Slow)
	r.ev.WantFates = append(r.ev.WantFates, witness.Slow)
	r.forget(102, durable, held, witness.Ack)
	r.edit(102, durable, held, witness.End, func(l *rec) { l.at, l.fields[4] = when(2.35), "context canceled" })
	r.line(102, when(2.36), witness.Left, durable, id(held), witness.LeftBack)
	r.handle(112, durable, held, "billing", when(2.376), 2)
	r.ev.Deploys[0].Cut = true
	r.ev.Exits[1].Code = 1
	return r
}

func TestADrainThatNamesWhatItCutIsKept(t *testing.T) {
	for name, change := range map[string]func(*run){
		"a handler that its context ended": func(*run) {},
		"a handler that went on":           func(r *run) { r.forget(102, durable, held, witness.End) },
		"an event that was not begun": func(r *run) {
			r.forget(102, durable, 227)
			r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
			r.handle(112, durable, 227, "billing", when(2.386), 2)
		},
		"one that two workers have handed back": func(r *run) {
			r.forget(102, durable, 227)
			for _, pid := range []int{102, 101} {
				r.line(pid, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
			}
			r.handle(112, durable, 227, "billing", when(2.386), 3)
		},
		"one whose acknowledgement was not confirmed, and that came again": func(r *run) {
			r.forget(102, durable, 227, witness.Ack)
			r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftUnsure)
			r.handle(112, durable, 227, "billing", when(2.386), 2)
		},
		"one whose acknowledgement was not confirmed, and got through": func(r *run) {
			r.forget(102, durable, 227, witness.Ack)
			r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftUnsure)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := cutRun()
			change(r)
			v := r.judge()
			mustBe(t, v, Kept)
			want := "1 processes named "
			if strings.Contains(name, "two workers") {
				want = "2 processes named "
			}
			if got := row(t, v, "receipts of drains").Note; !strings.HasPrefix(got, want) {
				t.Error(got)
			}
		})
	}
}

func TestEachBrokenReceiptIsNamed(t *testing.T) {
	receipt := func(n int, group string, pid int) string {
		return violation("receipts of drains", RuleReceipt, n, durable, group, pid)
	}
	exit := violation("evidence", RuleProcess, 0, "", "", 102)
	judgeRuns(t, cutRun, map[string]wanted{
		"named, and not delivered again": {func(r *run) {
			r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
		}, []string{receipt(227, "", 102)}},
		"named by two, and delivered again once": {func(r *run) {
			r.forget(102, durable, 227)
			for _, pid := range []int{102, 101} {
				r.line(pid, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
			}
			r.handle(112, durable, 227, "billing", when(2.386), 2)
		}, []string{receipt(227, "", 101), receipt(227, "", 102)}},
		"delivered again, and not named": {func(r *run) {
			r.forget(102, durable, held, witness.Left)
			r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
			r.handle(112, durable, 227, "billing", when(2.386), 2)
		}, []string{receipt(held, "billing", 112)}},
		"delivered again twice, and named once": {func(r *run) {
			r.handle(113, durable, held, "billing", when(5), 3)
		}, []string{violation("durable, kill -9", RuleDoubled, held, durable, "billing", 113)}},
		"delivered to two groups again, and named for one": {func(r *run) {
			r.forget(auditPID, durable, held)
			r.handle(102, durable, held, "audit", published(held)+time.Millisecond, 1)
			r.handle(112, durable, held, "audit", when(2.376), 2)
		}, []string{receipt(held, "", 102)}},
		"an exit status that says something was left, and no receipt": {func(r *run) {
			r.forget(102, durable, held)
			r.handle(102, durable, held, "billing", published(held)+time.Millisecond, 1)
			r.forget(112, durable, held)
			r.ev.Deploys[0].Cut, r.ev.WantFates = false, nil
		}, []string{exit}},
	})
}

// deadlyRun: an event ends three processes, and is given up.
func deadlyRun() *run {
	r := failingRun()
	r.plant(deadly, witness.Deadly)
	r.ev.WantFates = append(r.ev.WantFates, witness.Deadly)
	r.forget(worker(deadly), durable, deadly)
	r.ev.Phases = slices.Insert(r.ev.Phases, 4, Phase{"deadly event", Crashes, when(6.4)})
	for i := range 3 {
		r.crash(crashed+i, published(deadly)+time.Millisecond+time.Duration(i)*100*time.Millisecond, i+1)
	}
	r.giveUp(deadly)
	r.handle(112, durable, deadly, "billing", redrive+time.Second, 1)
	return r
}

// crash is the life of one process that the deadly event ends.
func (r *run) crash(pid int, at Mono, attempt int) {
	r.open(pid, "subscriber", "billing", "2")
	r.scripts[pid].recs[0].at = at - 50*time.Millisecond
	r.line(pid, at, witness.Begin, durable, id(deadly), durable, "billing", fmt.Sprint(attempt))
	r.ev.Crashes = append(r.ev.Crashes, Kill{PID: pid, Sent: at, Noticed: at + 20*time.Millisecond, InHand: 1})
	r.ev.Exits = append(r.ev.Exits, Exit{PID: pid, At: at + 20*time.Millisecond, Code: witness.DeadlyStatus})
}

func TestAnEventThatKillsIsJudged(t *testing.T) {
	r := deadlyRun()
	v := r.judge()
	mustBe(t, v, Kept)
	if x := row(t, v, "durable, deadly event"); x.Redelivered != 2 {
		t.Errorf("%+v", *x)
	}
	if note := row(t, v, "evidence").Note; !strings.Contains(note, "3 processes killed by an event") {
		t.Error(note)
	}
	letter := func(rule string) string {
		return violation("dead letters = what was planted", rule, deadly, durable, "billing", 0)
	}
	judgeRuns(t, deadlyRun, map[string]wanted{
		"without a letter": {func(r *run) { r.dropLetter(deadly) }, []string{letter(RuleNoLetter)}},
		"beyond the bound": {func(r *run) { r.lim.Begins = 2 }, []string{letter(RuleLetter)}},
		"in a process that was not seen to die": {func(r *run) { r.ev.Crashes = r.ev.Crashes[1:] }, []string{
			violation("durable, deadly event", RuleUnfinished, deadly, durable, "billing", crashed),
			violation("durable, deadly event", RuleDoubled, deadly, durable, "billing", crashed+1),
			violation("ledger complete", RuleLedger, 0, "", "", crashed),
		}},
	})
}

func judgeRuns(t *testing.T, sound func() *run, cases map[string]wanted) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := sound()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Broken)
			want := slices.SortedFunc(slices.Values(c.want), cmp.Compare[string])
			if got := named(v); !slices.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", first(got), want)
			}
		})
	}
}

// A run that planted something and met nothing of it proves nothing.
func TestAFailureThatMissedIsVoid(t *testing.T) {
	for name, c := range map[string]struct {
		sound  func() *run
		damage func(*run)
		why    string
	}{
		"nothing flaky": {failingRun, func(r *run) {
			r.plant(flaky, "")
			r.forget(101, durable, flaky)
			r.handle(101, durable, flaky, "billing", published(flaky)+time.Millisecond, 1)
		}, "no handler met a flaky event"},
		"nothing redriven": {failingRun, func(r *run) {
			r.ev.Redrive = nil
			r.forget(112, durable, poison)
			r.forget(112, durable, panicky)
		}, "2 dead letters were not redriven"},
		"a drain that had nothing to cut":   {cutRun, func(r *run) { r.forget(102, durable, held, witness.Left) }, "no drain had to hand anything back"},
		"a worker that another thing ended": {deadlyRun, func(r *run) { r.ev.Exits[len(r.ev.Exits)-1].Code = 2 }, "a deadly event has ended pid"},
		"a long handler that was too short": {failingRun, func(r *run) { r.long(5 * time.Second) }, "no handler met a long event"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.sound()
			c.damage(r)
			v := r.judge()
			if why := strings.Join(v.Void, "\n"); !strings.Contains(why, c.why) {
				t.Errorf("%s: void because of %q, want %q", v.Result, why, c.why)
			}
		})
	}
}

// long lets one handler take its time, under an ack wait of five seconds. It is the
// last of its key in its process.
func (r *run) long(takes time.Duration) {
	const n = 997
	r.plant(n, witness.Long)
	r.ev.WantFates = append(r.ev.WantFates, witness.Long)
	r.ev.End.AckWait = ms(5 * time.Second)
	r.edit(worker(n), durable, n, witness.End, func(l *rec) { l.at += takes - time.Millisecond })
	r.edit(worker(n), durable, n, witness.Ack, func(l *rec) { l.at += takes - time.Millisecond })
}

func TestALongHandlerIsNotDeliveredAgain(t *testing.T) {
	const n = 997
	r := failingRun()
	r.long(7 * time.Second)
	mustBe(t, r.judge(), Kept)
	r.handle(113, durable, n, "billing", published(n)+6*time.Second, 2)
	v := r.judge()
	if want := violation("durable, steady", RuleDoubled, n, durable, "billing", 113); !slices.Equal(named(v), []string{want}) {
		t.Errorf("got %v, want %s", first(named(v)), want)
	}
}

// What is published while no worker is there, or to one that dies before it begins
// anything of that publisher, is forgiven live, and only then.
func TestNobodyThere(t *testing.T) {
	const n = 900
	lost := []string{violation("live, steady", RuleLost, n, live, "billing", 0)}
	r := soundRun()
	r.forget(worker(n), live, n)
	if got := named(r.judge()); !slices.Equal(got, lost) {
		t.Fatalf("got %v, want %v", first(got), lost)
	}
	for name, c := range map[string]struct {
		damage func(*run)
		kept   bool
	}{
		"no worker":         {func(r *run) { r.ev.Away = []Span{{published(n - 2), published(n + 2)}} }, true},
		"no worker earlier": {func(r *run) { r.ev.Away = []Span{{published(n - 20), published(n - 10)}} }, false},
		"no worker later":   {func(r *run) { r.ev.Away = []Span{{published(n + 10), published(n + 20)}} }, false},
		"died in its hands": {func(r *run) { r.crash(crashed, published(n), 1) }, true},
		"died earlier":      {func(r *run) { r.crash(crashed, published(n-10), 1) }, false},
		"opened later":      {func(r *run) { r.crash(crashed, published(n+10), 1) }, false},
		"of another program": {func(r *run) {
			r.crash(crashed, published(n), 1)
			r.scripts[crashed].recs[0].fields[2] = "audit"
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := deadlyRun()
			r.forget(worker(n), live, n)
			c.damage(r)
			got := named(r.judge())
			if c.kept != !slices.Contains(got, lost[0]) {
				t.Errorf("forgiven: %v, want %v: %v", !c.kept, c.kept, first(got))
			}
		})
	}
}

func TestCrashesAndCutsHaveABudget(t *testing.T) {
	for kind, sound := range map[Kind]func() *run{Crashes: deadlyRun, Cuts: cutRun} {
		r := sound()
		if kind == Cuts {
			r.ev.Phases = slices.Insert(r.ev.Phases, 2, Phase{"cut drain", Cuts, when(2.35)})
		}
		r.lim.Redeliveries = map[Kind]int{Crashes: 1, Cuts: 1}
		mustBe(t, r.judge(), Kept)
		r.lim.Redeliveries = map[Kind]int{}
		v := r.judge()
		if want := violation("durable, "+string(kind), RuleBudget, 0, "", "", 0); !slices.Equal(named(v), []string{want}) {
			t.Errorf("got %v, want %s", first(named(v)), want)
		}
	}
}
