package tidings_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tidings-go/tidings"
)

// Inline handlers that never stop publishing what they handle fail where they
// would overflow the stack; the bus goes on.
func TestEndlessInlineHandlers(t *testing.T) {
	instrument := func(b *tidings.Bus, topic string) error {
		return b.Instrument(ctx, topic, 1, func(context.Context) error { return nil })
	}
	publish := func(b *tidings.Bus, topic string) error { return b.Publish(ctx, topic, 1) }
	typed := func(b *tidings.Bus, topic string) error { return tidings.NewTopic[int](topic).On(b).Publish(ctx, 1) }
	for name, c := range map[string]struct {
		strict bool
		next   func(topic string) string
		call   func(*tidings.Bus, string) error
	}{
		"its own topic":  {call: publish},
		"typed":          {call: typed},
		"instrumented":   {call: instrument},
		"strict":         {strict: true, call: publish},
		"each other's":   {next: func(topic string) string { return strings.Replace("deep.ab", topic[5:], "", 1) }, call: publish},
		"ever new names": {next: func(topic string) string { n, _ := strconv.Atoi(topic[6:]); return "deep.n" + strconv.Itoa(n+1) }, call: publish},
	} {
		t.Run(name, func(t *testing.T) {
			var reported errs
			b := newBus(t, tidings.Options{Strict: c.strict, OnError: reported.add})
			handled, endless := 0, true
			subscribe(t, b, "deep.>", func(_ context.Context, e tidings.Event) error {
				handled++
				switch {
				case !endless:
					return nil
				case c.next != nil:
					return c.call(b, c.next(e.Topic()))
				}
				return c.call(b, e.Topic())
			}, &tidings.SubscribeOptions{Inline: true})
			err := c.call(b, "deep.a")
			if c.strict == (err == nil) {
				t.Errorf("returned %.200v", err)
			} else if err == nil {
				err = errors.Join(reported.list()...)
			}
			if n := strings.Count(err.Error(), "nested too deep"); n != 1 || len(reported.list()) > 1 {
				t.Errorf("said %d times: %.300v", n, err)
			}
			if handled < 5000 || handled > 100_000 {
				t.Errorf("%d levels", handled)
			}
			endless, handled = false, 0
			if err := c.call(b, "deep.a"); err != nil || handled != 1 {
				t.Errorf("afterwards: %v, handled %d", err, handled)
			}
		})
	}
}

// A depth that ends is none of the bus's business, whatever else is under way.
func TestDeepInlineHandlersThatEnd(t *testing.T) {
	b := newBus(t, tidings.Options{})
	most := 0
	subscribe(t, b, "deep", func(_ context.Context, e tidings.Event) error {
		if n := e.Payload().(int); n > 0 {
			most++
			return b.Publish(ctx, "deep", n-1)
		}
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	hold := make(chan struct{})
	subscribe(t, b, "held", func(context.Context, tidings.Event) error { <-hold; return nil }, &tidings.SubscribeOptions{Inline: true})
	var held sync.WaitGroup
	for range 200 {
		held.Go(func() { _ = b.Publish(ctx, "held", nil) })
	}
	if err := b.Publish(ctx, "deep", 5000); err != nil || most != 5000 {
		t.Errorf("%v after %d levels", err, most)
	}
	close(hold)
	held.Wait()
}
