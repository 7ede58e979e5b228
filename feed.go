package tidings

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/tidings-go/tidings/adapter"
)

// feedKey is what one transport subscription stands for: all subscriptions of
// this process with the same group and pattern share it, since together they are
// one member of the group.
type feedKey struct {
	group, pattern string // group is empty for Broadcast
	durable        bool
}

// served is the key as it stands in Message.Served. Groups contain no "|".
func (k feedKey) served() string { return k.group + "|" + k.pattern }

// feed is a subscription at the transport.
type feed struct {
	bus     *Bus
	key     feedKey
	members map[*Subscription]struct{}      // guarded by bus.mu
	subs    atomic.Pointer[[]*Subscription] // members in order; nil: to be made anew

	opened  chan struct{}
	at      adapter.Subscription // read after opened
	openErr error
}

func newFeed(b *Bus, key feedKey) *feed {
	return &feed{bus: b, key: key, opened: make(chan struct{}), members: map[*Subscription]struct{}{}}
}

// subscriptions are the members in the order they joined.
func (f *feed) subscriptions() []*Subscription {
	if subs := f.subs.Load(); subs != nil {
		return *subs
	}
	f.bus.mu.Lock()
	defer f.bus.mu.Unlock()
	subs := slices.SortedFunc(maps.Keys(f.members), func(x, y *Subscription) int { return cmp.Compare(x.order, y.order) })
	f.subs.Store(&subs)
	return subs
}

// open asks the transport; only who made the feed calls it, once.
func (f *feed) open(ctx context.Context, a adapter.Adapter) error {
	defer close(f.opened)
	spec := adapter.Spec{Pattern: f.key.pattern, Group: f.key.group, Durable: f.key.durable, Deliver: f.deliver}
	if f.key.durable {
		for _, s := range f.subscriptions() {
			spec.MaxInFlight = s.maxInFlight()
		}
	}
	f.at, f.openErr = a.Subscribe(ctx, spec)
	return f.openErr
}

// join waits until the transport has confirmed the subscription.
func (f *feed) join(ctx context.Context) error {
	select {
	case <-f.opened:
		return f.openErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready waits until messages are seen to flow.
func (f *feed) ready(ctx context.Context) error {
	if err := f.join(ctx); err != nil {
		return err
	}
	return f.at.Ready(ctx)
}

// deliver is called by the transport, one message at a time.
func (f *feed) deliver(d adapter.Delivery) {
	switch {
	case f.key.durable:
	case f.key.group == "" && d.Source == f.bus.source:
		return // our own echo: subscribers here had it when it was published
	case f.key.group != "" && slices.Contains(d.Served, f.key.served()):
		return // the publishing process is of this group and took it itself
	}
	e, ctx := f.bus.received(&d.Message, d.Attempt), withHeader(context.Background(), &d.Message)
	e.r.settle = d.Settle
	subs := f.subscriptions()
	if len(subs) == 0 && d.Settle != nil {
		d.Settle.Nak(0)
	}
	if len(subs) == 1 && subs[0].plain && f.bus.watchers.Load() == 0 && subs[0].lanes[0].offer(ctx, &e) == putOK {
		return // no user code
	}
	// Whatever runs here runs on the transport's goroutine, which a Drain waits for.
	f.bus.inside(func() {
		f.bus.show(ctx, e)
		for _, s := range subs {
			f.deliverTo(s, ctx, e)
		}
	})
}

func (f *feed) deliverTo(s *Subscription, ctx context.Context, e Event) {
	switch {
	case !s.wants(e.Topic()):
		if e.r.settle != nil {
			e.r.settle.Ack(func(error) {}) // nobody of the group wants it
		}
	case s.opts.Inline:
		if s.opts.Filter == nil {
			s.counts.inline.Add(1)
		}
		_ = s.call(&handlerContext{s.handlers, ctx}, e) // reported by call
	default:
		// Nobody is to be told: a drop was counted and logged, and a durable event
		// that found no room went back.
		_ = s.put(s.lane(&e), ctx, &e)
	}
}

// drain stops taking once its last subscription leaves; what was taken has been
// delivered when it returns. A nil feed has nothing to stop.
func (f *feed) drain(ctx context.Context, s *Subscription) error {
	if f == nil || !f.isLast(s) {
		return nil
	}
	if err := f.join(ctx); err != nil {
		return nil // it never was there
	}
	return f.at.Drain(ctx)
}

// close lets go of the transport's subscription, once everything was settled.
func (f *feed) close(ctx context.Context, s *Subscription) error {
	if f == nil || !f.isLast(s) {
		return nil
	}
	if err := f.join(ctx); err != nil {
		return nil
	}
	return f.at.Close(ctx)
}

// isLast reports whether s was the one that emptied the feed; bus.remove says
// so.
func (f *feed) isLast(s *Subscription) bool {
	f.bus.mu.Lock()
	defer f.bus.mu.Unlock()
	return s.lastOfFeed
}
