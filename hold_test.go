package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
)

// fate is what a planned event does to its handler.
type fate struct {
	Key       int
	Failures  int
	Permanent bool // after its failures it is given up, instead of handled
	Takes     time.Duration
}

// call is one attempt, as a handler saw it.
type attempt struct{ Event, Attempt int }

// In each key, attempts come in exactly this order: all of the first event's, then
// all of the next one's. Keys do not wait for each other: what one may delay
// another by is its own work, not its retries.
func TestARetriedEventHoldsItsKey(t *testing.T) {
	var run atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(1, 4).Draw(rt, "workers")
		queue := rapid.IntRange(1, 20).Draw(rt, "queue")
		plan := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) fate {
			return fate{
				Key:       rapid.IntRange(0, 3).Draw(rt, "key"),
				Failures:  rapid.SampledFrom([]int{0, 0, 0, 1, 2, 4}).Draw(rt, "failures"),
				Permanent: rapid.Bool().Draw(rt, "permanent"),
				Takes:     time.Duration(rapid.IntRange(0, 5).Draw(rt, "takes")) * time.Millisecond,
			}
		}), 1, 40).Draw(rt, "plan")
		want := map[int][]attempt{}
		for i, f := range plan {
			for n := range f.Failures + 1 {
				want[f.Key] = append(want[f.Key], attempt{i, n + 1})
			}
		}
		synctest.Test(t, func(t *testing.T) {
			url := fmt.Sprintf("mem:%s-%d", t.Name(), run.Add(1))
			got := runPlan(t, url, plan, &tidings.SubscribeOptions{Durable: true, Workers: workers, Queue: queue,
				Retry: tidings.Retry{Backoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond}})
			for key, list := range want {
				if !slices.Equal(got[key], list) {
					rt.Fatalf("key %d: attempts %v, want %v", key, got[key], list)
				}
			}
		})
	})
}

// runPlan has every event handled or given up, and drains: nothing may be left.
func runPlan(t *testing.T, url string, plan []fate, o *tidings.SubscribeOptions) map[int][]attempt {
	b := process(t, url, "shop", tidings.Options{})
	var mu sync.Mutex
	got := map[int][]attempt{}
	ended := make(chan struct{}, len(plan))
	number := func(e tidings.Event) (n int) {
		if err := e.Decode(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	o.Key = func(e tidings.Event) string { return fmt.Sprint(plan[number(e)].Key) }
	subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
		i := number(e)
		f := plan[i]
		mu.Lock()
		got[f.Key] = append(got[f.Key], attempt{i, e.Attempt()})
		mu.Unlock()
		<-time.After(f.Takes)
		switch {
		case e.Attempt() <= f.Failures:
			return errors.New("not yet")
		case f.Permanent:
			ended <- struct{}{}
			return tidings.Permanent(errors.New("never"))
		}
		ended <- struct{}{}
		return nil
	}, o)
	for i := range plan {
		if err := b.Publish(ctx, "order.placed", i); err != nil {
			t.Fatal(err)
		}
	}
	for range plan {
		<-ended
	}
	if err := b.Drain(ctx); err != nil {
		t.Error(err)
	}
	return got
}

// While one key waits for an hour, the others do not wait at all.
func TestOtherKeysPassARetriedEvent(t *testing.T) {
	for _, workers := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			b := process(t, fmt.Sprintf("mem:%s-%d", t.Name(), workers), "shop", tidings.Options{})
			var mu sync.Mutex
			var order []string
			began := time.Now()
			subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
				name := e.Topic()[len("order."):]
				mu.Lock()
				defer mu.Unlock()
				if name == "a1" && e.Attempt() == 1 {
					return tidings.RetryAfter(errors.New("later"), time.Hour)
				}
				order = append(order, fmt.Sprint(name, " ", time.Since(began)))
				return nil
			}, &tidings.SubscribeOptions{Durable: true, Workers: workers, Key: func(e tidings.Event) string { return e.Topic()[len("order.") : len("order.")+1] }})
			for _, name := range []string{"a1", "b1", "a2", "b2", "c1", "a3"} {
				if err := b.Publish(ctx, "order."+name, nil); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			mu.Lock()
			early := slices.Sorted(slices.Values(order))
			order = nil
			mu.Unlock()
			if want := []string{"b1 0s", "b2 0s", "c1 0s"}; !slices.Equal(early, want) {
				t.Errorf("%d workers: at once: %v, want %v", workers, early, want)
			}
			<-time.After(2 * time.Hour)
			mu.Lock()
			defer mu.Unlock()
			if want := []string{"a1 1h0m0s", "a2 1h0m0s", "a3 1h0m0s"}; !slices.Equal(order, want) {
				t.Errorf("%d workers: later: %v, want %v", workers, order, want)
			}
		})
	}
}

