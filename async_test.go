package tidings_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// Every event that PublishAsync took has one outcome, in the order of who published;
// subscribers here and elsewhere get it once, and in order.
func TestPublishAsync(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		here, there := process(t, url, "shop", quiet()), process(t, url, "billing", quiet())
		c, n := newTally(), 2000
		var own, inline []int
		subscribe(t, here, "order.*", func(_ context.Context, e tidings.Event) error { own = append(own, planned(e)); return nil }, &tidings.SubscribeOptions{Queue: n})
		subscribe(t, here, "order.*", func(_ context.Context, e tidings.Event) error { inline = append(inline, planned(e)); return nil }, &tidings.SubscribeOptions{Inline: true, Group: "inline"})
		subscribe(t, there, "order.*", c.handler("billing"), &tidings.SubscribeOptions{Durable: true})
		var told []int
		for i := range n {
			err := here.PublishAsync(ctx, "order.placed", i, func(err error) {
				if err != nil {
					t.Error(err)
				}
				told = append(told, i)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := here.Flush(deadline(t)); err != nil {
			t.Error(err)
		}
		for name, got := range map[string][]int{"told": told, "inline": inline} {
			inOrderOf(t, name, got, n)
		}
		c.until(t, func() bool { return c.count("billing") == n })
		drain(t, here)
		inOrderOf(t, "queued", own, n)
		drain(t, there)
		if c.count("billing") != n {
			t.Errorf("%d were handled elsewhere", c.count("billing"))
		}
	})
}

func inOrderOf(t *testing.T, name string, got []int, n int) {
	t.Helper()
	if len(got) != n {
		t.Errorf("%s: %d of %d", name, len(got), n)
	}
	for i, v := range got {
		if i != v {
			t.Errorf("%s: %d comes at place %d", name, v, i)
			return
		}
	}
}

// A drain waits for what is on its way, and tells it.
func TestDrainTellsWhatWasPublished(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "shop", quiet())
		var told, handled atomic.Int64
		subscribe(t, b, "order.*", func(context.Context, tidings.Event) error { handled.Add(1); return nil }, nil)
		for i := range 1000 {
			if err := b.PublishAsync(ctx, "order.placed", i, func(error) { told.Add(1) }); err != nil {
				t.Fatal(err)
			}
		}
		drain(t, b)
		if told.Load() != 1000 || handled.Load() != 1000 {
			t.Errorf("%d told, %d handled", told.Load(), handled.Load())
		}
		if err := b.PublishAsync(ctx, "order.placed", 1, func(error) { t.Error("told of what was refused") }); !errors.Is(err, tidings.ErrClosed) {
			t.Error(err)
		}
	})
}

// What is closed has its outcome, whatever that is, and Flush counts what failed with
// nobody to tell.
func TestCloseTellsWhatWasPublished(t *testing.T) {
	srv := testkit.Server(t)
	var reported atomic.Int64
	o := quiet()
	o.OnError = func(_ context.Context, err error) {
		if reported.Add(1); !strings.Contains(err.Error(), "order.placed") {
			t.Errorf("reported: %v", err) // the end of a connection is no error of anybody's
		}
	}
	b := process(t, srv.URL(), "shop", o)
	srv.Shutdown()
	told := make(chan error, 100)
	for i := range 100 {
		done := func(err error) { told <- err }
		if i%2 == 1 {
			done = nil
		}
		if err := b.PublishAsync(ctx, "order.placed", i, done); err != nil {
			t.Fatal(err)
		}
	}
	soon, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Flush(soon); err == nil || !strings.Contains(err.Error(), "100 events have no outcome yet") {
		t.Errorf("Flush: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for range 50 {
		var own *tidings.Error
		if err := <-told; !errors.As(err, &own) || own.Accepted || own.Topic != "order.placed" {
			t.Errorf("told %v", err)
		}
	}
	if err := b.Flush(deadline(t)); err == nil || !strings.Contains(err.Error(), "50 events were not accepted") || reported.Load() != 50 {
		t.Errorf("Flush: %v; %d reported", err, reported.Load())
	}
	if err := b.Flush(deadline(t)); err != nil {
		t.Errorf("Flush tells it twice: %v", err)
	}
}

// In process, and through middleware, an outcome is told before PublishAsync returns.
func TestPublishAsyncInProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := errors.New("refused")
		o := quiet()
		o.PublishMiddleware = []func(tidings.PublishFunc) tidings.PublishFunc{func(next tidings.PublishFunc) tidings.PublishFunc {
			return func(ctx context.Context, topic string, payload any) error {
				if topic == "order.refused" {
					return refuse
				}
				return next(ctx, topic, payload)
			}
		}}
		for name, b := range map[string]*tidings.Bus{"alone": newBus(t, quiet()), "middleware": process(t, "mem:"+t.Name(), "shop", o)} {
			got := 0
			subscribe(t, b, ">", func(context.Context, tidings.Event) error { got++; return nil }, &tidings.SubscribeOptions{Inline: true})
			for _, topic := range []string{"order.placed", "cart.filled", "order.refused"} {
				told := false
				err := b.PublishAsync(ctx, topic, 1, func(err error) { told = err == nil })
				synctest.Wait()
				if refused := errors.Is(err, refuse); refused != (name == "middleware" && topic == "order.refused") || told == refused {
					t.Errorf("%s, %s: %v, told: %v", name, topic, err, told)
				}
			}
			if want := map[string]int{"alone": 3, "middleware": 2}[name]; got != want {
				t.Errorf("%s: %d were handled", name, got)
			}
		}
	})
}

// A done that panics is reported, and the others are told.
func TestADoneThatPanics(t *testing.T) {
	var reported atomic.Pointer[error]
	o := quiet()
	o.OnError = func(_ context.Context, err error) { reported.Store(&err) }
	b := process(t, testkit.Server(t).URL(), "shop", o)
	told := make(chan error, 1)
	for _, done := range []func(error){func(error) { panic("no") }, func(err error) { told <- err }} {
		if err := b.PublishAsync(ctx, "order.placed", 1, done); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(<-told, b.Flush(deadline(t))); err != nil {
		t.Error(err)
	}
	if p := reported.Load(); p == nil || !strings.Contains((*p).Error(), "PublishAsync") {
		t.Errorf("reported %v", p)
	}
}
