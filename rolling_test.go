package tidings_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// Two versions of an app with other Workers, Key, Retry and ack wait run side by
// side for a while: each event is handled once, though each fails at first.
func TestAnotherVersionMayHaveOtherOptions(t *testing.T) {
	const n = 300
	url := testkit.Server(t).URL()
	shop := process(t, url, "shop", tidings.Options{})
	var mu sync.Mutex
	failed, handled := map[int]bool{}, map[int]int{}
	more := make(chan struct{}, 1)
	handler := func(_ context.Context, e tidings.Event) error {
		var k int
		if err := e.Decode(&k); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if !failed[k] {
			failed[k] = true
			return errors.New("not yet")
		}
		handled[k]++
		select {
		case more <- struct{}{}:
		default:
		}
		return nil
	}
	version := func(params string, o tidings.SubscribeOptions) *tidings.Bus {
		b := process(t, url+params, "billing", tidings.Options{})
		o.Durable = true
		subscribe(t, b, "order.*", handler, &o)
		if err := b.Ready(deadline(t)); err != nil {
			t.Fatal(err)
		}
		return b
	}
	send := func(from, to int) {
		for i := from; i < to; i++ {
			if err := shop.Publish(deadline(t), "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := version("?ack-wait=30s", tidings.SubscribeOptions{Retry: tidings.Retry{Backoff: 20 * time.Millisecond}})
	send(0, n/3)
	next := version("?ack-wait=4s", tidings.SubscribeOptions{Workers: 8, Key: func(e tidings.Event) string { return e.ID() },
		Retry: tidings.Retry{Attempts: 5, Backoff: 5 * time.Millisecond}})
	send(n/3, 2*n/3)
	if err := old.Drain(deadline(t)); err != nil {
		t.Error(err)
	}
	send(2*n/3, n)
	end := time.After(20 * time.Second)
	for done := 0; done < n; {
		select {
		case <-more:
		case <-end:
			t.Fatalf("%d of %d were handled", done, n)
		}
		mu.Lock()
		done = len(handled)
		mu.Unlock()
	}
	if err := errors.Join(next.Drain(deadline(t)), shop.Drain(deadline(t))); err != nil {
		t.Error(err)
	}
	for k, times := range handled {
		if times != 1 {
			t.Errorf("event %d was handled %d times", k, times)
		}
	}
}
