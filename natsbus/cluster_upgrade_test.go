package natsbus_test

import (
	"fmt"
	"maps"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

// Node by node, as docs/cluster.md says: each is stopped by TERM under load, and started
// again, the next when all copies are there. What was accepted is handled, and nothing
// twice unless it is said to be delivered again.
func TestAClusterIsUpgradedNodeByNode(t *testing.T) {
	s := ship(t, asShipped)
	var tills []*till
	for i := range 3 {
		a := s.join(t, s.url(i), adapter.Config{Instance: fmt.Sprint("till", i), Durable: []string{"order.>"}})
		tills = append(tills, opens(fmt.Sprint("till", i), a, adapter.Durable, "order.placed", 4*time.Millisecond))
	}
	c := newClerk()
	subscribe(t, s.join(t, s.url(), adapter.Config{App: "billing"}), adapter.Spec{Pattern: "order.placed", Group: "billing", Durable: true, Deliver: c.take})
	js := jsClient(t, s.raw(t))
	copies := whole(t, js, 3)
	total := func() (n int64) {
		for _, p := range tills {
			n += p.accepted.Load()
		}
		return n
	}
	for _, n := range s.nodes {
		before, leader := total(), copies.Leader
		testkit.Until(t, 5*patience, func() bool { return total() > before+200 })
		var took time.Duration
		began := time.Now()
		n.signal(syscall.SIGTERM)
		stopped := time.Since(began)
		watch := stall(total, &took)
		testkit.Until(t, 5*patience, watch.Ended)
		t.Logf("%s ended in %v, the leader was %s: nothing was accepted for %v after that", n.name, stopped.Round(time.Millisecond), leader, took.Round(time.Millisecond))
		n.start()
		copies = whole(t, js, 3)
	}
	accepted, possible := map[string]bool{}, uint64(0)
	for _, p := range tills {
		maps.Copy(accepted, p.closes(t))
		possible += p.a.Stats().Possible
	}
	testkit.Until(t, 5*patience, func() bool { return c.count() >= len(accepted) })
	lost, doubled, reported := c.judge(accepted)
	t.Logf("%d accepted: %d lost, %d doubled, %d handled again and said so, longest gap between two handled %v", len(accepted), len(lost), len(doubled), len(reported), c.longest())
	if len(lost) > 0 || len(doubled) > int(possible) {
		t.Errorf("lost %v; doubled %v", some(lost), some(doubled))
	}
}

// Two of three are away: nothing is stored, all is spooled, and live events flow between
// clients of the one that is left. When the others are back, all is stored and handled.
func TestAClusterWithoutAQuorum(t *testing.T) {
	s := ship(t, asShipped)
	a := s.join(t, s.url(0), adapter.Config{Instance: "till", Durable: []string{"order.>"}, SpoolDir: t.TempDir()})
	b := s.join(t, s.url(0), adapter.Config{App: "billing"})
	orders, carts := newClerk(), newClerk()
	subscribe(t, b, adapter.Spec{Pattern: "order.placed", Group: "billing", Durable: true, Deliver: orders.take})
	subscribe(t, b, adapter.Spec{Pattern: "cart.*", Group: "billing", Deliver: carts.take})
	js := jsClient(t, s.raw(t))
	whole(t, js, 3)
	publish(t, a, adapter.Durable, "before", "order.placed")
	s.nodes[1].kill()
	s.nodes[2].kill()
	accepted := map[string]bool{"before": true}
	for i := range 20 {
		id := fmt.Sprint("meanwhile", i)
		publish(t, a, adapter.Durable, id, "order.placed")
		accepted[id] = true
	}
	if n := a.Stats().Spooled; n == 0 {
		t.Error("nothing is in the spool")
	}
	live := opens("cart", a, adapter.Live, "cart.seen", time.Millisecond)
	testkit.Until(t, patience, func() bool { return carts.count() > 100 })
	live.closes(t)
	for _, n := range s.nodes[1:] {
		n.start()
	}
	testkit.Until(t, 5*patience, func() bool { return a.Stats().Spooled == 0 && orders.count() >= len(accepted) })
	if lost, doubled, _ := orders.judge(accepted); len(lost)+len(doubled) > 0 {
		t.Errorf("lost %v, doubled %v", some(lost), some(doubled))
	}
}
