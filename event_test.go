package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// Events are counted in different places, as subscribers come and go; their ids
// differ all the same, and each is counted once.
func TestIDsDifferWhoeverListens(t *testing.T) {
	b := newBus(t, tidings.Options{})
	typed := tidings.NewTopic[int]("ids.x").On(b)
	other := tidings.NewTopic[int]("ids.y").On(b)
	var mu sync.Mutex
	seen := map[string]int{}
	note := func(_ context.Context, e tidings.Event) error {
		mu.Lock()
		defer mu.Unlock()
		seen[e.ID()]++
		return nil
	}
	events := 0
	publish := func() {
		t.Helper()
		for i := range 100 {
			for _, err := range []error{typed.Publish(ctx, i), other.Publish(ctx, i), b.Publish(ctx, "ids.x", i),
				typed.Instrument(ctx, i, func(context.Context) error { return errors.New("failed") })} {
				if err != nil && err.Error() != "failed" {
					t.Fatal(err)
				}
			}
			events += 4
		}
	}
	subscribe(t, b, "ids.*", note, nil) // both topics go to this queue alone
	publish()
	s := subscribe(t, b, "ids.*", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Inline: true})
	publish()
	s.Stop()
	publish()
	total := uint64(0)
	for _, topic := range b.Debugger().Snapshot().Topics {
		total += topic.Events
	}
	drain(t, b)
	if len(seen) != events || total != uint64(events) {
		t.Errorf("%d ids and %d counted of %d events", len(seen), total, events)
	}
}

// An event says whether it is of a block: however it was made and delivered, at
// whatever attempt, and though the block took no time.
func TestInstrumented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where blocks take 0 ns
		for name, o := range map[string]tidings.Options{"plain": {}, "encoded": {AlwaysEncode: true}} {
			b := newBus(t, o)
			typed := tidings.NewTopic[int]("told.typed").On(b)
			var mu sync.Mutex
			var got []string
			note := func(who string) tidings.Handler {
				return func(_ context.Context, e tidings.Event) error {
					mu.Lock()
					defer mu.Unlock()
					if e.Instrumented() != (e.Topic() == "told.block" || e.Payload() == 1 || e.Payload() == 1.0) || e.Duration() != 0 && !e.Instrumented() {
						got = append(got, fmt.Sprintf("%s: %s %v is instrumented: %v, after %v", name, who, e, e.Instrumented(), e.Duration()))
					}
					if who == "queued" && e.Attempt() == 1 {
						return errBoom
					}
					return nil
				}
			}
			for _, short := range []bool{true, false} { // ways
				if short {
					subscribe(t, b, "told.>", note("inline"), &tidings.SubscribeOptions{Inline: true})
				} else {
					subscribe(t, b, "told.>", note("queued"), &tidings.SubscribeOptions{Queue: 10_000, Retry: tidings.Retry{Attempts: 2, Backoff: 1}})
					subscribe(t, b, "told.>", note("after Start"), &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, e tidings.Event) context.Context {
						if !e.Instrumented() {
							t.Errorf("Start of %v, which is not instrumented", e)
						}
						return ctx
					}})
				}
				for range 100 {
					_, _ = b.Publish(ctx, "told.news", 0), b.Instrument(ctx, "told.block", 0, nil)
					_, _ = typed.Publish(ctx, 0), typed.Instrument(ctx, 1, func(context.Context) error { return nil })
					_ = typed.Instrument(ctx, 1, func(context.Context) error { return errBoom })
					_, span := b.Begin(ctx, "told.block", 0)
					span.End(nil)
					for _, f := range []tidings.EventFields{{Topic: "told.news"}, {Topic: "told.block", Instrumented: true},
						{Topic: "told.block", Duration: time.Second}, {Topic: "told.block", Err: errBoom}} {
						e := tidings.NewEvent(f)
						if e.Instrumented() != (f.Topic == "told.block") {
							t.Errorf("NewEvent(%+v) is instrumented: %v", f, e.Instrumented())
						}
						_ = b.PublishEvent(ctx, e)
					}
				}
			}
			drain(t, b)
			if len(got) > 0 {
				t.Errorf("%d times wrong, first: %s", len(got), got[0])
			}
		}
	})
	if (tidings.Event{}).Instrumented() {
		t.Error("the zero Event is of no block")
	}
}

func TestInstrumentedTravels(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, billing := process(t, url, "shop", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		got := make(chan tidings.Event, 10)
		subscribe(t, billing, "cart.*", func(_ context.Context, e tidings.Event) error { got <- e; return nil }, nil)
		c := deadline(t)
		for _, err := range []error{
			shop.Publish(c, "cart.published", 1),
			shop.PublishEvent(c, tidings.NewEvent(tidings.EventFields{Topic: "cart.block", Instrumented: true})), // it took 0 ns
			shop.Instrument(c, "cart.block", 1, nil),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		first := []tidings.Event{<-got, <-got, <-got}
		for _, e := range first {
			if e.Instrumented() != (e.Topic() == "cart.block") {
				t.Errorf("%v is instrumented: %v", e, e.Instrumented())
			}
			if err := billing.PublishEvent(c, e); err != nil { // on to others
				t.Fatal(err)
			}
			if again := <-got; again.Instrumented() != e.Instrumented() {
				t.Errorf("%v, published again, is instrumented: %v", again, again.Instrumented())
			}
		}
	})
}
