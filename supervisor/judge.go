//go:build unix

package supervisor

import (
	"fmt"
	"math"
	"time"
)

// A tally is what the workers of one side have come to in a subscription.
type tally struct {
	taken   float64 // events handled, and attempts that failed
	handled uint64
	failed  uint64 // attempts, and events that were dropped
	inHand  uint64
	hung    int
	lag     uint64
	seen    bool // lag is known
}

// tallies are by subscription, of the members that are new, or that are not.
func (d *deploy) tallies(isNew bool) map[subscription]tally {
	all := map[subscription]tally{}
	for _, k := range d.members {
		for i := range k.report.Subscriptions {
			s := &k.report.Subscriptions[i]
			t := all[keyOf(s)]
			if s.LagKnown && k.ended == "" {
				t.lag, t.seen = max(t.lag, s.Lag), true
			}
			if k.isNew == isNew {
				t.taken += float64(s.Handled + s.Failed)
				t.handled += s.Handled
				t.failed += s.Failed + s.Dropped
				if k.ended == "" {
					t.inHand += uint64(s.Queued) + s.Running
					t.hung += s.Hung
				}
			}
			all[keyOf(s)] = t
		}
	}
	return all
}

// judge says what speaks against the new workers; over, if this is the last look.
//
// Handlers fail for reasons of their own, too, a service that is away say: then the
// old workers' handlers fail as well. So the new ones may have as many errors as
// the old ones' rate lets expect, and three standard deviations of that number,
// which chance exceeds once in a thousand times; and MaxErrors.
func (d *deploy) judge(now time.Time, over bool) string {
	before := d.tallies(false)
	lags := ""
	for s, t := range d.tallies(true) {
		if t.hung > 0 {
			return fmt.Sprintf("%s: %d handlers hang", s, t.hung)
		}
		rate := 0.0
		if b := before[s]; b.taken > 0 {
			rate = float64(b.failed) / b.taken
		}
		expected := t.taken * rate
		if limit := float64(d.MaxErrors) + expected + 3*math.Sqrt(expected); float64(t.failed) > limit {
			return fmt.Sprintf("%s: %d errors in %.0f attempts, of which the old workers' rate explains %.0f, and %d more are allowed",
				s, t.failed, t.taken, math.Floor(expected+3*math.Sqrt(expected)), d.MaxErrors)
		}
		if over && t.handled == 0 && t.inHand > 0 && before[s].handled > 0 {
			return fmt.Sprintf("%s: took %d events and finished none", s, t.inHand)
		}
		if !t.seen {
			continue
		}
		if base, known := d.lag[s]; !known {
			d.lag[s] = t.lag
		} else if t.lag > base+d.MaxLag {
			lags = fmt.Sprintf("%s: %d events wait, where %d waited at first, and %d more are allowed", s, t.lag, base, d.MaxLag)
		}
	}
	return d.judgeLag(now, over, lags)
}

// judgeLag: a group may lag for a moment, when workers start say. It must not for a
// third of the probation, nor at its end.
func (d *deploy) judgeLag(now time.Time, over bool, lags string) string {
	switch {
	case lags == "":
		d.lagging = time.Time{}
	case d.lagging.IsZero():
		d.lagging = now
	}
	if lags != "" && (over || now.Sub(d.lagging) >= d.Probation/3) {
		return lags
	}
	return ""
}
