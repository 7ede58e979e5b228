package natsbus_test

import (
	"context"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// What waits at the broker is known while a handler hangs and nothing is taken, also
// of what is published then, and in a process that gets nothing; and it falls to 0.
func TestLagIsKnownWhileNothingIsTaken(t *testing.T) {
	srv := testkit.Server(t)
	shop := bus(t, srv.URL(), "shop")
	const first, second = 1000, 500
	publishMany(t, shop, first)
	release := make(chan struct{})
	b := bus(t, srv.URL(), "billing")
	o := &tidings.SubscribeOptions{Durable: true, Queue: 16}
	if _, err := b.Subscribe(within(t), "order.*", func(context.Context, tidings.Event) error { <-release; return nil }, o); err != nil {
		t.Fatal(err)
	}
	at := func(b *tidings.Bus) tidings.SubscriptionInfo { return b.Debugger().Snapshot().Subscriptions[0] }
	comes := func(b *tidings.Bus, n uint64) {
		t.Helper()
		testkit.Until(t, patience, func() bool {
			i := at(b)
			return i.LagKnown && i.Lag == n-uint64(i.Queued)-i.Running
		})
	}
	comes(b, first)
	publishMany(t, shop, second)
	comes(b, first+second)
	held := at(b)
	idle := bus(t, srv.URL(), "billing")
	if _, err := idle.Subscribe(within(t), "order.*", func(context.Context, tidings.Event) error { <-release; return nil }, o); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { // it has taken some too
		i, j := at(b), at(idle)
		return j.LagKnown && i.Lag == j.Lag && j.Lag < held.Lag && i.Lag == first+second-uint64(i.Queued+j.Queued)-i.Running-j.Running
	})
	// While events come, each tells at once; looks are too far apart for that.
	began := time.Now()
	for range 12 {
		release <- struct{}{}
		testkit.Until(t, patience, func() bool {
			i, j := at(b), at(idle)
			return min(i.Lag, j.Lag) == first+second-uint64(i.Queued+j.Queued)-i.Running-j.Running-i.Handled-j.Handled
		})
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v to hear of 12 events", took)
	}
	close(release)
	for _, b := range []*tidings.Bus{b, idle} {
		testkit.Until(t, patience, func() bool { i := at(b); return i.LagKnown && i.Lag == 0 })
	}
	if err := b.Drain(within(t)); err != nil {
		t.Error(err)
	}
}

// What was heard too long ago is no lag: a broker that is gone says nothing.
func TestLagOfABrokerThatIsGone(t *testing.T) {
	natsbus.SetLagOld(t, 3*time.Second) // more than between two looks
	srv := testkit.Server(t)
	publishMany(t, bus(t, srv.URL(), "shop"), 10)
	b := bus(t, srv.URL(), "billing")
	if _, err := b.Subscribe(within(t), "order.*", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Durable: true}); err != nil {
		t.Fatal(err)
	}
	known := func() bool { return b.Debugger().Snapshot().Subscriptions[0].LagKnown }
	testkit.Until(t, patience, known)
	srv.Shutdown()
	testkit.Until(t, patience, func() bool { return !known() })
}
