package drill

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/drill/witness"
)

// A quiet run of any shape, with any losses and doubles planted in it, is held
// against exactly these. The rest of the rules stays silent.
func TestExactlyThePlantedLossesAndDoublesAreNamed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, total := randomRun(t)
		groups := []string{"billing", "audit"}
		topics := []string{live, durable}
		var want []string
		k := rapid.IntRange(0, 6).Draw(t, "planted")
		hit := map[string]bool{}
		for range k {
			n := rapid.IntRange(1, total).Draw(t, "n")
			topic := rapid.SampledFrom(topics).Draw(t, "topic")
			group := rapid.SampledFrom(groups).Draw(t, "group")
			key := topic + id(n) + group
			if hit[key] {
				continue
			}
			hit[key] = true
			promise := "live, steady"
			if topic == durable {
				promise = "durable, steady"
			}
			if rapid.Bool().Draw(t, "lose") {
				for pid := range r.scripts {
					r.forgetGroup(pid, topic, n, group)
				}
				want = append(want, violation(promise, RuleLost, n, topic, group, 0))
			} else {
				pid := rapid.SampledFrom(members[group]).Draw(t, "again")
				r.handle(pid, topic, n, group, when(20)+Mono(n)*step, rapid.IntRange(1, 3).Draw(t, "attempt"))
				want = append(want, violation(promise, RuleDoubled, n, topic, group, pid))
			}
		}
		slices.Sort(want)
		v := r.judge()
		if got := named(v); !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
		if (v.Result == Kept) != (len(want) == 0) {
			t.Fatalf("%s with %d planted; void %q", v.Result, len(want), v.Void)
		}
	})
}

// members are the processes of each group.
var members = map[string][]int{"billing": {101, 102, 103}, "audit": {auditPID, 202}}

// randomRun is sound: each event goes to one random member of each group, after a
// random time that leaves the order within a member as it is.
func randomRun(t *rapid.T) (r *run, total int) {
	r = &run{scripts: map[int]*script{}, lim: DefaultLimits()}
	r.lim.PerWorker = 1
	total = rapid.IntRange(1, 40).Draw(t, "events")
	r.open(shopPID, "publisher", "shop", "")
	for group, pids := range members {
		for _, pid := range pids {
			r.open(pid, "subscriber", group, "1")
		}
	}
	for n := 1; n <= total; n++ {
		for _, topic := range []string{live, durable} {
			r.line(shopPID, published(n), witness.Intent, topic, id(n), strconv.FormatInt(int64(published(n)), 10))
			r.line(shopPID, published(n)+time.Microsecond, witness.Accept, topic, id(n))
			for _, group := range []string{"audit", "billing"} {
				pid := rapid.SampledFrom(members[group]).Draw(t, fmt.Sprint("to ", group))
				way := time.Duration(rapid.IntRange(2, 9000).Draw(t, "way")) * time.Microsecond
				r.handle(pid, topic, n, group, published(n)+way, 1)
			}
		}
	}
	for pid := range r.scripts {
		r.line(pid, when(100), witness.Closed, "")
	}
	r.ev = Evidence{
		Phases: []Phase{{"all", Steady, when(0)}},
		End:    &EndState{Stored: uint64(total)},
		Finish: published(total),
	}
	for _, group := range []string{"audit", "billing"} {
		r.ev.Expect = append(r.ev.Expect, Expectation{Topic: live, Pattern: live, Group: group},
			Expectation{Topic: durable, Pattern: durable, Group: group, Durable: true})
	}
	return r, total
}

// forgetGroup is forget for the handlings of one group.
func (r *run) forgetGroup(pid int, topic string, n int, group string) {
	s := r.scripts[pid]
	s.recs = slices.DeleteFunc(s.recs, func(l rec) bool { return l.about(topic, n) && l.group() == group })
}
