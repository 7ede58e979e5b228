package tidings_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

// What a connection lost is seen by who should have got it.
func TestMissingEventsAreShown(t *testing.T) {
	srv := testkit.Server(t)
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	shop, billing := process(t, proxy.URL(), "shop", tidings.Options{}), process(t, srv.URL(), "billing", tidings.Options{})
	transport := func() adapter.Stats { return shop.Debugger().Snapshot().Transport }
	got := make(chan struct{}, 100)
	subscribe(t, billing, "cart.*", func(context.Context, tidings.Event) error { got <- struct{}{}; return nil }, nil)
	publish := func(n int) {
		for i := range n {
			if err := shop.Publish(deadline(t), "cart.seen", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(3)
	for range 3 {
		<-got
	}
	proxy.Lose(testkit.ToServer, true)
	publish(5)
	testkit.Until(t, 20*time.Second, func() bool { return transport().Buffered == 0 })
	proxy.Cut()
	testkit.Until(t, 20*time.Second, func() bool { return transport().Disconnects > 0 })
	proxy.Mend()
	publish(1)
	<-got
	testkit.Until(t, 20*time.Second, func() bool { return billing.Debugger().Snapshot().Subscriptions[0].Missing == 5 })
	if n := transport().InDoubt; n < 5 {
		t.Errorf("the publisher has only %d in doubt", n)
	}
	drain(t, shop)
	drain(t, billing)
}
