package tidings_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// heard keeps the events that subscriptions get.
type heard struct {
	mu  sync.Mutex
	all map[string][]tidings.Event
	at  map[string]time.Time
}

func (h *heard) handler(name string) tidings.Handler {
	return func(_ context.Context, e tidings.Event) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.all == nil {
			h.all, h.at = map[string][]tidings.Event{}, map[string]time.Time{}
		}
		h.all[name] = append(h.all[name], e)
		h.at[name] = time.Now()
		return nil
	}
}

func (h *heard) ids(name string) (ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.all[name] {
		ids = append(ids, e.ID())
	}
	return ids
}

func (h *heard) wait(t *testing.T, name string, ids ...string) {
	t.Helper()
	testkit.Until(t, 30*time.Second, func() bool { return len(h.ids(name)) >= len(ids) })
	if got := h.ids(name); !slices.Equal(got, ids) {
		t.Fatalf("%s got %q, want %q", name, got, ids)
	}
}

func joinBus(t *testing.T, b *tidings.Bus, pattern string, h tidings.Handler, o *tidings.SubscribeOptions) *tidings.Subscription {
	t.Helper()
	s, err := b.Subscribe(deadline(t), pattern, h, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, b *tidings.Bus, f tidings.EventFields) {
	t.Helper()
	if err := b.PublishEvent(deadline(t), tidings.NewEvent(f)); err != nil {
		t.Fatal(err)
	}
}

// pass returns at that time.
func pass(at time.Time) {
	c, cancel := context.WithDeadline(ctx, at)
	defer cancel()
	<-c.Done()
}

func TestDelayedEventReachesEverybodyWhenDue(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, billing := process(t, url, "shop", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		var h heard
		joinBus(t, shop, "order.*", h.handler("own"), nil)
		joinBus(t, shop, "order.*", h.handler("own inline"), &tidings.SubscribeOptions{Inline: true})
		joinBus(t, shop, "order.*", h.handler("own broadcast"), &tidings.SubscribeOptions{Broadcast: true})
		joinBus(t, shop, "order.*", h.handler("own durable"), &tidings.SubscribeOptions{Group: "d", Durable: true})
		joinBus(t, billing, "order.*", h.handler("live"), nil)
		joinBus(t, billing, "order.*", h.handler("durable"), &tidings.SubscribeOptions{Group: "b", Durable: true})
		published := time.Now()
		due := published.Add(600 * time.Millisecond)
		send(t, shop, tidings.EventFields{ID: "later", Topic: "order.due", Time: published, NotBefore: due, Payload: 7, Tags: map[string]any{"a": "b"}})
		send(t, shop, tidings.EventFields{ID: "now", Topic: "order.due", Payload: 8})
		for _, name := range []string{"own", "own inline", "own broadcast", "own durable", "live", "durable"} {
			h.wait(t, name, "now", "later")
			h.mu.Lock()
			e, at := h.all[name][1], h.at[name]
			h.mu.Unlock()
			var n int
			if err := e.Decode(&n); err != nil || n != 7 || !e.Time().Equal(published) || !e.NotBefore().Equal(due) {
				t.Errorf("%s: payload %d, %v, time %v, not before %v", name, n, err, e.Time(), e.NotBefore())
			}
			if at.Before(due) {
				t.Errorf("%s: it came %v early", name, due.Sub(at))
			}
		}
	})
}

func TestCancelEvent(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		var h heard
		joinBus(t, shop, "order.*", h.handler("own"), nil)
		due := time.Now().Add(600 * time.Millisecond)
		send(t, shop, tidings.EventFields{ID: "1", Topic: "order.due", NotBefore: due})
		send(t, shop, tidings.EventFields{ID: "2", Topic: "order.due", NotBefore: due.Add(300 * time.Millisecond)})
		for _, want := range []bool{true, false} {
			if got, err := shop.CancelEvent(deadline(t), "order.due", "1"); got != want || err != nil {
				t.Errorf("CancelEvent returned %v, %v", got, err)
			}
		}
		h.wait(t, "own", "2")
	})
	lone := newBus(t, tidings.Options{})
	if got, err := lone.CancelEvent(deadline(t), "order.due", "1"); got || err != nil {
		t.Errorf("without a transport: %v, %v", got, err)
	}
	if _, err := lone.CancelEvent(deadline(t), "order..due", "1"); !errors.Is(err, tidings.ErrTopic) {
		t.Errorf("a bad topic: %v", err)
	}
}

