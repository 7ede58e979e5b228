//go:build unix

package supervisor

import (
	"cmp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/sdnotify"
)

// slotNow is the present slot of CLOCK_MONOTONIC, which workers count by.
func slotNow() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return activity.SlotOf(ts.Nano())
}

// observe notes when events came to a worker.
func (d *deploy) observe(r *sdnotify.Report) error {
	for i := range r.Subscriptions {
		s := &r.Subscriptions[i]
		t := d.active[keyOf(s)]
		if t == nil {
			t = &activity.Timeline{}
			d.active[keyOf(s)] = t
		}
		if err := t.Add(s.ActiveFrom, s.Active); err != nil {
			return err
		}
		t.Forget(d.from)
	}
	return nil
}

// untold reports whether a worker that goes on has not told of the time until the
// others were gone.
func (d *deploy) untold() bool {
	return slices.ContainsFunc(d.members, func(k *member) bool {
		return k.ended == "" && !k.toldAt.IsZero() && k.toldSlot < d.goneSlot
	})
}

// gaps are the longest of each subscription, up to when all that go on have told.
func (d *deploy) gaps() (gaps []GapReceipt) {
	to := slotNow()
	for _, k := range d.members {
		if k.ended == "" && !k.toldAt.IsZero() {
			to = min(to, k.toldSlot)
		}
	}
	for s, t := range d.active {
		gap, begins := t.LongestGap(d.from, to)
		if begins == d.from && gap > time.Duration(to-d.from)*activity.Slot {
			continue // there were no events at all
		}
		gaps = append(gaps, GapReceipt{Pattern: s.Pattern, Group: s.Group, Durable: s.Durable, Gap: gap})
	}
	slices.SortFunc(gaps, func(a, b GapReceipt) int {
		return cmp.Or(cmp.Compare(a.Pattern, b.Pattern), cmp.Compare(a.Group, b.Group))
	})
	return gaps
}
