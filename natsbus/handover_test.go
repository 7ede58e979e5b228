package natsbus_test

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// Generations that hand over in good order handle each event once, and the
// broker counts one delivery of each.
func TestHandOverRedeliversNothing(t *testing.T) {
	srv := testkit.Server(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	open := func(app, instance string) adapter.Adapter {
		a, err := natsbus.Open(ctx, srv.URL(), adapter.Config{App: app, Instance: instance, Durable: []string{"order.>"},
			Logger: slog.New(slog.DiscardHandler), OnError: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	var mu sync.Mutex
	handled := map[string]int{}
	join := func(generation int) (adapter.Adapter, adapter.Subscription) {
		a := open("billing", strconv.Itoa(generation))
		sub, err := a.Subscribe(ctx, adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: func(d adapter.Delivery) {
			mu.Lock()
			handled[d.ID]++
			mu.Unlock()
			if d.Attempt != 1 {
				t.Errorf("event %s came to generation %d as delivery %d", d.ID, generation, d.Attempt)
			}
			d.Settle.Ack(func(error) {})
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := sub.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		return a, sub
	}
	leave := func(a adapter.Adapter, sub adapter.Subscription) {
		for _, err := range []error{sub.Drain(ctx), sub.Close(ctx), a.Drain(ctx)} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	a, sub := join(0)
	shop := open("shop", "one")
	stop, published := make(chan struct{}), 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ; published++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := shop.Publish(ctx, &adapter.Message{ID: strconv.Itoa(published), Topic: "order.placed", Source: "//shop/one"}, adapter.Durable); err != nil {
				t.Error(err)
			}
		}
	})
	for generation := range 12 {
		b, next := join(generation + 1)
		leave(a, sub)
		a, sub = b, next
	}
	close(stop)
	wg.Wait()
	testkit.Until(t, 20*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) == published
	})
	leave(a, sub)
	if err := shop.Drain(ctx); err != nil {
		t.Error(err)
	}
	for id, n := range handled {
		if n > 1 {
			t.Errorf("event %s was handled %d times", id, n)
		}
	}
}
