package natsbus_test

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

func TestLiveThere(t *testing.T) {
	b := testkit.Server(t)
	a, p := open(t, b.URL(), adapter.Config{Prefix: "dev"}), open(t, b.URL(), adapter.Config{Prefix: "dev"})
	got := make(chan adapter.Delivery, 1)
	sub := subscribe(t, a, adapter.Spec{Pattern: "order.>", Group: "billing", Deliver: func(d adapter.Delivery) { got <- d }})
	publish(t, p, adapter.Live, "1", "order.placed")
	if d := receive(t, got); d.ID != "1" || d.Topic != "order.placed" {
		t.Errorf("got %+v", d)
	}
	at := time.Now()
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	t.Log("close of a live subscription took", time.Since(at))
	if err := p.Drain(within(t)); err != nil {
		t.Error(err)
	}
}

func TestDurableThere(t *testing.T) {
	b := testkit.Server(t)
	a, p := open(t, b.URL(), adapter.Config{}), open(t, b.URL(), adapter.Config{Durable: []string{"order.>"}})
	publish(t, p, adapter.Durable, "1", "order.placed")
	got := make(chan adapter.Delivery, 1)
	at := time.Now()
	sub := subscribe(t, a, adapter.Spec{Pattern: "order.>", Group: "billing", Durable: true, Deliver: func(d adapter.Delivery) { got <- d }})
	t.Log("subscribe took", time.Since(at))
	at = time.Now()
	if err := sub.Ready(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Log("ready took", time.Since(at))
	d := receive(t, got)
	confirmed := make(chan error, 1)
	d.Settle.Ack(func(err error) { confirmed <- err })
	if err := <-confirmed; err != nil {
		t.Error(err)
	}
	at = time.Now()
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	t.Log("close of a durable subscription took", time.Since(at))
	at = time.Now()
	if err := p.Drain(within(t)); err != nil {
		t.Error(err)
	}
	t.Log("drain of the adapter took", time.Since(at))
}
