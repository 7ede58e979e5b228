package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
)

// overTransports runs a test over the reference transport and over a real
// nats-server: what a bus means must not depend on which it is.
func overTransports(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("memory", func(t *testing.T) { test(t, "mem:"+t.Name()) })
	t.Run("nats", func(t *testing.T) { test(t, testkit.Server(t).URL()) })
}

// process is what would be one process: a bus of its own on the transport.
func process(t *testing.T, url, app string, o tidings.Options) *tidings.Bus {
	t.Helper()
	o.App = app
	if o.Routes == nil {
		o.Routes = []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}, {Pattern: ">", Class: tidings.Live}}
	}
	b := newBus(t, o)
	if err := b.Attach(deadline(t), url); err != nil {
		t.Fatal(err)
	}
	return b
}

func deadline(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(ctx, 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// tally counts who handled what.
type tally struct {
	mu   sync.Mutex
	got  map[string]int
	more chan struct{}
}

func newTally() *tally { return &tally{got: map[string]int{}, more: make(chan struct{}, 1)} }

func (c *tally) handler(name string) tidings.Handler {
	return func(_ context.Context, e tidings.Event) error {
		var n int
		if err := e.Decode(&n); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got[fmt.Sprint(name, " ", n)]++
		c.got[name]++
		select {
		case c.more <- struct{}{}:
		default:
		}
		return nil
	}
}

func (c *tally) count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got[name]
}

// until waits for a condition over the counts.
func (c *tally) until(t *testing.T, cond func() bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-c.more:
		case <-end:
			t.Fatal("waited in vain")
		}
	}
}

func TestOncePerAppBroadcastAndDurable(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		const n = 200
		shop, shop2 := process(t, url, "shop", tidings.Options{}), process(t, url, "shop", tidings.Options{})
		bill, bill2 := process(t, url, "billing", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		c := newTally()
		durable := &tidings.SubscribeOptions{Durable: true}
		all := &tidings.SubscribeOptions{Broadcast: true}
		subscribe(t, shop, "cart.*", c.handler("shop own"), nil)
		subscribe(t, shop, "cart.*", c.handler("shop twin"), nil)
		subscribe(t, shop2, "cart.*", c.handler("shop other"), nil)
		subscribe(t, bill, "cart.*", c.handler("billing live"), nil)
		subscribe(t, bill2, "cart.*", c.handler("billing live"), nil)
		subscribe(t, shop, "cart.>", c.handler("all shop"), all)
		subscribe(t, shop2, "cart.>", c.handler("all shop2"), all)
		subscribe(t, bill, "order.*", c.handler("billing durable"), durable)
		subscribe(t, bill2, "order.*", c.handler("billing durable"), durable)
		subscribe(t, shop, "order.>", c.handler("shop durable"), durable)
		subscribe(t, shop2, "order.*", c.handler("live copy"), nil)
		for i := range n {
			if err := shop.Publish(deadline(t), "cart.seen", i); err != nil {
				t.Fatal(err)
			}
			if err := shop.Publish(deadline(t), "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		names := []string{"shop own", "shop twin", "billing live", "all shop", "all shop2", "billing durable", "shop durable", "live copy"}
		c.until(t, func() bool {
			for _, name := range names {
				if c.count(name) < n {
					return false
				}
			}
			return true
		})
		for _, b := range []*tidings.Bus{shop, shop2, bill, bill2} {
			if err := b.Drain(deadline(t)); err != nil {
				t.Errorf("Drain: %v", err)
			}
		}
		for _, name := range names {
			for i := range n {
				if k := c.count(fmt.Sprint(name, " ", i)); k != 1 {
					t.Errorf("%s handled event %d %d times", name, i, k)
				}
			}
		}
		if k := c.count("shop other"); k != 0 {
			t.Errorf("another process of the publisher's app handled %d events that the publisher had taken", k)
		}
	})
}

func TestADurableEventIsRetriedUntilHandled(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", tidings.Options{})
		attempts, settled := make(chan int, 10), make(chan error, 10)
		subscribe(t, b, "tidings.settled", func(_ context.Context, e tidings.Event) error {
			settled <- e.Payload().(tidings.Settled).Err
			return nil
		}, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			attempts <- e.Attempt()
			if e.Attempt() < 3 {
				return errors.New("not yet")
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Backoff: 10 * time.Millisecond}})
		if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
			t.Fatal(err)
		}
		for want := 1; want <= 3; want++ {
			if got := <-attempts; got != want {
				t.Errorf("attempt %d, want %d", got, want)
			}
		}
		if err := <-settled; err != nil {
			t.Errorf("settled: %v", err)
		}
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		if len(attempts) != 0 || len(settled) != 0 {
			t.Error("handled or settled again")
		}
	})
}

