package natsbus_test

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// A subscription is served again soon after the broker is back, not when some
// request that died with the old connection has timed out after seconds.
func TestDurableFlowsSoonAfterARestart(t *testing.T) {
	srv := testkit.Server(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	a, err := natsbus.Open(ctx, srv.URL(), adapter.Config{App: "app", Instance: "one", Durable: []string{"order.>"},
		Logger: slog.New(slog.DiscardHandler), OnError: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	got := make(chan string, 1)
	sub, err := a.Subscribe(ctx, adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: func(d adapter.Delivery) {
		d.Settle.Ack(func(error) {})
		got <- d.ID
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		srv.Restart()
		// The bound is the limit of the request that used to be waited for.
		soon, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
		if err := a.Publish(soon, &adapter.Message{ID: strconv.Itoa(i), Topic: "order.placed", Source: "//app/one", Time: time.Now()}, adapter.Durable); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-soon.Done():
			t.Errorf("restart %d: nothing in time", i)
			<-got
		}
		cancel()
	}
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
}
