package tidings_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

func TestRequestGetsTheFirstReply(t *testing.T) {
	for name, o := range map[string]*tidings.SubscribeOptions{"queued": nil, "inline": {Inline: true}} {
		t.Run(name, func(t *testing.T) {
			for _, encode := range []bool{false, true} {
				b := kit(t, tidings.Options{AlwaysEncode: encode})
				again := make(chan error, 1)
				subscribe(t, b, "price.of", func(ctx context.Context, e tidings.Event) error {
					var n int
					if err := e.Decode(&n); err != nil {
						return err
					}
					if err := tidings.Reply(ctx, order{n * 2}); err != nil {
						return err
					}
					again <- tidings.Reply(ctx, order{0})
					return nil
				}, o)
				got, err := b.Request(ctx, "price.of", 21)
				var v order
				if err != nil || got.Decode(&v) != nil || v.ID != 42 || got.Topic() != "price.of" || got.ID() == "" {
					t.Errorf("reply %v (%v), %v", v, got, err)
				}
				if <-again == nil {
					t.Error("a second reply was taken")
				}
				drain(t, b)
			}
		})
	}
}

func TestRequestFailsAsSoonAsNobodyCanAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		boom := errors.New("boom")
		b.ExpectError(boom)
		subscribe(t, b, "fails", func(context.Context, tidings.Event) error { return boom }, nil)
		subscribe(t, b, "panics", func(context.Context, tidings.Event) error { panic(boom) }, nil)
		subscribe(t, b, "retried", func(ctx context.Context, e tidings.Event) error {
			if e.Attempt() < 3 {
				return boom
			}
			return tidings.Reply(ctx, e.Attempt())
		}, &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 3}})
		subscribe(t, b, "silent", func(context.Context, tidings.Event) error { return nil }, nil)
		subscribe(t, b, "silent", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "hangs", func(ctx context.Context, _ tidings.Event) error { time.Sleep(time.Minute); return nil }, nil)
		subscribe(t, b, "self", func(ctx context.Context, _ tidings.Event) error {
			_, err := b.Request(context.Background(), "self", nil)
			return tidings.Reply(ctx, err)
		}, nil)
		for topic, want := range map[string]error{"nobody": tidings.ErrNoResponder, "silent": tidings.ErrNoResponder,
			"fails": boom, "panics": boom, "bad topic": tidings.ErrTopic} {
			start := time.Now()
			_, err := b.Request(ctx, topic, nil)
			var e *tidings.Error
			if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "request" || time.Since(start) != 0 {
				t.Errorf("%s: %v after %v", topic, err, time.Since(start))
			}
		}
		if e, err := b.Request(ctx, "retried", nil); err != nil || e.Payload() != 3 {
			t.Errorf("retried: %v %v", e.Payload(), err)
		}
		if e, err := b.Request(ctx, "self", nil); err != nil || !errors.Is(e.Payload().(error), tidings.ErrNoResponder) {
			t.Errorf("a handler that asked itself got %v, %v", e.Payload(), err)
		}
		start := time.Now()
		if _, err := b.Request(ctx, "hangs", nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("hangs: %v after %v", err, time.Since(start))
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		start = time.Now()
		if _, err := b.Request(short, "hangs", nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("hangs, with a deadline: %v after %v", err, time.Since(start))
		}
		if err := tidings.Reply(ctx, 1); err == nil {
			t.Error("a reply to no request was taken")
		}
		drain(t, b)
	})
}

// What drops the question answers it.
func TestRequestThatIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		s := subscribe(t, b, "x", func(ctx context.Context, _ tidings.Event) error { <-ctx.Done(); return nil },
			&tidings.SubscribeOptions{Queue: 1, Overflow: tidings.DropOldest})
		_ = b.Publish(ctx, "x", nil)
		synctest.Wait()
		ask := func() chan error {
			got := make(chan error, 1)
			go func() { _, err := b.Request(ctx, "x", nil); got <- err }()
			synctest.Wait()
			return got
		}
		first, second := ask(), ask()
		if err := <-first; !errors.Is(err, tidings.ErrOverflow) {
			t.Errorf("dropped by a younger one: %v", err)
		}
		s.Stop()
		if err := <-second; err == nil {
			t.Error("dropped by Stop: no error")
		}
		_ = b.Close()
		if _, err := b.Request(ctx, "x", nil); !errors.Is(err, tidings.ErrClosed) {
			t.Errorf("on a closed bus: %v", err)
		}
	})
}

// What a handler publishes with its own context may answer for it.
func TestReplyByAnotherHandler(t *testing.T) {
	b := kit(t, tidings.Options{})
	subscribe(t, b, "ask", func(ctx context.Context, e tidings.Event) error {
		return b.Publish(ctx, "work", e.Payload())
	}, &tidings.SubscribeOptions{Inline: true})
	subscribe(t, b, "work", func(ctx context.Context, e tidings.Event) error {
		return tidings.Reply(ctx, e.Payload().(int)+1)
	}, &tidings.SubscribeOptions{Inline: true})
	if e, err := b.Request(ctx, "ask", 1); err != nil || e.Payload() != 2 {
		t.Errorf("%v, %v", e.Payload(), err)
	}
}
