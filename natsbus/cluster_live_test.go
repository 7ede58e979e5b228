package natsbus_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// The node is killed that the publisher of live events is connected to, and the one that
// a member of the group is connected to. What is lost is counted: in doubt by the
// publisher, or missing by those who should have got it.
func TestLiveEventsWhoseNodeIsKilled(t *testing.T) {
	for _, whose := range []string{"publisher", "subscriber"} {
		t.Run(whose, func(t *testing.T) {
			natsbus.SetMarkEvery(t, markEvery)
			s := ship(t, asShipped)
			shop := s.join(t, s.url(0), adapter.Config{Instance: "till"})
			c := newClerk()
			member := func(node int) adapter.Subscription {
				a := s.join(t, s.url(node), adapter.Config{App: "billing", Instance: fmt.Sprint(node)})
				return subscribe(t, a, adapter.Spec{Pattern: "cart.*", Group: "billing", Deliver: c.take})
			}
			subs := []adapter.Subscription{member(1), member(2)}
			p := opens("till", shop, adapter.Live, "cart.seen", time.Millisecond)
			testkit.Until(t, patience, func() bool { return c.count() > 200 })
			first := p.soFar() // whose node may not have known of the subscriptions yet
			testkit.Until(t, patience, func() bool { return natsbus.Counted(subs[0]) > 0 && natsbus.Counted(subs[1]) > 0 })
			n := map[string]int{"publisher": 0, "subscriber": 1}[whose]
			s.nodes[n].kill()
			before := c.count()
			testkit.Until(t, 2*patience, func() bool { return c.count() > before+500 })
			s.nodes[n].start()
			before = c.count()
			testkit.Until(t, 2*patience, func() bool { return c.count() > before+500 })
			accepted := p.closes(t)
			maps.DeleteFunc(accepted, func(id string, _ bool) bool { return first[id] })
			// Counting began with the first mark, before the kill.
			counted := func(lost int) bool { return missing(subs[0]) == uint64(lost) && missing(subs[1]) == uint64(lost) }
			var lost, doubled []string
			testkit.Until(t, 2*patience, func() bool {
				lost, doubled, _ = c.judge(accepted)
				return quiet(c) || counted(len(lost)) && len(lost) < len(accepted)
			})
			settled()
			lost, doubled, _ = c.judge(accepted)
			t.Logf("%d published, %d lost, %d in doubt, %d and %d missing", len(accepted), len(lost), shop.Stats().InDoubt, missing(subs[0]), missing(subs[1]))
			if !counted(len(lost)) {
				t.Errorf("%d are lost: %v", len(lost), some(lost))
			}
			if len(doubled) > 0 {
				t.Errorf("doubled: %v", some(doubled))
			}
		})
	}
}
