package tidings_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

func TestSnapshotCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		fail := func(_ context.Context, e tidings.Event) error {
			switch n := e.Payload().(int); {
			case n%10 == 0:
				return fmt.Errorf("event %d", n)
			case n%10 == 1:
				panic(n)
			}
			return nil
		}
		slow := func(ctx context.Context, e tidings.Event) error { time.Sleep(time.Millisecond); return fail(ctx, e) }
		placed := tidings.NewTopic[int]("snap.typed").On(b)
		subscribe(t, b, "snap.*", fail, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "snap.*", slow, &tidings.SubscribeOptions{Queue: 4096})
		subscribe(t, b, "snap.*", slow, &tidings.SubscribeOptions{Workers: 4, Group: "g", Queue: 4096})
		subscribe(t, b, "snap.*", fail, &tidings.SubscribeOptions{Inline: true, Filter: func(name string) bool { return name == "snap.typed" }})
		for i := range 1000 {
			name := "snap.a"
			if i%2 == 0 {
				name = "snap.b"
			}
			_ = b.Publish(ctx, name, i)
			_ = placed.Publish(ctx, i)
			if i == 500 { // views are made anew on the way
				subscribe(t, b, "snap.a", func(context.Context, tidings.Event) error { return nil }, nil).Stop()
			}
		}
		_ = b.Publish(ctx, "nobody.here", 1)
		synctest.Wait()
		before := b.Debugger().Snapshot()
		time.Sleep(time.Hour)
		synctest.Wait()
		snap := b.Debugger().Snapshot()
		for i, want := range []uint64{2000, 2000, 2000, 1000} {
			s := snap.Subscriptions[i]
			if s.Handled != want*8/10 || s.Failed != want*2/10 || s.Panicked != want/10 || s.Dropped != 0 || s.Queued != 0 || s.Running != 0 {
				t.Errorf("subscription %d: %+v", i, s)
			}
			if !strings.Contains(s.Place, "bus_test.go:") {
				t.Errorf("it was made at %q", s.Place)
			}
			if s.Latency.Samples == 0 || (!s.Inline && s.Latency.P50 < time.Millisecond) || s.Latency.Max < s.Latency.P99 || s.Latency.P99 < s.Latency.P50 {
				t.Errorf("latency of %d: %+v", i, s.Latency)
			}
		}
		if s := before.Subscriptions[1]; s.Running != 1 || s.Queued == 0 || s.Queued+int(s.Running)+int(s.Handled)+int(s.Failed) != 2000 {
			t.Errorf("on the way: %+v", s)
		}
		if s := before.Subscriptions[2]; s.Running != 4 {
			t.Errorf("4 workers: %d run", s.Running)
		}
		topics := map[string]tidings.TopicInfo{}
		for _, topic := range snap.Topics {
			topics[topic.Name] = topic
		}
		for name, want := range map[string]tidings.TopicInfo{
			"snap.a":      {Name: "snap.a", Events: 500, Listeners: 4, Publish: "local"},
			"snap.typed":  {Name: "snap.typed", Events: 1000, Listeners: 4, Publish: "local"},
			"nobody.here": {Name: "nobody.here", Publish: "local"},
		} {
			if topics[name] != want {
				t.Errorf("topic %+v, want %+v", topics[name], want)
			}
		}
	})
}

func TestWatchSeesWithoutBeingSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		watching, cancel := context.WithCancel(ctx)
		events, missed, err := b.Debugger().Watch(watching, "w.>", func(e tidings.Event) bool { return e.Payload() != 3 })
		if err != nil {
			t.Fatal(err)
		}
		if b.Listening("w.x") || len(b.Debugger().Snapshot().Subscriptions) != 0 {
			t.Error("who watches is seen")
		}
		if _, err := b.Request(ctx, "w.x", nil); err == nil {
			t.Error("who watches was asked")
		}
		for i := range 5 {
			_ = b.Publish(ctx, "w.x", i)
		}
		_ = b.Instrument(ctx, "w.y", 5, func(context.Context) error { return nil })
		_ = b.Publish(ctx, "other", 6)
		cancel()
		var got []any
		for e := range events {
			got = append(got, e.Payload())
		}
		if want := []any{nil, 0, 1, 2, 4, 5}; !slices.Equal(got[len(got)-5:], want[1:]) || missed() != 0 {
			t.Errorf("saw %v, missed %d", got, missed())
		}

		events, missed, err = b.Debugger().Watch(ctx, ">", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1000 { // nobody reads: the publisher does not wait
			_ = b.Publish(ctx, "w.x", i)
		}
		drain(t, b)
		n := 0
		for range events {
			n++
		}
		if n == 0 || uint64(n)+missed() != 1000 {
			t.Errorf("saw %d and missed %d of 1000", n, missed())
		}
	})
}

func TestWatchSeesWhatTheTransportBrings(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, billing := process(t, url, "shop", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		handled := make(chan struct{}, 1)
		subscribe(t, billing, "cart.*", func(context.Context, tidings.Event) error { handled <- struct{}{}; return nil }, nil)
		watching, cancel := context.WithCancel(ctx)
		events, _, err := billing.Debugger().Watch(watching, ">", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := shop.Publish(deadline(t), "cart.seen", 1); err != nil {
			t.Fatal(err)
		}
		<-handled
		cancel()
		n := 0
		for e := range events {
			if n++; e.Topic() != "cart.seen" {
				t.Errorf("saw %v", e)
			}
		}
		if n != 1 {
			t.Errorf("saw %d events", n)
		}
	})
}

func TestIdleWaitsForWhatHandlersPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		if err := b.Debugger().Idle(ctx); err != nil {
			t.Errorf("a new bus: %v", err)
		}
		var inside error
		left := 5
		subscribe(t, b, "x", func(ctx context.Context, e tidings.Event) error {
			time.Sleep(time.Second)
			inside = b.Debugger().Idle(context.Background())
			if left--; left > 0 {
				return b.Publish(ctx, "y", nil)
			}
			return nil
		}, nil)
		subscribe(t, b, "y", func(ctx context.Context, e tidings.Event) error { return b.Publish(ctx, "x", nil) }, nil)
		_ = b.Publish(ctx, "x", nil)
		short, cancel := context.WithTimeout(ctx, time.Second/2)
		defer cancel()
		if err := b.Debugger().Idle(short); err != context.DeadlineExceeded {
			t.Errorf("while it works: %v", err)
		}
		if err := b.Debugger().Idle(ctx); err != nil || left != 0 {
			t.Errorf("%v with %d left", err, left)
		}
		if inside != nil {
			t.Errorf("inside a handler: %v", inside)
		}
	})
}

// Nor does it overlook a subscription that is being drained, or was in vain.
func TestIdleWaitsForSubscriptionsThatEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		for name, end := range map[string]func(*tidings.Subscription){
			"Stop":  func(s *tidings.Subscription) { s.Stop() },
			"Drain": func(s *tidings.Subscription) { _ = s.Drain(ctx) },
			"Drain with a deadline": func(s *tidings.Subscription) {
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				_ = s.Drain(short)
			},
		} {
			var handled atomic.Int32
			s := subscribe(t, b, "x", func(context.Context, tidings.Event) error {
				time.Sleep(time.Second)
				handled.Add(1)
				return nil
			}, nil)
			_ = b.Publish(ctx, "x", nil)
			synctest.Wait()
			go end(s)
			time.Sleep(10 * time.Millisecond)
			if err := b.Debugger().Idle(ctx); err != nil || handled.Load() != 1 {
				t.Errorf("%s: %v, %d handled", name, err, handled.Load())
			}
		}
	})
}
