package natsbus_test

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

var handovers = flag.Int("handovers", 8, "how many generations hand over in TestHandOversUnderLoad; 100 take two minutes")

// bus is one more "process" of the app, with everything in between that a real one
// has.
func bus(t *testing.T, url, app string) *tidings.Bus {
	t.Helper()
	o := tidings.Options{App: app, Logger: discard, Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}}
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	}
	b, err := tidings.Open(within(t), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func number(t *testing.T, e tidings.Event) (n int) {
	if err := e.Decode(&n); err != nil {
		t.Error(err)
	}
	return n
}

// publishMany has n events stored, from several goroutines.
func publishMany(t *testing.T, b *tidings.Bus, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if err := b.Publish(context.Background(), "order.placed", i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// cut is what a drain that was cut has said and what a next process then gets.
type cut struct {
	handled                 map[string]bool
	handedBack, unconfirmed map[string]bool
	again                   map[string]bool
}

func ids(events []tidings.Event) map[string]bool {
	m := map[string]bool{}
	for _, e := range events {
		m[e.ID()] = true
	}
	return m
}

// rest lets another process of the group handle what is left of n events: those
// that come with a second attempt were redelivered.
func (c *cut) rest(t *testing.T, url string, n int) {
	t.Helper()
	c.again = map[string]bool{}
	var mu sync.Mutex
	seen := maps.Clone(c.handled)
	done := make(chan struct{})
	b := bus(t, url, "billing")
	_, err := b.Subscribe(within(t), "order.*", func(_ context.Context, e tidings.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.Attempt() > 1 {
			c.again[e.ID()] = true
		}
		if seen[e.ID()] = true; len(seen) == n {
			select {
			case <-done:
			default:
				close(done)
			}
		}
		return nil
	}, &tidings.SubscribeOptions{Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(patience):
		mu.Lock()
		t.Errorf("%d of %d events were ever handled", len(seen), n)
		mu.Unlock()
	}
	js := jsClient(t, url)
	testkit.Until(t, patience, func() bool {
		info := consumerOf(t, js)
		return info.NumAckPending == 0 && info.NumPending == 0
	})
	if err := b.Drain(within(t)); err != nil {
		t.Error(err)
	}
}

// A drain with thousands prefetched, handlers at work and a deadline that cuts:
// what its error names is exactly what is delivered again.
func TestTheReceiptOfADrainIsExact(t *testing.T) {
	srv := testkit.Server(t)
	const n = 6000
	publishMany(t, bus(t, srv.URL(), "shop"), n)
	b := bus(t, srv.URL(), "billing")
	c := cut{handled: map[string]bool{}}
	var mu sync.Mutex
	slow, filled := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	s, err := b.Subscribe(within(t), "order.*", func(ctx context.Context, e tidings.Event) error {
		running.Add(1)
		defer running.Done()
		mu.Lock()
		c.handled[e.ID()] = true
		k := len(c.handled)
		mu.Unlock()
		switch {
		case k < 1000:
			return nil
		case k == 1000:
			close(slow)
		}
		<-filled // what is quick so far has thousands taken in advance
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
		if ctx.Err() != nil { // on a busy machine both are so
			mu.Lock()
			delete(c.handled, e.ID())
			mu.Unlock()
		}
		return ctx.Err()
	}, &tidings.SubscribeOptions{Durable: true, Workers: 64, Queue: 4096})
	if err != nil {
		t.Fatal(err)
	}
	<-slow
	testkit.Until(t, patience, func() bool { return b.Debugger().Snapshot().Subscriptions[0].Received >= 3000 })
	close(filled)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err = b.Drain(ctx)
	<-s.Done()
	running.Wait() // on a busy machine some are not done when the drain gives up
	var left *tidings.LeftError
	if !errors.As(err, &left) {
		t.Fatalf("Drain: %v", err)
	}
	mu.Lock()
	c.handedBack, c.unconfirmed = ids(left.HandedBack), ids(left.Unconfirmed)
	t.Logf("%d handled, %d handed back, %d unconfirmed: %v", len(c.handled), len(c.handedBack), len(c.unconfirmed), err)
	mu.Unlock()
	reasons := strings.Split(err.Error(), "\n")
	if slices.Sort(reasons); len(slices.Compact(reasons)) != len(reasons) || slices.Contains(reasons, context.DeadlineExceeded.Error()) {
		t.Errorf("reasons are told twice, or for nothing:\n%v", err)
	}
	if len(c.handedBack) < 1000 {
		t.Errorf("only %d were prefetched and handed back: the test shows nothing", len(c.handedBack))
	}
	c.rest(t, srv.URL(), n)
	again := maps.Clone(c.again)
	maps.DeleteFunc(again, func(id string, _ bool) bool { return c.unconfirmed[id] }) // on a busy machine there are some, and they may
	if !maps.Equal(again, c.handedBack) {
		t.Errorf("%d events were delivered again, %d are named", len(c.again), len(c.handedBack))
	}
	for id := range c.handedBack {
		if c.handled[id] {
			t.Errorf("event %s was handled and is named as handed back", id)
		}
	}
	i := b.Debugger().Snapshot().Subscriptions[0]
	if sum := i.Handled + i.Left; !i.Ended || i.Received != sum || i.Left != uint64(len(c.handedBack)) || i.Handled != uint64(len(c.handled)) || i.Acked+uint64(len(c.unconfirmed)) != i.Handled || len(i.HandedBack) != len(c.handedBack) {
		t.Errorf("%d handled and %d handed back; the counters say: received %d, handled %d, acknowledged %d, left %d", len(c.handled), len(c.handedBack), i.Received, i.Handled, i.Acked, i.Left)
	}
}

// The connection breaks in the middle of a drain, and is not back at its deadline:
// whatever comes again is named, as not handled or as not confirmed.
func TestADrainWhoseConnectionBreaks(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run("back "+strconv.FormatBool(back), func(t *testing.T) {
			srv := testkit.Server(t)
			const n = 400
			publishMany(t, bus(t, srv.URL(), "shop"), n)
			b := bus(t, srv.URL(), "billing")
			c := cut{handled: map[string]bool{}}
			var mu sync.Mutex
			reached := make(chan struct{})
			_, err := b.Subscribe(within(t), "order.*", func(ctx context.Context, e tidings.Event) error {
				select {
				case <-time.After(2 * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
				mu.Lock()
				defer mu.Unlock()
				if c.handled[e.ID()] = true; len(c.handled) == 50 {
					close(reached)
				}
				return nil
			}, &tidings.SubscribeOptions{Durable: true, Queue: 300})
			if err != nil {
				t.Fatal(err)
			}
			<-reached
			limit := time.Second
			if back {
				limit = patience
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			drained := make(chan error, 1)
			var wg sync.WaitGroup
			wg.Go(func() { drained <- b.Drain(ctx) })
			srv.Shutdown()
			if back {
				srv.Start()
			}
			err = <-drained
			wg.Wait()
			var left *tidings.LeftError
			switch {
			case back && err != nil:
				t.Errorf("the broker was back in time: %v", err)
			case !back && !errors.As(err, &left):
				t.Fatalf("Drain: %v", err)
			case !back:
				c.handedBack, c.unconfirmed = ids(left.HandedBack), ids(left.Unconfirmed)
			}
			srv.Start()
			c.rest(t, srv.URL(), n)
			t.Logf("%d handled before, %d handed back, %d unconfirmed, %d came again", len(c.handled), len(c.handedBack), len(c.unconfirmed), len(c.again))
			for id := range c.again {
				if !c.handedBack[id] && !c.unconfirmed[id] {
					t.Errorf("event %s came again and is not named", id)
				}
			}
			for id := range c.handedBack {
				if !c.again[id] {
					t.Errorf("event %s is named as handed back and did not come again", id)
				}
			}
		})
	}
}

// Generations hand over under 2000 events a second, with a handler that takes its
// time: none is lost, and none is delivered again but what a receipt names. The
// full run is
//
//	go test ./natsbus -run HandOversUnderLoad -handovers 100 -v
func TestHandOversUnderLoad(t *testing.T) {
	const rate = 2000
	natsbus.SetAckWait(t, time.Minute) // a machine that stands still for seconds redelivers nothing
	srv := testkit.Server(t)
	shop := bus(t, srv.URL(), "shop")
	var mu sync.Mutex
	handled, again := map[int]int{}, map[string]bool{}
	var last time.Time
	var gap time.Duration
	join := func() *tidings.Bus {
		b := bus(t, srv.URL(), "billing")
		_, err := b.Subscribe(within(t), "order.*", func(_ context.Context, e tidings.Event) error {
			n := number(t, e)
			if n%50 == 0 {
				<-time.After(3 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if !last.IsZero() {
				gap = max(gap, now.Sub(last))
			}
			last = now
			handled[n]++
			if e.Attempt() > 1 {
				again[e.ID()] = true
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Workers: 2})
		if err == nil {
			err = b.Ready(within(t))
		}
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	old := join()
	stop, sent := make(chan struct{}), 0
	var wg sync.WaitGroup
	var accepted atomic.Int64
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for range rate / 100 {
				n := sent
				sent++
				wg.Go(func() {
					if err := shop.Publish(context.Background(), "order.placed", n); err != nil {
						t.Error(err)
					} else {
						accepted.Add(1)
					}
				})
			}
		}
	})
	began := time.Now()
	named := map[string]bool{}
	for range *handovers {
		before := accepted.Load()
		next := join()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := old.Drain(ctx)
		cancel()
		var left *tidings.LeftError
		if errors.As(err, &left) {
			maps.Copy(named, ids(left.HandedBack))
			maps.Copy(named, ids(left.Unconfirmed))
		}
		if err != nil {
			t.Error(err)
		}
		old = next
		testkit.Until(t, patience, func() bool { return accepted.Load()-before >= rate/2 }) // half a second of load for each
	}
	took := time.Since(began)
	close(stop)
	wg.Wait()
	testkit.Until(t, patience, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) >= int(accepted.Load())
	})
	if err := old.Drain(within(t)); err != nil {
		t.Error(err)
	}
	if info := consumerOf(t, jsClient(t, srv.URL())); info.NumAckPending > 0 || info.NumPending > 0 {
		t.Errorf("%d events are not settled, %d not delivered", info.NumAckPending, info.NumPending) // after the ack wait they would come again
	}
	twice := 0
	for _, n := range handled {
		if n > 1 {
			twice++
		}
	}
	redelivered := len(again)
	maps.DeleteFunc(again, func(id string, _ bool) bool { return named[id] })
	t.Logf("%d hand-overs, %d events accepted in %v (%.0f/s): lost %d, handled twice %d, redelivered %d, named %d, longest gap %v",
		*handovers, accepted.Load(), took.Round(time.Millisecond), float64(accepted.Load())/took.Seconds(),
		int(accepted.Load())-len(handled), twice, redelivered, len(named), gap.Round(time.Millisecond))
	if twice > 0 || len(again) > 0 {
		t.Errorf("%d handled twice, %d redelivered and not named", twice, len(again))
	}
}
