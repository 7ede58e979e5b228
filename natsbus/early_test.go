package natsbus_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

// A worker that is told to end while it subscribes closes what is half made.
func TestCloseWhileSubscribing(t *testing.T) {
	url := testkit.Server(t).URL()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	asked := make(chan *nats.Msg, 1000)
	if _, err := nc.ChanSubscribe("$JS.API.CONSUMER.>", asked); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for requests := range 12 { // of those that a subscription makes, close after that many
		a := open(t, url, orders)
		for len(asked) > 0 {
			<-asked
		}
		done := make(chan error, 1)
		go func() {
			_, err := a.Subscribe(within(t), durableSpec(func(adapter.Delivery) {}))
			done <- err
		}()
		for range requests {
			select {
			case <-asked:
			case err = <-done:
				done <- err
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil && !errors.Is(err, adapter.ErrClosed) && !errors.Is(err, nats.ErrConnectionClosed) {
			t.Errorf("after %d requests: %v", requests, err)
		}
	}
}