// Without a Key a retried event is passed by those that came meanwhile.
func TestWithoutAKeyARetriedEventIsPassed(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "shop", tidings.Options{})
		order := make(chan string, 4)
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			order <- fmt.Sprint(e.Topic(), " ", e.Attempt())
			if e.Topic() == "order.a" && e.Attempt() == 1 {
				return tidings.RetryAfter(errors.New("later"), 300*time.Millisecond)
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true})
		for _, topic := range []string{"order.a", "order.b", "order.c"} {
			if err := b.Publish(ctx, topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"order.a 1", "order.b 1", "order.c 1", "order.a 2"} {
			if got := <-order; got != want {
				t.Errorf("%s came, want %s", got, want)
			}
		}
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
	})
}

// A drain waits for a retry that is near. One that is far goes back to the store,
// with what waits behind it, and all of it is named.
func TestDrainAndRetries(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "shop", tidings.Options{})
		failed := make(chan struct{}, 3)
		var handled sync.Map
		o := &tidings.SubscribeOptions{Durable: true, Key: func(e tidings.Event) string { return e.Topic()[:len("order.x")] }}
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			wait := map[string]time.Duration{"order.near1": 200 * time.Millisecond, "order.far1": time.Minute}[e.Topic()]
			if wait > 0 && e.Attempt() == 1 {
				failed <- struct{}{}
				return tidings.RetryAfter(errors.New("later"), wait)
			}
			handled.Store(e.Topic(), true)
			if e.Topic() == "order.other" {
				failed <- struct{}{}
			}
			return nil
		}, o)
		for _, topic := range []string{"order.far1", "order.near1", "order.far2", "order.near2", "order.other"} {
			if err := b.Publish(ctx, topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 { // the last shows that all have been taken
			<-failed
		}
		began := time.Now()
		err := b.Drain(deadline(t))
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("the drain took %v", took)
		}
		var left *tidings.LeftError
		if !errors.As(err, &left) {
			t.Fatalf("Drain: %v", err)
		}
		var names []string
		for _, e := range left.HandedBack {
			names = append(names, e.Topic())
		}
		slices.Sort(names)
		if want := []string{"order.far1", "order.far2"}; !slices.Equal(names, want) {
			t.Errorf("handed back: %v, want %v: %v", names, want, err)
		}
		for _, topic := range []string{"order.near1", "order.near2", "order.other"} {
			if _, ok := handled.Load(topic); !ok {
				t.Errorf("%s was not handled", topic)
			}
		}
	})
}

// Waiting behind another event, and being retried, is no death of a process:
// events that came often before are not given up for it.
func TestHeldEventsAreNotTakenForDeaths(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "shop", tidings.Options{})
		for _, topic := range []string{"order.a1", "order.a2"} {
			if err := b.Publish(ctx, topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := adapter.Open(deadline(t), url, adapter.Config{App: "shop", Instance: "raw", Durable: []string{"order.>"}})
		if err != nil {
			t.Fatal(err)
		}
		often := make(chan struct{}, 1000)
		sub, err := raw.Subscribe(deadline(t), adapter.Spec{Pattern: "order.*", Group: "shop", Durable: true, Deliver: func(d adapter.Delivery) {
			d.Settle.Nak(0)
			if d.Attempt == 10 {
				often <- struct{}{}
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		<-often
		<-often
		if err := errors.Join(sub.Close(deadline(t)), raw.Close()); err != nil {
			t.Log(err) // some may have been handed back
		}
		order := make(chan string, 20)
		first := 0
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			order <- e.Topic()
			if first++; first <= 4 {
				return errors.New("not yet")
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Key: func(tidings.Event) string { return "a" },
			Retry: tidings.Retry{Deaths: 2, Backoff: 5 * time.Millisecond, MaxBackoff: 10 * time.Millisecond}})
		var got []string
		for range 6 {
			select {
			case topic := <-order:
				got = append(got, topic)
			case <-time.After(20 * time.Second):
				t.Fatalf("only %v", got)
			}
		}
		if err := b.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		// Which comes first was settled by what handed them back.
		if got[0] != got[4] || got[4] == got[5] {
			t.Errorf("attempts: %v: five of one, then the other", got)
		}
	})
}

// A handler that ends its goroutine at a retry does not keep what is behind its
// event waiting for ever.
func TestAHandlerThatEndsItsGoroutineLetsItsKeyGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := process(t, "mem:"+t.Name(), "shop", tidings.Options{})
		handled := make(chan int, 4)
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			var n int
			if err := e.Decode(&n); err != nil {
				t.Error(err)
			}
			switch {
			case n == 0 && e.Attempt() == 1:
				return errors.New("not yet")
			case n == 0 && e.Attempt() == 2:
				runtime.Goexit()
			}
			handled <- n
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Key: func(tidings.Event) string { return "one" },
			Retry: tidings.Retry{Backoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond}})
		for n := range 2 {
			if err := b.Publish(ctx, "order.placed", n); err != nil {
				t.Fatal(err)
			}
		}
		got := []int{<-handled, <-handled}
		slices.Sort(got)
		if !slices.Equal(got, []int{0, 1}) {
			t.Errorf("handled %v", got)
		}
		if err := b.Drain(ctx); err != nil {
			t.Error(err)
		}
	})
}