// Generations come and go under load: nothing is lost and nothing doubled.
func TestHandOver(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		c := newTally()
		join := func() *tidings.Bus {
			b := process(t, url, "billing", tidings.Options{})
			subscribe(t, b, "cart.*", c.handler("live"), nil)
			subscribe(t, b, "order.*", c.handler("durable"), &tidings.SubscribeOptions{Durable: true})
			if err := b.Ready(deadline(t)); err != nil {
				t.Fatal(err)
			}
			return b
		}
		old := join()
		shop := process(t, url, "shop", tidings.Options{})
		stop, done := make(chan struct{}), make(chan int)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- i
					return
				default:
				}
				for _, topic := range []string{"cart.seen", "order.placed"} {
					if err := shop.Publish(ctx, topic, i); err != nil {
						t.Errorf("%s %d: %v", topic, i, err)
					}
				}
			}
		})
		for range 4 {
			next := join()
			if err := old.Drain(deadline(t)); err != nil {
				t.Errorf("Drain: %v", err)
			}
			old = next
		}
		close(stop)
		n := <-done
		wg.Wait()
		c.until(t, func() bool { return c.count("live") >= n && c.count("durable") >= n })
		if err := errors.Join(shop.Drain(deadline(t)), old.Drain(deadline(t))); err != nil {
			t.Error(err)
		}
		for i := range n {
			for _, kind := range []string{"live", "durable"} {
				if k := c.count(fmt.Sprint(kind, " ", i)); k != 1 {
					t.Errorf("%s event %d of %d was handled %d times", kind, i, n, k)
				}
			}
		}
	})
}

func TestAttach(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		c := newTally()
		late := newBus(t, tidings.Options{App: "late"})
		subscribe(t, late, "cart.*", c.handler("late"), nil)
		if err := late.Attach(deadline(t), url); err != nil {
			t.Fatal(err)
		}
		if err := late.Attach(deadline(t), url); !errors.Is(err, tidings.ErrAttached) {
			t.Errorf("a second Attach: %v", err)
		}
		early := newBus(t, tidings.Options{App: "early"})
		if err := early.Attach(deadline(t), url); err != nil {
			t.Fatal(err)
		}
		// Without routes what is instrumented stays, what is published goes.
		if err := early.Instrument(ctx, "cart.seen", 1, func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		if err := early.Publish(ctx, "cart.seen", 2); err != nil {
			t.Error(err)
		}
		c.until(t, func() bool { return c.count("late") == 1 })
		if c.count("late 2") != 1 {
			t.Error("an instrumented event left the process")
		}
		_, err := early.Subscribe(deadline(t), "order.*", c.handler("x"), &tidings.SubscribeOptions{Durable: true})
		if !errors.Is(err, tidings.ErrNotDurable) {
			t.Errorf("durable, and no stream has it: %v", err)
		}
		if err := errors.Join(late.Drain(deadline(t)), early.Drain(deadline(t))); err != nil {
			t.Error(err)
		}
	})
	b := newBus(t, tidings.Options{})
	for _, url := range []string{"carrier-pigeon://loft", "no scheme", "nats://127.0.0.1:1"} {
		if err := b.Attach(deadline(t), url); err == nil {
			t.Errorf("Attach(%q) succeeded", url)
		}
	}
	if err := b.Attach(ctx, ""); err != nil {
		t.Errorf("the bus is not as before after a failed Attach: %v", err)
	}
}

// A subscription that drains while its own process publishes: what the process
// has told the wire it takes, it handles; the rest goes to others of the group.
func TestDrainOfASubscriptionWhoseProcessPublishes(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		c := newTally()
		a, b := process(t, url, "billing", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		subscribe(t, b, "cart.*", c.handler("cart"), nil)
		stop, n := make(chan struct{}), 0
		var wg sync.WaitGroup
		wg.Go(func() {
			for ; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := a.Publish(ctx, "cart.seen", n); err != nil {
					t.Error(err)
				}
				c.until(t, func() bool { return n-c.count("cart") < 100 }) // not a flood
			}
		})
		for range 30 {
			s := subscribe(t, a, "cart.*", c.handler("cart"), nil)
			if err := s.Drain(deadline(t)); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		wg.Wait()
		c.until(t, func() bool { return c.count("cart") >= n })
		for i := range n {
			if k := c.count(fmt.Sprint("cart ", i)); k != 1 {
				t.Errorf("event %d of %d was handled %d times", i, n, k)
			}
		}
		if err := errors.Join(a.Drain(deadline(t)), b.Drain(deadline(t))); err != nil {
			t.Error(err)
		}
	})
}

// Who listens to acknowledgements sees the last one before Drain returns, and
// holds up nobody meanwhile.
func TestSettledIsToldToTheLast(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		const n = 50
		b := process(t, url, "billing", tidings.Options{})
		c, release := newTally(), make(chan struct{})
		var mu sync.Mutex
		settled := map[string]int{}
		subscribe(t, b, "tidings.settled", func(_ context.Context, e tidings.Event) error {
			<-release
			mu.Lock()
			defer mu.Unlock()
			settled[e.Payload().(tidings.Settled).Event.ID()]++
			return nil
		}, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "order.*", c.handler("order"), &tidings.SubscribeOptions{Durable: true})
		for i := range n {
			if err := b.Publish(deadline(t), "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		c.until(t, func() bool { return c.count("order") == n })
		close(release)
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		if len(settled) != n {
			t.Errorf("%d of %d acknowledgements were told", len(settled), n)
		}
	})
}
