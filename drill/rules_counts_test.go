package drill

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

const countsRow, deploysRow = "counts of receipts = the ledger's", "deploys end as they must"

// reported is the sound run, deployed by tidings deploy: what its workers told, and
// what it printed.
func reported() *run {
	r := soundRun()
	tell := func(pids ...int) (subs []sdnotify.SubscriptionReport) {
		for _, x := range r.ev.Expect {
			if x.Group != "billing" {
				continue
			}
			s := sdnotify.SubscriptionReport{Pattern: x.Pattern, Group: x.Group, Durable: x.Durable}
			for n := 1; n <= events; n++ {
				if slices.Contains(pids, worker(n)) {
					s.Received, s.Handled = s.Received+1, s.Handled+1
				}
			}
			if x.Durable {
				s.Acked = s.Handled
			}
			subs = append(subs, s)
		}
		return subs
	}
	for _, pid := range []int{101, 102} {
		r.ev.Reports = append(r.ev.Reports, Told{pid, sdnotify.Report{Final: true, Subscriptions: tell(pid)}})
	}
	var gaps []supervisor.GapReceipt
	for _, x := range r.ev.Expect {
		gaps = append(gaps, supervisor.GapReceipt{Pattern: x.Pattern, Group: x.Group, Gap: activity.Slot})
	}
	few := tell(deadPID, 112)
	for i := range few {
		few[i].Received, few[i].Handled, few[i].Acked = 3, 2, min(few[i].Acked, 2) // so far
	}
	r.ev.Releases = []Release{{Name: "good", Start: when(2), Begun: when(2.01), Gone: when(2.4), End: when(2.6), Old: []int{101, 102}, New: []int{deadPID, 112},
		Receipt: &supervisor.Receipt{State: supervisor.DeployCommitted, Gaps: gaps, Generations: []supervisor.GenerationReceipt{
			{Generation: 1, Subscriptions: tell(101, 102), Workers: []supervisor.MemberReceipt{{PID: 101, Ended: "exit status 0", Counted: true}, {PID: 102, Ended: "exit status 0", Counted: true}}},
			{Generation: 2, Subscriptions: few, Workers: []supervisor.MemberReceipt{{PID: deadPID}, {PID: 112}}},
		}}}}
	r.ev.Starts = []Start{{PID: 112, Is: "good", Want: "good"}}
	return r
}

func TestWhatIsReportedAsItWasIsKept(t *testing.T) {
	v := reported().judge()
	mustBe(t, v, Kept)
	if note := row(t, v, countsRow).Note; note != "2 last reports of workers" {
		t.Errorf("note: %q", note)
	}
}

// A handler that returns after its event was handed back: its journal has it as
// handled, and the bus as left.
func TestWhatIsHandledTooLateIsLeft(t *testing.T) {
	r := reported()
	r.forget(102, durable, 227, witness.Ack)
	r.line(102, when(2.36), witness.Left, durable, id(227), witness.LeftBack)
	r.handle(112, durable, 227, "billing", when(2.386), 2)
	left := []sdnotify.LeftReport{{Pattern: durable, Group: "billing", IDs: []string{"the bus's"}}}
	r.ev.Reports[1].Report.Left = left
	r.ev.Releases[0].Receipt.Generations[0].Workers[1].Left = left
	for _, subs := range [][]sdnotify.SubscriptionReport{r.ev.Reports[1].Report.Subscriptions, r.ev.Releases[0].Receipt.Generations[0].Subscriptions} {
		for i := range subs {
			if s := &subs[i]; s.Durable {
				s.Handled, s.Acked, s.Left = s.Handled-1, s.Acked-1, 1
			}
		}
	}
	mustBe(t, r.judge(), Kept)
}

