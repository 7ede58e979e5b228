package drill

import (
	"cmp"
	"slices"
	"time"

	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/supervisor"
)

// A way is when an event was on its way to a subscription: from its intent to the
// begin of its handler. Somewhere in between a worker received it, which is what
// receipts measure gaps between.
type way struct{ from, to Mono }

// judgeLongestGaps compares the receipt's longest gap in receptions with the ledger's
// in begins. They are not the same: between reception and begin an event waits for
// the one before it, on a busy machine for long. No figure bounds that, but the
// ledger does: the longest time in which no event was on its way had no reception, and
// the longest time in which no event had the whole of its way is the longest that can
// have had none. The gap lies between these two, give or take the two slots of
// activity that are not told apart at its ends.
func (j *judge) judgeLongestGaps(d *Release) {
	for _, x := range j.ev.Expect {
		certain, possible := j.ways(x, d.End)
		// What is certain to be in the deploy's window for the one, and to hold it for the
		// other.
		least := longestEmpty(possible, d.Begun, d.Gone)
		most := longestWithout(certain, d.Start-activity.Slot, d.End+activity.Slot)
		i := slices.IndexFunc(d.Receipt.Gaps, func(g supervisor.GapReceipt) bool { return g.Pattern == x.Pattern && g.Group == x.Group })
		s := subscriptionKey{x.Pattern, x.Group}
		if i < 0 {
			if slices.ContainsFunc(certain, func(w way) bool { return w.from >= d.Begun && w.to <= d.Gone }) {
				j.miscounted(0, s, RuleGap, "the receipt of %q has none, as if nothing had come", d.Name)
			}
			continue
		}
		if gap := d.Receipt.Gaps[i].Gap; gap < least-2*activity.Slot || gap > most {
			j.miscounted(0, s, RuleGap, "the receipt of %q says %v, the ledger no less than %v and no more than %v", d.Name, gap, round(ms(least)), round(ms(most)))
		}
	}
}

// ways are those that surely ended in a reception that the master heard of, and those
// that may have: a process that was killed before the end of the deploy has not told
// of its last, and what is redelivered is on its way again.
func (j *judge) ways(x Expectation, until Mono) (certain, possible []way) {
	for k, hs := range j.got {
		p := j.pubs[k.eventKey]
		if p == nil || k.topic != x.Topic || k.pattern != x.Pattern || k.group != x.Group {
			continue
		}
		for i, h := range hs {
			w := way{p.intent, h.begin}
			if i > 0 {
				w.from = hs[i-1].begin
			}
			if j.redriven(h) {
				w.from = max(w.from, j.ev.Redrive.At)
			}
			possible = append(possible, w)
		}
		if k, dead := j.killed[hs[0].rep]; !dead || k.Sent > until {
			certain = append(certain, way{p.intent, hs[0].begin})
		}
	}
	byFrom := func(a, b way) int { return cmp.Compare(a.from, b.from) }
	slices.SortFunc(certain, byFrom)
	slices.SortFunc(possible, byFrom)
	return certain, possible
}

// longestEmpty is the longest time between two in which nothing was on its way.
func longestEmpty(ways []way, from, to Mono) (longest time.Duration) {
	end := from
	for _, w := range ways {
		if w.from >= to {
			break
		}
		longest = max(longest, w.from-end)
		end = max(end, w.to)
	}
	return max(longest, to-end)
}

// longestWithout is the longest time between two that holds no whole way.
func longestWithout(ways []way, from, to Mono) (longest time.Duration) {
	end := to // of the way that ends first of those that begin later
	for _, w := range slices.Backward(ways) {
		if w.from < from {
			break
		}
		longest = max(longest, end-w.from)
		end = min(end, w.to)
	}
	return max(longest, end-from)
}