// Nothing is ignored in silence: what the broker does not keep cannot wait.
func TestTimesNeedADurableRoute(t *testing.T) {
	attached, lone := process(t, "mem:"+t.Name(), "shop", tidings.Options{}), newBus(t, tidings.Options{})
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		bus  *tidings.Bus
		f    tidings.EventFields
		says string // empty: accepted
	}{
		"live, delayed":                      {attached, tidings.EventFields{Topic: "user.seen", NotBefore: soon}, "durable route"},
		"live, expires":                      {attached, tidings.EventFields{Topic: "user.seen", Expires: soon}, "Options.Routes"},
		"no transport, nobody listens":       {lone, tidings.EventFields{Topic: "order.placed", NotBefore: soon}, "transport"},
		"no transport, expires":              {lone, tidings.EventFields{Topic: "order.placed", Expires: soon}, "transport"},
		"has expired":                        {attached, tidings.EventFields{Topic: "order.placed", Expires: past}, "expires at"},
		"expires before it is due":           {attached, tidings.EventFields{Topic: "order.placed", Expires: soon, NotBefore: soon.Add(1)}, "expires at"},
		"a time that has passed is no delay": {lone, tidings.EventFields{Topic: "order.placed", NotBefore: past}, ""},
		"durable, delayed, expires after it": {attached, tidings.EventFields{Topic: "order.placed", NotBefore: soon, Expires: soon.Add(1)}, ""},
	} {
		err := c.bus.PublishEvent(deadline(t), tidings.NewEvent(c.f))
		if (err == nil) != (c.says == "") || (err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.f.Topic))) {
			t.Errorf("%s: the error is %v", name, err)
		}
		if c.says == "durable route" && !errors.Is(err, tidings.ErrNotDurable) {
			t.Errorf("%s: not ErrNotDurable: %v", name, err)
		}
	}
}

// The group is away until the event has expired.
func TestExpiredWhileAway(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		var h heard
		o := &tidings.SubscribeOptions{Group: "g", Durable: true}
		first := process(t, url, "billing", tidings.Options{})
		joinBus(t, first, "order.*", h.handler("g"), o)
		if err := first.Drain(deadline(t)); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(300 * time.Millisecond)
		send(t, shop, tidings.EventFields{ID: "expires", Topic: "order.placed", Expires: end})
		send(t, shop, tidings.EventFields{ID: "stays", Topic: "order.placed", Expires: end.Add(time.Hour)})
		pass(end)
		second := process(t, url, "billing", tidings.Options{})
		joinBus(t, second, "order.*", h.handler("g"), o)
		h.wait(t, "g", "stays")
		// The server forgets it after a second at the soonest: until then it is told.
		if s := second.Debugger().Snapshot().Subscriptions[0]; s.Expired != 1 || s.Handled != 1 || s.Failed != 0 {
			t.Errorf("the counts are %+v", s)
		}
	})
}

// It is taken in time, and then waits behind another for too long.
func TestExpiredInTheQueue(t *testing.T) {
	for name, subscribe := range map[string]func(b *tidings.Bus, h tidings.Handler) (*tidings.Subscription, error){
		"handler": func(b *tidings.Bus, h tidings.Handler) (*tidings.Subscription, error) {
			return b.Subscribe(ctx, "order.*", h, &tidings.SubscribeOptions{Durable: true})
		},
		"batch": func(b *tidings.Bus, h tidings.Handler) (*tidings.Subscription, error) {
			all := func(ctx context.Context, es []tidings.Event) error {
				for _, e := range es {
					if err := h(ctx, e); err != nil {
						return err
					}
				}
				return nil
			}
			return b.SubscribeBatch(ctx, "order.*", all, &tidings.SubscribeOptions{Durable: true, BatchSize: 2})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			shop := process(t, "mem:"+t.Name(), "shop", tidings.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			var h heard
			hold := make(chan time.Time)
			s, err := subscribe(shop, func(c context.Context, e tidings.Event) error {
				if e.ID() == "slow" {
					pass(<-hold)
				}
				return h.handler("g")(c, e)
			})
			if err != nil {
				t.Fatal(err)
			}
			send(t, shop, tidings.EventFields{ID: "quick", Topic: "order.placed"}) // so more are taken at once
			h.wait(t, "g", "quick")
			testkit.Until(t, 30*time.Second, func() bool { return shop.Debugger().Snapshot().Subscriptions[0].Handled == 1 })
			end := time.Now().Add(200 * time.Millisecond)
			send(t, shop, tidings.EventFields{ID: "slow", Topic: "order.placed"})
			testkit.Until(t, 30*time.Second, func() bool { return shop.Debugger().Snapshot().Subscriptions[0].Running == 1 })
			send(t, shop, tidings.EventFields{ID: "expires", Topic: "order.placed", Expires: end})
			send(t, shop, tidings.EventFields{ID: "last", Topic: "order.placed"})
			testkit.Until(t, 30*time.Second, func() bool { return shop.Debugger().Snapshot().Subscriptions[0].Queued == 2 })
			hold <- end
			h.wait(t, "g", "quick", "slow", "last")
			if s := shop.Debugger().Snapshot().Subscriptions[0]; s.Expired != 1 {
				t.Errorf("the counts are %+v", s)
			}
			if err := s.Drain(deadline(t)); err != nil { // all is settled
				t.Error(err)
			}
			if !strings.Contains(log.String(), "id=expires") || !strings.Contains(log.String(), "expired") {
				t.Errorf("the log does not tell of it:\n%s", log.String())
			}
		})
	}
}