func TestEachCountThatDiffersIsNamed(t *testing.T) {
	told := func(r *run) *sdnotify.Report { return &r.ev.Reports[0].Report }
	receipt := func(r *run) *supervisor.Receipt { return r.ev.Releases[0].Receipt }
	sum := func(r *run, generation, i int) *sdnotify.SubscriptionReport {
		return &receipt(r).Generations[generation].Subscriptions[i]
	}
	of := func(rule, group string, pid int) []string {
		return []string{violation(countsRow, rule, 0, "", group, pid)}
	}
	deploy := func(pid int) []string { return []string{violation(deploysRow, RuleDeploy, 0, "", "", pid)} }
	for name, c := range map[string]wanted{
		"a worker that reports one handled too many": {func(r *run) { s := &told(r).Subscriptions[0]; s.Handled++; s.Received++ }, of(RuleCounts, "billing", 101)},
		"a worker that reports one handled too few":  {func(r *run) { s := &told(r).Subscriptions[1]; s.Handled--; s.Left++ }, of(RuleCounts, "billing", 101)},
		"a worker that reports one ack too few":      {func(r *run) { told(r).Subscriptions[1].Acked-- }, of(RuleCounts, "billing", 101)},
		"a worker that reports a failure":            {func(r *run) { told(r).Subscriptions[0].Failed++ }, of(RuleCounts, "billing", 101)},
		"a worker that reports a redelivery":         {func(r *run) { told(r).Subscriptions[1].Redelivered++ }, of(RuleCounts, "billing", 101)},
		"a worker without a subscription that it had": {func(r *run) { told(r).Subscriptions = told(r).Subscriptions[1:] },
			append(of(RuleCounts, "billing", 101), of(RuleCounts, "billing", 101)...)},
		"a reception without an outcome":                   {func(r *run) { told(r).Subscriptions[0].Received++ }, of(RuleCounts, "billing", 101)},
		"an event handed back that the drain did not name": {func(r *run) { told(r).Left = []sdnotify.LeftReport{{Pattern: durable, IDs: []string{"x"}}} }, of(RuleCounts, "", 101)},
		"a receipt whose old generation has one too many":  {func(r *run) { s := sum(r, 0, 0); s.Handled++; s.Received++ }, of(RuleCounts, "billing", 102)},
		"a receipt whose old generation has an ack more":   {func(r *run) { sum(r, 0, 1).Acked++ }, of(RuleCounts, "billing", 102)},
		"a receipt ahead of its new generation":            {func(r *run) { sum(r, 1, 0).Handled = 999 }, of(RuleCounts, "billing", 112)},
		"a receipt without a worker": {func(r *run) {
			g := &receipt(r).Generations[1]
			g.Workers = g.Workers[:1]
		}, of(RuleCounts, "", 112)},
		"a receipt with a loss that is none":   {func(r *run) { receipt(r).Lost = 1 }, of(RuleCounts, "", 0)},
		"a receipt with too long a gap":        {func(r *run) { receipt(r).Gaps[0].Gap = 2 * activity.Slot }, of(RuleGap, "billing", 0)},
		"a receipt without a gap":              {func(r *run) { receipt(r).Gaps = receipt(r).Gaps[1:] }, of(RuleGap, "billing", 0)},
		"a deploy that ended with 5":           {func(r *run) { r.ev.Releases[0].Exit = exitLost }, deploy(0)},
		"a deploy without a receipt":           {func(r *run) { r.ev.Releases[0].Receipt = nil }, deploy(0)},
		"a deploy that says it was taken back": {func(r *run) { receipt(r).State = supervisor.DeployRolledBack }, deploy(0)},
		"a worker of another release":          {func(r *run) { r.ev.Starts[0].Is = "bad" }, deploy(112)},
		"somebody unaccounted for":             {func(r *run) { receipt(r).Unaccounted = []string{"worker 101 of generation 1: signal: killed"} }, deploy(0)},
		"a killed one that is accounted for": {func(r *run) {
			r.ev.Releases[0].End = when(4.5)
			r.ev.Kills[0].Sent = when(4)
		}, deploy(deadPID)},
		"old workers asked to go by a deploy that was taken back": {func(r *run) {
			d := &r.ev.Releases[0]
			d.Want, d.Exit, d.Receipt.State = exitRolledBack, exitRolledBack, supervisor.DeployRolledBack
		}, append(deploy(101), deploy(102)...)},
	} {
		t.Run(name, func(t *testing.T) {
			r := reported()
			c.damage(r)
			v := r.judge()
			mustBe(t, v, Broken)
			if got := named(v); !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", first(got), c.want)
			}
		})
	}
}

