package natsbus_test

import (
	"bytes"
	"errors"
	"strconv"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// A reload makes the limit less, of which the server tells nobody: what is too large
// then costs the connection, which comes back, and is the error of its own caller.
func TestMaxPayloadIsLessAfterAReload(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) { o.MaxPayload = roomy })
	a, log := openLogged(t, srv.URL())
	_, got := acking(t, a)
	flows(t, a, got, "before")
	srv.Change(func(o *server.Options) { o.MaxPayload = tight })
	const n = 20
	errs := make([]error, n)
	natsbus.Held(a, n, n, func(i int) {
		errs[i] = a.Publish(within(t), order(strconv.Itoa(i), fits+i/(n-1)*large), adapter.Durable)
	})
	for i, err := range errs {
		if i < n-1 && err != nil || i == n-1 && !namesLimit(err) {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if !log.has("connection lost") {
		t.Error("the reload went unnoticed: this proves nothing")
	}
	if err := async(t.Context(), a, order("refused", large), func(error) {}); !namesLimit(err) {
		t.Errorf("after that: %v", err)
	}
	flows(t, a, got, "after")
	srv.Change(func(o *server.Options) { o.MaxPayload = fits })
	if err := a.Publish(within(t), order("live", 2000), adapter.Live); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { return a.Stats().Disconnects == 2 && a.Stats().Connected })
	if s := a.Stats(); s.InDoubt != 1 {
		t.Errorf("%d live events are in doubt; want 1", s.InDoubt)
	}
}

// An event that looks like the server's last words is one all the same.
func TestEventsThatLookLikeAViolation(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{})
	got := make(chan adapter.Delivery, 10)
	subscribe(t, a, adapter.Spec{Pattern: "order.>", Deliver: func(d adapter.Delivery) { got <- d }})
	js := jsClient(t, srv.URL())
	words := []byte("-ERR 'Maximum Payload Violation'")
	for range 5 {
		// It ends what is read, until something else comes.
		for _, data := range [][]byte{words, append([]byte("x"), words...), append([]byte("next"), words[1:]...)} {
			if err := errors.Join(js.Conn().Publish("order.placed", data), js.Conn().Flush()); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if d := receive(t, got); !bytes.Contains(d.Data, words[1:]) {
				t.Errorf("got %q", d.Data)
			}
		}
	}
	if s := a.Stats(); s.Disconnects != 0 {
		t.Errorf("%d connections were lost", s.Disconnects)
	}
}
