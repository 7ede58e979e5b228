//go:build unix

package supervisor

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/sdnotify"
)

// The longest gap is that of all workers together, up to when those that go on have
// told; a subscription without events has none.
func TestGapsAreThoseOfAllWorkersTogether(t *testing.T) {
	t.Parallel()
	now := slotNow()
	begin := now - 300
	d := &deploy{from: begin, active: map[subscription]*activity.Timeline{}}
	tell := func(until int64, slots ...int64) {
		t.Helper()
		var m activity.Marks
		for _, s := range slots {
			m.Mark(begin + s)
		}
		r := sdnotify.Report{Subscriptions: []sdnotify.SubscriptionReport{{Pattern: "quiet"}, {Pattern: "order.*", Group: "billing", Durable: true}}}
		r.Subscriptions[1].ActiveFrom, r.Subscriptions[1].Active = m.Since(begin, now)
		d.members = append(d.members, &member{worker: &worker{toldAt: time.Now(), toldSlot: begin + until}})
		if err := d.observe(&r); err != nil {
			t.Fatal(err)
		}
	}
	tell(100, 0, 10, 20, 60) // 21 to 59 without the other
	tell(80, 30, 45, 75)
	// Without an end at 80 it were 225 slots long.
	if got := d.gaps(); len(got) != 1 || got[0] != (GapReceipt{"order.*", "billing", true, 140 * time.Millisecond}) {
		t.Errorf("gaps: %+v", got)
	}
	late := &worker{}
	late.told(&sdnotify.Report{Until: begin + 51}, time.Now()) // and heard 250 slots later
	d.members = []*member{{worker: late}}
	if got := d.gaps(); len(got) != 1 || got[0].Gap != 140*time.Millisecond {
		t.Errorf("gaps of what a report that was heard late does not tell: %+v", got)
	}
	if d.goneSlot = begin + 50; d.untold() {
		t.Error("it has told of that slot")
	}
	if d.goneSlot = begin + 51; !d.untold() {
		t.Error("it has not told of all of that slot")
	}
	bad := sdnotify.Report{Subscriptions: []sdnotify.SubscriptionReport{{Active: "no hex"}}}
	if d.observe(&bad) == nil {
		t.Error("what is no hexadecimal number was taken")
	}
}
