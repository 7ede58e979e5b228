package natsbus_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// A process that starts just after the death of a node waits for the elections that it
// needs, and then publishes and subscribes. How long that takes is printed.
func TestAProcessStartsAfterTheDeathOfANode(t *testing.T) {
	s := ship(t, asShipped)
	js, elected := jsClient(t, s.raw(t)), s.follow(t)
	// begins opens, takes an event of its own, and drains.
	begins := func(id string) (opened, handled time.Duration) {
		began := time.Now()
		a := s.join(t, s.url(), adapter.Config{Instance: id, Durable: []string{"order.>"}})
		opened = time.Since(began)
		got := make(chan adapter.Delivery, 10)
		subscribe(t, a, adapter.Spec{Pattern: "order.placed", Group: "shop", Durable: true, Deliver: func(d adapter.Delivery) {
			d.Settle.Ack(func(error) {})
			got <- d
		}})
		publish(t, a, adapter.Durable, id, "order.placed")
		for receive(t, got).ID != id { // what was acknowledged before may come again
		}
		handled = time.Since(began)
		if err := a.Drain(within(t)); err != nil {
			t.Error(err)
		}
		return opened, handled
	}
	begins("first")
	for round := range 3 * *clusterKills {
		leader, meta, n := whole(t, js, 3).Leader, s.nodes[s.metaLeader(t)].name, s.nodes[round%3]
		n.kill()
		killed := time.Now()
		opened, handled := begins(fmt.Sprint(n.name, "-", round))
		t.Logf("%s killed, which led the stream: %v, and the cluster: %v. Open took %v, and until an event was handled %v; stream and consumer were without a leader for %v",
			n.name, leader == n.name, meta == n.name, opened.Round(time.Millisecond), handled.Round(time.Millisecond), elected.after(killed, "shop").Round(time.Millisecond))
		n.start()
	}
}
