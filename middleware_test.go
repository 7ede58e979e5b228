package tidings_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tidings-go/tidings"
)

func TestMiddleware(t *testing.T) {
	var trace []string
	note := func(name string) func(tidings.Handler) tidings.Handler {
		return func(next tidings.Handler) tidings.Handler {
			return func(ctx context.Context, e tidings.Event) error {
				trace = append(trace, name+" before")
				err := next(ctx, e)
				trace = append(trace, name+" after")
				return err
			}
		}
	}
	refused := errors.New("refused")
	around := func(next tidings.PublishFunc) tidings.PublishFunc {
		return func(ctx context.Context, topic string, payload any) error {
			trace = append(trace, "publish "+topic)
			switch topic {
			case "refused":
				return refused
			case "renamed":
				topic = "x"
			}
			return next(tidings.WithTags(ctx, map[string]any{"tagged": true}), topic, payload)
		}
	}
	inner := func(next tidings.PublishFunc) tidings.PublishFunc {
		return func(ctx context.Context, topic string, payload any) error {
			if n, ok := payload.(int); ok {
				payload = n + 1
			}
			return next(ctx, topic, payload)
		}
	}
	b := newBus(t, tidings.Options{
		Middleware:        []func(tidings.Handler) tidings.Handler{note("outer"), note("inner")},
		PublishMiddleware: []func(tidings.PublishFunc) tidings.PublishFunc{around, inner},
	})
	h := func(ctx context.Context, e tidings.Event) error {
		if tidings.Tags(ctx)["tagged"] != true || e.Payload() != 2 || e.Topic() != "x" {
			t.Errorf("got %v %v with %v", e, e.Payload(), tidings.Tags(ctx))
		}
		trace = append(trace, "handler")
		return nil
	}
	subscribe(t, b, "x", h, &tidings.SubscribeOptions{Inline: true})
	run := func(topic string, publish func() error, want error, lines ...string) {
		t.Helper()
		trace = nil
		if err := publish(); !errors.Is(err, want) || !slices.Equal(trace, append([]string{"publish " + topic}, lines...)) {
			t.Errorf("%s: %v, %q", topic, err, trace)
		}
	}
	handled := []string{"outer before", "inner before", "handler", "inner after", "outer after"}
	typed := tidings.NewTopic[int]("x").On(b)
	run("x", func() error { return b.Publish(ctx, "x", 1) }, nil, handled...)
	run("x", func() error { return typed.Publish(ctx, 1) }, nil, handled...)
	run("renamed", func() error { return b.Publish(ctx, "renamed", 1) }, nil, handled...)
	run("refused", func() error { return b.Publish(ctx, "refused", 1) }, refused)
	run("nobody", func() error { return b.Publish(ctx, "nobody", 1) }, nil)
	if b.Listening("nobody") {
		t.Error("middleware counts as a listener")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, "x", 1); !errors.Is(err, tidings.ErrClosed) {
		t.Errorf("on a closed bus: %v", err)
	}
}

// A typed handler has the middleware around it too.
func TestMiddlewareAroundTypedHandlers(t *testing.T) {
	var n atomic.Int32
	count := func(next tidings.Handler) tidings.Handler {
		return func(ctx context.Context, e tidings.Event) error { n.Add(1); return next(ctx, e) }
	}
	b := newBus(t, tidings.Options{Middleware: []func(tidings.Handler) tidings.Handler{count}})
	typed := tidings.NewTopic[int]("typed.around").On(b)
	for _, o := range []*tidings.SubscribeOptions{{Inline: true}, nil} {
		if _, err := typed.Subscribe(ctx, func(context.Context, tidings.Event, int) error { return nil }, o); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		_ = typed.Publish(ctx, 1)
	}
	drain(t, b)
	if n.Load() != 400 {
		t.Errorf("the middleware ran %d times, want 400", n.Load())
	}
}

func TestMiddlewareThatReturnsNil(t *testing.T) {
	if _, err := tidings.New(tidings.Options{PublishMiddleware: []func(tidings.PublishFunc) tidings.PublishFunc{
		func(tidings.PublishFunc) tidings.PublishFunc { return nil }}}); err == nil || !strings.Contains(err.Error(), "PublishMiddleware") {
		t.Errorf("New: %v", err)
	}
	b := newBus(t, tidings.Options{Middleware: []func(tidings.Handler) tidings.Handler{func(tidings.Handler) tidings.Handler { return nil }}})
	if _, err := b.Subscribe(ctx, "x", func(context.Context, tidings.Event) error { return nil }, nil); err == nil || !strings.Contains(err.Error(), "Middleware[0]") {
		t.Errorf("Subscribe: %v", err)
	}
}
