package drill

import (
	"fmt"
	"slices"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// A tally is what a journal says of one subscription, in the terms of a report.
type tally struct {
	begun                               uint64 // receptions of which a handler began the event
	handled, failed, redelivered, acked uint64
	late                                uint64 // of handled, those that a drain had handed back by then
}

func (t *tally) add(o tally) {
	t.begun += o.begun
	t.handled += o.handled
	t.failed += o.failed
	t.redelivered += o.redelivered
	t.acked += o.acked
	t.late += o.late
}

type subscriptionKey struct{ pattern, group string }

// tallies count the lines of a journal up to a time.
func (j *judge) tallies(r *Reporter, until Mono) map[subscriptionKey]tally {
	all := map[subscriptionKey]tally{}
	failed := map[deliveryKey]bool{} // and waits in the process, as with a key
	for i := range r.Entries {
		e := &r.Entries[i]
		if e.At > until {
			break
		}
		s, k := subscriptionKey{e.Pattern, e.Group}, deliveryOf(e)
		t := all[s]
		switch e.Kind {
		case witness.Begin:
			if !failed[k] {
				t.begun++
			}
			if e.Attempt > 1 && !failed[k] {
				t.redelivered++
			}
			delete(failed, k)
		case witness.End:
			if e.Err == "" {
				t.handled++
				if left := j.left[r][eventKey{e.Topic, e.ID}]; left != nil && left.back > 0 {
					t.late++
				}
			} else {
				t.failed++
				failed[k] = j.keyed(*e)
			}
		case witness.Ack:
			t.acked++
		default:
			continue
		}
		all[s] = t
	}
	return all
}

// subscriptions are those that are expected, each once.
func (j *judge) subscriptions() (out []subscriptionKey) {
	for _, x := range j.ev.Expect {
		if s := (subscriptionKey{x.Pattern, x.Group}); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// reportOn is what a list of reports says of a subscription; nothing is zero.
func reportOn(all []sdnotify.SubscriptionReport, s subscriptionKey) sdnotify.SubscriptionReport {
	i := slices.IndexFunc(all, func(r sdnotify.SubscriptionReport) bool { return r.Pattern == s.pattern && r.Group == s.group })
	if i < 0 {
		return sdnotify.SubscriptionReport{}
	}
	return all[i]
}

// judgeReports holds the last report of each worker that drained against its journal.
func (j *judge) judgeReports() {
	exact := 0
	for _, told := range j.ev.Reports {
		r := j.reps[told.PID]
		if r == nil {
			continue // it ended before it had anything to do
		}
		exact++
		of := r.name()
		all := j.tallies(r, r.last)
		for _, s := range j.subscriptions() {
			j.judgeExact(told.PID, of, s, reportOn(told.Report.Subscriptions, s), all[s])
		}
		j.judgeLeft(r, told.Report.Left)
	}
	j.counts.Note = fmt.Sprintf("%d last reports of workers", exact)
}

func (j *judge) miscounted(pid int, s subscriptionKey, rule, format string, args ...any) {
	at := Mono(0)
	if gone, ok := j.exit(pid); ok {
		at = gone.At
	}
	j.broken(j.counts, at, Violation{Rule: rule, Pattern: s.pattern, Group: s.group, PID: pid, Text: fmt.Sprintf(format, args...)})
}

// judgeExact compares final counts. A handler that returns after its event was handed
// back is believed by the journal alone. What no handler began, as it was handed back or
// given up before, may have been delivered before, which no journal shows.
func (j *judge) judgeExact(pid int, of string, s subscriptionKey, r sdnotify.SubscriptionReport, t tally) {
	ended := r.Handled + r.GaveUp + r.Returned + r.Expired + r.Dropped + r.Left
	for _, c := range []struct {
		what         string
		is, from, to uint64
	}{
		{"handled", r.Handled, t.handled - t.late, t.handled},
		{"failed attempts", r.Failed, t.failed, t.failed},
		{"acknowledged", r.Acked, t.acked, t.acked},
		{"redelivered", r.Redelivered, t.redelivered, t.redelivered + r.Received - min(t.begun, r.Received)},
		{"received, and each has an outcome", r.Received, max(ended, t.begun), ended},
	} {
		if c.is < c.from || c.is > c.to {
			j.miscounted(pid, s, RuleCounts, "%s reports %d %s, the ledger has %d", of, c.is, c.what, c.from)
		}
	}
}

// judgeLeft: the ids that a report names are as many as the receipt of the drain in
// the journal does. They are other ids: the journal knows the publisher's.
func (j *judge) judgeLeft(r *Reporter, left []sdnotify.LeftReport) {
	var back, unsure, wantBack, wantUnsure int
	for _, l := range left {
		back, unsure = back+len(l.IDs), unsure+len(l.Unconfirmed)
	}
	for _, x := range j.left[r] {
		wantBack, wantUnsure = wantBack+x.back, wantUnsure+x.unsure
	}
	if back != wantBack || unsure != wantUnsure {
		j.miscounted(r.PID, subscriptionKey{}, RuleCounts, "%s reports %d events as handed back and %d as unconfirmed, its journal %d and %d", r.name(), back, unsure, wantBack, wantUnsure)
	}
}

// judgeReceipt holds the receipt of one deploy against the journals of the workers
// that it is about.
func (j *judge) judgeReceipt(d *Release) {
	pids := map[int]bool{}
	for _, g := range d.Receipt.Generations {
		for _, w := range g.Workers {
			pids[w.PID] = true
		}
		j.judgeGeneration(d, g)
	}
	for _, pid := range slices.Concat(d.Old, d.New) {
		if !pids[pid] {
			j.miscounted(pid, subscriptionKey{}, RuleCounts, "the receipt of %q does not know process %d", d.Name, pid)
		}
	}
	j.judgeLost(d)
	j.judgeLongestGaps(d)
}

// judgeGeneration: sums of workers that have all told their last counts are exact;
// others are from a moment before the command ended.
func (j *judge) judgeGeneration(d *Release, g supervisor.GenerationReceipt) {
	exact, pid := true, 0
	sums := map[subscriptionKey]tally{}
	for _, w := range g.Workers {
		r := j.reps[w.PID]
		if r == nil {
			continue // it never began
		}
		exact, pid = exact && w.Counted, w.PID
		until := d.End
		if w.Counted {
			until = r.last
			j.judgeLeft(r, w.Left)
		}
		for s, t := range j.tallies(r, until) {
			sum := sums[s]
			sum.add(t)
			sums[s] = sum
		}
	}
	of := fmt.Sprintf("the receipt of %q, of generation %d,", d.Name, g.Generation)
	for _, s := range j.subscriptions() {
		switch r, t := reportOn(g.Subscriptions, s), sums[s]; {
		case exact:
			j.judgeExact(pid, of, s, r, t)
		case r.Handled > t.handled || r.Failed > t.failed || r.Acked > t.acked:
			j.miscounted(pid, s, RuleCounts, "%s reports %d handled, %d failed, %d acknowledged; the ledger has no more than %d, %d, %d", of, r.Handled, r.Failed, r.Acked, t.handled, t.failed, t.acked)
		}
	}
}

// A loss is a live event that was not handled.
type loss struct {
	at   Mono // published
	kill bool // it went with a process that was killed
}

// judgeLost: the receipt says that live events were lost if and only if the ledger
// does. Of what went with a killed process it can know only that such a process is
// unaccounted for.
func (j *judge) judgeLost(d *Release) {
	lost, killed := 0, 0
	for _, l := range j.losses {
		switch {
		case l.at < d.Start || l.at > d.End:
		case l.kill:
			killed++
		default:
			lost++
		}
	}
	if (lost > 0) != (d.Receipt.Lost > 0) {
		j.miscounted(0, subscriptionKey{}, RuleCounts, "the receipt of %q says that %d events were lost, the ledger %d", d.Name, d.Receipt.Lost, lost)
	}
	if killed > 0 && len(d.Receipt.Unaccounted) == 0 {
		j.miscounted(0, subscriptionKey{}, RuleCounts, "%d events went with a killed process, and the receipt of %q has nobody unaccounted for", killed, d.Name)
	}
}