// A live event that was lost during the deploy is one in the receipt, too.
func TestAReceiptMustKnowOfALoss(t *testing.T) {
	r := reported()
	r.forget(101, live, 210)
	r.ev.Reports, r.ev.Releases[0].Receipt.Generations[0].Workers = r.ev.Reports[1:], []supervisor.MemberReceipt{{PID: 102}, {PID: 101}}
	lost := violation("live, deploy", RuleLost, 210, live, "billing", 0)
	if worker(210) != 101 {
		t.Fatalf("%d has it", worker(210))
	}
	silent := violation(countsRow, RuleCounts, 0, "", "", 0)
	if got := named(r.judge()); !slices.Contains(got, lost) || !slices.Contains(got, silent) {
		t.Errorf("%v, want %q and %q", got, lost, silent)
	}
	r.ev.Releases[0].Receipt.Lost = 1
	if got := named(r.judge()); !slices.Contains(got, lost) || slices.Contains(got, silent) {
		t.Errorf("%v, want %q and not %q", got, lost, silent)
	}
}

// What fails in a version that refuses is forgiven to its processes, in its group, if
// it was taken back, and to nobody else.
func TestARefusalIsForgivenToTheVersionThatRefuses(t *testing.T) {
	const n = 300 // handled by 111, published after the deploy
	refusal := func() *run {
		r := reported()
		r.ev.Reports = nil
		r.edit(worker(n), durable, n, witness.End, func(l *rec) { l.fields[4] = "refused" })
		r.forget(worker(n), durable, n, witness.Ack)
		r.handle(112, durable, n, "billing", published(n)+50*time.Millisecond, 2)
		r.ev.Releases[0] = Release{Name: "bad", Start: when(2), End: when(3.5), Old: []int{112}, New: []int{worker(n)}, Refuses: "billing",
			Want: exitRolledBack, Exit: exitRolledBack, Receipt: &supervisor.Receipt{State: supervisor.DeployRolledBack, Gaps: r.ev.Releases[0].Receipt.Gaps,
				Ready: &time.Time{}, Generations: []supervisor.GenerationReceipt{{Workers: []supervisor.MemberReceipt{{PID: worker(n)}, {PID: 112}}}}}}
		return r
	}
	if worker(n) != deadPID {
		t.Fatalf("%d has it", worker(n))
	}
	v := refusal().judge()
	mustBe(t, v, Kept)
	if got := row(t, v, "durable, deploy").Retried; got != 1 {
		t.Errorf("%d were retried", got)
	}
	failed := violation("durable, deploy", RuleFailed, n, durable, "billing", deadPID)
	for name, damage := range map[string]func(*Release){
		"another process": func(d *Release) { d.New = []int{113} },
		"another group":   func(d *Release) { d.Refuses = "audit" },
		"not taken back":  func(d *Release) { d.Want, d.Exit, d.Receipt.State = 0, 0, supervisor.DeployCommitted },
	} {
		r := refusal()
		damage(&r.ev.Releases[0])
		if got := named(r.judge()); !slices.Contains(got, failed) {
			t.Errorf("%s: %v, want %s", name, first(got), failed)
		}
	}
	r := refusal()
	r.ev.Releases[0].Refuses, r.ev.Releases[0].New = "audit", nil
	if v := r.judge(); !strings.Contains(strings.Join(v.Void, "\n"), "no handler of audit failed") {
		t.Errorf("void because of %q", v.Void)
	}
}

// Wherever on their ways events were received, the gap between receptions lies in
// what judgeLongestGaps allows.
func TestTheGapLiesWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const from, to = time.Second, 2 * time.Second
		var ways []way
		var line activity.Timeline
		var at time.Duration = from - 50*time.Millisecond
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			at += time.Duration(rapid.IntRange(0, 80).Draw(t, "pause")) * time.Millisecond
			w := way{at, at + time.Duration(rapid.IntRange(0, 60).Draw(t, "way"))*time.Millisecond}
			ways = append(ways, w)
			got := w.from + time.Duration(rapid.IntRange(0, int((w.to-w.from)/time.Millisecond)).Draw(t, "received"))*time.Millisecond
			if err := line.Add(activity.SlotOf(int64(got)), "80"); err != nil {
				t.Fatal(err)
			}
		}
		gap, _ := line.LongestGap(activity.SlotOf(int64(from)), activity.SlotOf(int64(to)))
		least, most := longestEmpty(ways, from, to), longestWithout(ways, from-activity.Slot, to+activity.Slot)
		if gap < least-2*activity.Slot || gap > most {
			t.Fatalf("a gap of %v, between %v and %v, with %v", gap, least, most, ways)
		}
		if most-least > 4*60*time.Millisecond+4*activity.Slot {
			t.Fatalf("between %v and %v is anything", least, most)
		}
	})
}
