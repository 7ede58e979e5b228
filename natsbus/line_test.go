package natsbus_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// held is a durable subscription with n events that wait to be settled.
func held(t *testing.T, n int) (a adapter.Adapter, sub adapter.Subscription, events []adapter.Delivery) {
	t.Helper()
	b := testkit.Server(t)
	a = open(t, b.URL(), adapter.Config{Durable: []string{"order.>"}})
	for range n {
		publish(t, a, adapter.Durable, string(rune('A'+len(events)/26%26))+string(rune('a'+len(events)%26)), "order.placed")
		events = append(events, adapter.Delivery{})
	}
	got := make(chan adapter.Delivery, n)
	sub = subscribe(t, a, adapter.Spec{Pattern: "order.>", Group: "billing", Durable: true, MaxInFlight: n,
		Deliver: func(d adapter.Delivery) { got <- d }})
	for i := range events {
		events[i] = receive(t, got)
	}
	return a, sub, events
}

// Every acknowledgement is confirmed, and most of them by the answer to another.
func TestAcknowledgementsShareAnswers(t *testing.T) {
	const n = 500
	a, sub, events := held(t, n)
	before, confirmed := natsbus.Received(a), make(chan error, n)
	for _, d := range events {
		d.Settle.Ack(func(err error) { confirmed <- err })
	}
	for range events {
		if err := <-confirmed; err != nil {
			t.Fatal(err)
		}
	}
	if answers := natsbus.Received(a) - before; answers > n/2 {
		t.Errorf("%d messages came for %d acknowledgements", answers, n)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// An answer that came by one connection says nothing of what was written to
// another: such acknowledgements are repeated before they count as confirmed.
func TestAnswersAreOfOneConnection(t *testing.T) {
	for name, after := range map[string]int{"asked for what was written before": 0, "and for more": 2} {
		t.Run(name, func(t *testing.T) {
			a, sub, events := held(t, 2+after)
			written := acksWritten(t, a)
			confirmed := make(chan error, len(events))
			ack := func(events []adapter.Delivery) {
				for _, d := range events {
					d.Settle.Ack(func(err error) { confirmed <- err })
				}
			}
			natsbus.Dialed(sub, func() { ack(events[:2]) }) // one is asked about, one waits for that answer
			ack(events[2:])
			for range events {
				if err := <-confirmed; err != nil {
					t.Fatal(err)
				}
			}
			if err := sub.Close(within(t)); err != nil {
				t.Error(err)
			}
			if n := written(); n <= len(events) {
				t.Errorf("%d acknowledgements were written for %d events: none was repeated", n, len(events))
			}
		})
	}
}

// A server that is slow to answer is heard all the same: else, asked again and
// again, it would never be.
func TestALateAnswerConfirms(t *testing.T) {
	const n = 10
	a, sub, events := held(t, n)
	written := acksWritten(t, a)
	confirmed := make(chan error, n)
	natsbus.Late(sub, func() {
		for _, d := range events {
			d.Settle.Ack(func(err error) { confirmed <- err })
		}
	})
	if err := <-confirmed; err != nil { // the only one that the first question covers
		t.Fatal(err)
	}
	got := 0
	testkit.Until(t, patience, func() bool { got += written(); return got > n }) // the last may still be on their way
	if got != n+1 {
		t.Errorf("%d acknowledgements were written until the first was confirmed, want one each and one again", got)
	}
	for range n - 1 {
		if err := <-confirmed; err != nil {
			t.Fatal(err)
		}
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// acksWritten counts what reaches the server.
func acksWritten(t *testing.T, a adapter.Adapter) (count func() int) {
	t.Helper()
	nc, err := nats.Connect(a.Stats().URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	got := make(chan *nats.Msg, 1000)
	if _, err := nc.ChanSubscribe("$JS.ACK.>", got); err != nil {
		t.Fatal(err)
	}
	flush := func() {
		if err := nc.Flush(); err != nil {
			t.Error(err)
		}
	}
	flush()
	return func() (n int) {
		for flush(); len(got) > 0; {
			if m := <-got; string(m.Data) == "+ACK" && m.Reply == "" { // with one it is a question
				n++
			}
		}
		return n
	}
}
