package tidings_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// A durable event whose handler fails comes again with back-off until it is
// handled: many more failures than any broker's default for deliveries burn
// nothing. RetryAfter sets the wait, Permanent ends it.
func TestDurableRetries(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "shop", tidings.Options{})
		type attempt struct {
			n  int
			at time.Time
		}
		var mu sync.Mutex
		seen := map[string][]attempt{}
		done := make(chan string, 10)
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			mu.Lock()
			seen[e.Topic()] = append(seen[e.Topic()], attempt{len(seen[e.Topic()]) + 1, time.Now()})
			n := len(seen[e.Topic()])
			mu.Unlock()
			switch {
			case e.Topic() == "order.stubborn" && n <= 20:
				return errors.New("not yet")
			case e.Topic() == "order.later" && n == 1:
				return tidings.RetryAfter(errors.New("busy"), 400*time.Millisecond)
			case e.Topic() == "order.never":
				done <- e.Topic()
				return tidings.Permanent(errors.New("no such order"))
			case e.Topic() == "order.panics" && n == 1:
				panic("first time")
			}
			done <- e.Topic()
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond}})
		topics := []string{"order.stubborn", "order.later", "order.never", "order.panics", "order.plain"}
		for _, topic := range topics {
			if err := b.Publish(ctx, topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		var ended []string
		for range topics {
			select {
			case topic := <-done:
				ended = append(ended, topic)
			case <-time.After(20 * time.Second):
				t.Fatalf("only %v ended", ended)
			}
		}
		slices.Sort(ended)
		if want := slices.Sorted(slices.Values(topics)); !slices.Equal(ended, want) {
			t.Errorf("ended: %v, want each of %v once", ended, want)
		}
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for topic, want := range map[string]int{"order.stubborn": 21, "order.later": 2, "order.never": 1, "order.panics": 2, "order.plain": 1} {
			if got := len(seen[topic]); got != want {
				t.Errorf("%s was attempted %d times, want %d", topic, got, want)
			}
		}
		if later := seen["order.later"]; len(later) == 2 && later[1].at.Sub(later[0].at) < 390*time.Millisecond {
			t.Errorf("RetryAfter(400ms) was retried after %v", later[1].at.Sub(later[0].at))
		}
	})
}

// The error of a durable batch is that of all its events: all come again, and what
// was in no failed batch does not.
func TestDurableBatchIsRetriedWhole(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		const n, bad = 40, 17
		b := process(t, url, "shop", tidings.Options{})
		for i := range n {
			if err := b.Publish(ctx, "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		handled, failed := map[int]int{}, map[int]int{}
		attempts := map[int]int{}
		done := make(chan struct{})
		o := &tidings.SubscribeOptions{Durable: true, BatchSize: 8, BatchWait: 20 * time.Millisecond}
		_, err := b.SubscribeBatch(deadline(t), "order.*", func(_ context.Context, events []tidings.Event) error {
			mu.Lock()
			defer mu.Unlock()
			var nums []int
			for _, e := range events {
				var k int
				if err := e.Decode(&k); err != nil {
					t.Error(err)
				}
				attempts[k] = e.Attempt()
				nums = append(nums, k)
			}
			if slices.Contains(nums, bad) && len(failed) == 0 {
				for _, k := range nums {
					failed[k]++
				}
				return errors.New("one of them is bad")
			}
			for _, k := range nums {
				if handled[k]++; len(handled) == n {
					select {
					case <-done:
					default:
						close(done)
					}
				}
			}
			return nil
		}, o)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("not all were handled")
		}
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range n {
			if handled[i] != 1 {
				t.Errorf("event %d was handled %d times", i, handled[i])
			}
			if want := 1 + failed[i]; attempts[i] != want {
				t.Errorf("event %d was handled at attempt %d, want %d", i, attempts[i], want)
			}
		}
		if len(failed) < 2 {
			t.Errorf("the failed batch had %d events: the test shows nothing", len(failed))
		}
	})
}
