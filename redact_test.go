package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/redact"
)

type card struct {
	Number string `redact:"true"`
	Owner  string
}

// Whoever gets an event, however it was made, gets it without its secrets.
func TestRedact(t *testing.T) {
	for _, strict := range []bool{false, true} {
		var reported errs
		b := newBus(t, tidings.Options{Redact: redact.New().Value, Strict: strict, OnError: reported.add})
		typed := tidings.NewTopic[*card]("card.typed").On(b)
		var seen []string
		see := func(what string, e tidings.Event) {
			seen = append(seen, fmt.Sprint(what, " ", e.Topic(), " ", *e.Payload().(*card)))
		}
		subscribe(t, b, "card.>", func(_ context.Context, e tidings.Event) error { see("handler", e); return nil },
			&tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, e tidings.Event) context.Context { see("start", e); return ctx }})
		if _, err := typed.Subscribe(ctx, func(_ context.Context, e tidings.Event, c *card) error { see("typed", e); return nil },
			&tidings.SubscribeOptions{Inline: true}); err != nil {
			t.Fatal(err)
		}
		secret := &card{"4242", "Ada"}
		pay := func(context.Context) error { secret.Owner = "Bob"; return nil }
		for _, err := range []error{
			b.Publish(ctx, "card.published", secret),
			b.Instrument(ctx, "card.instrumented", secret, pay),
			typed.Publish(ctx, secret),
			typed.Instrument(ctx, secret, pay),
			b.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "card.ready", Payload: secret})),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		_, span := b.Begin(ctx, "card.begun", secret)
		span.End(nil)
		if _, err := b.Request(ctx, "card.asked", secret); !errors.Is(err, tidings.ErrNoResponder) {
			t.Error(err)
		}
		if all := strings.Join(seen, "\n"); strings.Contains(all, "4242") || strings.Count(all, "handler") != 7 || strings.Count(all, "start") != 3 ||
			strings.Count(all, "typed card.typed") != 2 || !strings.Contains(all, "handler card.instrumented {[FILTERED] Bob}") {
			t.Errorf("seen:\n%s", all)
		}
		if secret.Number != "4242" {
			t.Error("the publisher's own payload was changed")
		}
	}
	b := newBus(t, tidings.Options{Redact: func(any) any { panic("no") }})
	n := 0
	subscribe(t, b, "x", func(context.Context, tidings.Event) error { n++; return nil }, &tidings.SubscribeOptions{Inline: true})
	if err := b.Publish(ctx, "x", 1); err == nil || !strings.Contains(err.Error(), "Options.Redact") || n != 0 {
		t.Errorf("a filter that panics: %v, and %d handlers ran", err, n)
	}
}

// A handler that ends its goroutine keeps the event from nobody, measured or not.
func TestGoexitInAnInlineHandler(t *testing.T) {
	for _, o := range []tidings.Options{{}, {Strict: true}} {
		var reported errs
		o.OnError = reported.add
		b := newBus(t, o)
		inline := &tidings.SubscribeOptions{Inline: true}
		var mu sync.Mutex
		n := 0
		subscribe(t, b, "x", func(context.Context, tidings.Event) error { runtime.Goexit(); return nil }, inline)
		for range 2 {
			subscribe(t, b, "x", func(context.Context, tidings.Event) error { mu.Lock(); defer mu.Unlock(); n++; return nil }, inline)
		}
		for range 300 {
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = b.Publish(ctx, "x", nil)
			}()
			<-done
		}
		if n != 600 || (!o.Strict && len(reported.list()) != 300) {
			t.Errorf("strict %v: the others ran %d times, want 600; %d reported", o.Strict, n, len(reported.list()))
		}
	}
}

// A middleware that hands on another event does not make an event its own parent.
func TestParentOfAReplacedEvent(t *testing.T) {
	replace := func(next tidings.Handler) tidings.Handler {
		return func(ctx context.Context, e tidings.Event) error {
			return next(ctx, tidings.NewEvent(tidings.EventFields{ID: e.ID(), Topic: e.Topic(), Payload: e.Payload()}))
		}
	}
	b := newBus(t, tidings.Options{Middleware: []func(tidings.Handler) tidings.Handler{replace}})
	parents, ids := map[string]string{}, map[string]string{}
	subscribe(t, b, ">", func(ctx context.Context, e tidings.Event) error {
		parents[e.Topic()], ids[e.Topic()] = tidings.Parent(ctx, e), e.ID()
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context { return ctx }})
	_ = b.Instrument(ctx, "outer", nil, func(ctx context.Context) error {
		return b.Instrument(ctx, "inner", nil, func(ctx context.Context) error { return b.Publish(ctx, "leaf", nil) })
	})
	if parents["outer"] != "" || parents["inner"] != ids["outer"] || parents["leaf"] != ids["inner"] {
		t.Errorf("parents %v of %v", parents, ids)
	}
}
