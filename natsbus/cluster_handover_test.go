package natsbus_test

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

var clusterHandOvers = flag.Int("cluster-handovers", 9, "how often generations hand over in a cluster")

// Generations on different nodes hand over, a durable group and a live one, with
// publishers on every node: none is lost, and none is handled twice.
func TestAHandOverFromNodeToNode(t *testing.T) {
	s := ship(t, asShipped)
	var durable, live []*till
	for i := range 3 {
		a := s.join(t, s.url(i), adapter.Config{Instance: fmt.Sprint("till", i), Durable: []string{"order.>"}})
		durable = append(durable, opens(fmt.Sprint("order", i), a, adapter.Durable, "order.placed", 4*time.Millisecond))
		live = append(live, opens(fmt.Sprint("cart", i), a, adapter.Live, "cart.seen", time.Millisecond))
	}
	whole(t, jsClient(t, s.raw(t)), 3)
	orders, carts := newClerk(), newClerk()
	type generation struct {
		a    adapter.Adapter
		subs []adapter.Subscription
	}
	begin := func(n int) generation {
		a := s.join(t, s.url(n%3), adapter.Config{App: "billing", Instance: fmt.Sprint(n)})
		g := generation{a: a, subs: []adapter.Subscription{
			subscribe(t, a, adapter.Spec{Pattern: "order.*", Group: "billing", Durable: true, Deliver: orders.take}),
			subscribe(t, a, adapter.Spec{Pattern: "cart.*", Group: "billing", Deliver: carts.take}),
		}}
		for _, sub := range g.subs {
			if err := sub.Ready(within(t)); err != nil {
				t.Fatal(err)
			}
		}
		return g
	}
	end := func(g generation) {
		for _, sub := range g.subs {
			if err := sub.Drain(within(t)); err != nil {
				t.Error(err)
			}
		}
		for _, sub := range g.subs {
			if err := sub.Close(within(t)); err != nil {
				t.Error(err)
			}
		}
		if err := g.a.Drain(within(t)); err != nil {
			t.Error(err)
		}
	}
	now := begin(0)
	// What was published before each node knew of the first one is nobody's.
	testkit.Until(t, patience, func() bool {
		return orders.count() > 0 && !slices.ContainsFunc(live, func(p *till) bool { return !carts.hasOf(p) })
	})
	first := map[string]bool{}
	for _, p := range live {
		maps.Copy(first, p.soFar())
	}
	for n := range *clusterHandOvers {
		before, beforeToo := carts.count(), orders.count()
		next := begin(n + 1)
		end(now)
		now = next
		testkit.Until(t, 2*patience, func() bool { return carts.count() > before+200 && orders.count() > beforeToo+50 })
	}
	for _, kind := range []struct {
		name  string
		tills []*till
		clerk *clerk
	}{{"durable", durable, orders}, {"live", live, carts}} {
		accepted := map[string]bool{}
		for _, p := range kind.tills {
			maps.Copy(accepted, p.closes(t))
			if d := p.a.Stats().InDoubt; d > 0 {
				t.Errorf("%s: %d in doubt, and no connection was lost", p.name, d)
			}
		}
		if kind.name == "live" {
			maps.DeleteFunc(accepted, func(id string, _ bool) bool { return first[id] })
		}
		testkit.Until(t, 2*patience, func() bool {
			lost, _, _ := kind.clerk.judge(accepted)
			return len(lost) == 0 || kind.name == "live" && quiet(kind.clerk)
		})
		lost, doubled, again := kind.clerk.judge(accepted)
		t.Logf("%s: %d hand-overs, %d events: %d lost, %d doubled, %d handled again and said so, longest gap %v",
			kind.name, *clusterHandOvers, len(accepted), len(lost), len(doubled), len(again), kind.clerk.longest())
		if len(lost)+len(doubled)+len(again) > 0 {
			t.Errorf("%s: lost %v, doubled %v, again %v", kind.name, some(lost), some(doubled), some(again))
		}
	}
	end(now)
}

// quiet reports whether nothing has come for a while, so that nothing more will.
func quiet(c *clerk) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.last) > 5*time.Second
}
