package tidings

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/activity"
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
	proven  atomic.Bool // Ready was seen to be so
	active  activity.Marks
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
			spec.MaxInFlight, spec.Prefetch = s.maxInFlight(), s.prefetch
		}
	}
	if f.at, f.openErr = a.Subscribe(ctx, spec); f.openErr == nil {
		f.at.Refill() // what came before this could not be followed by more
	}
	return f.openErr
}

// refill tells the transport that more is worth taking.
func (f *feed) refill() {
	select {
	case <-f.opened:
		if f.openErr == nil {
			f.at.Refill()
		}
	default: // open does it
	}
}

// join waits until the transport has confirmed the subscription. If it has, a
// context that is over does not matter: a drain that was cut must still close it.
func (f *feed) join(ctx context.Context) error {
	select {
	case <-f.opened:
		return f.openErr
	default:
	}
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
	err := f.at.Ready(ctx)
	if err == nil {
		f.proven.Store(true)
	}
	return err
}

// arrival is a message and the record of its event, in one piece.
type arrival struct {
	m adapter.Message
	r record
}

// deliver is called by the transport, one message at a time.
func (f *feed) deliver(d adapter.Delivery) {
	switch {
	case f.key.durable:
	case f.key.group == "" && f.isEcho(&d):
		return // our own echo: subscribers here had it when it was published
	case f.key.group != "" && slices.Contains(d.Served, f.key.served()):
		return // the publishing process is of this group and took it itself
	}
	f.active.Mark(activity.Now())
	a := &arrival{m: d.Message}
	e, ctx := f.bus.received(&a.r, &a.m, d.Attempt), withHeader(context.Background(), &a.m)
	a.r.settle, a.r.seq = d.Settle, d.Sequence
	subs := f.subscriptions()
	if d.Reply != nil {
		ctx = e.asked(ctx, d.Reply, len(subs)+1)
		defer e.answered(nil) // and nobody answers if there is nobody
	}
	if d.Settle == nil && d.Expires.IsZero() && f.fast(subs, d.Attempt) && subs[0].lanes[0].offer(ctx, &e) == putOK {
		return // no user code, and nothing more allocated
	}
	f.deliverAll(ctx, e, &d, subs)
}

// fast reports whether all there is to do is to put the event into one queue.
func (f *feed) fast(subs []*Subscription, attempt int) bool {
	return len(subs) == 1 && subs[0].plain && attempt <= 1 && f.bus.watchers.Load() == 0
}

// deliverAll does whatever there is to do with an event.
func (f *feed) deliverAll(ctx context.Context, e Event, d *adapter.Delivery, subs []*Subscription) {
	if f.handOver(&e, d, subs) || !d.Expires.IsZero() && len(subs) > 0 && f.overdue(subs, e) {
		return
	}
	if len(subs) == 0 && d.Settle != nil {
		d.Settle.Nak(0)
	}
	if f.fast(subs, d.Attempt) && subs[0].lanes[0].offer(ctx, &e) == putOK {
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

// isEcho reports whether this process has published the message and its
// subscribers had it then. One that was delayed they had not.
func (f *feed) isEcho(d *adapter.Delivery) bool {
	return (d.Source == f.bus.source && d.NotBefore.IsZero()) || slices.Contains(d.Served, f.bus.source)
}

func (f *feed) deliverTo(s *Subscription, ctx context.Context, e Event) {
	if !s.wants(e.Topic()) {
		if e.r.settle != nil {
			e.r.settle.Ack(func(error) {}) // nobody of the group wants it
		}
		e.answered(nil)
		return
	}
	if e.Attempt() > 1 {
		s.counts.redelivered.Add(1)
	}
	switch {
	case s.opts.Inline:
		if s.opts.Filter == nil {
			s.counts.inline.Add(1)
		}
		e.answered(s.call(&handlerContext{s.handlers, ctx}, e)) // reported by call
	default:
		// Nobody is to be told: a drop was counted and logged, and a durable event
		// that found no room went back.
		_ = s.put(s.lane(&e), ctx, &e)
	}
}

// tookAside counts an event that comes to no queue and no handler.
func (s *Subscription) tookAside(e *Event) {
	s.counts.aside.Add(1)
	if e.Attempt() > 1 {
		s.counts.redelivered.Add(1)
	}
}

// subscription is the transport's, once it is open; else nil.
func (f *feed) subscription() adapter.Subscription {
	if f == nil {
		return nil
	}
	select {
	case <-f.opened:
		return f.at
	default:
		return nil
	}
}

// lag is what the transport says of events that wait for the group.
func (f *feed) lag() (waiting uint64, known bool) {
	if l, ok := f.subscription().(adapter.Lagger); ok {
		return l.Lag()
	}
	return 0, false
}

// missing is what the transport says of events that were lost.
func (f *feed) missing() uint64 {
	if m, ok := f.subscription().(adapter.MissCounter); ok {
		return m.Missing()
	}
	return 0
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
