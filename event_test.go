package tidings_test

import (
	"context"
	"errors"
	"sync"
	"testing"

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
