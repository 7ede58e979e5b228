package tidings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/goid"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/topic"
)

// Bus routes events to subscribers in this process and, once a transport is
// attached, beyond it. All methods may be called concurrently, and from inside
// any handler, in every state.
type Bus struct {
	opts     Options
	source   string
	idPrefix string
	around   PublishFunc // Options.PublishMiddleware around publishInside; nil: none
	state    atomic.Uint32
	workers  sync.Map // goroutine id → *Subscription, of those that run handlers
	work     tracker  // background tasks
	flights  flights  // of PublishAsync
	hung     hungHandlers
	tries    tries
	names    names
	dropped  atomic.Uint64 // events, by all subscriptions there ever were
	watchers atomic.Int64  // of Debugger.Watch
	measured atomic.Uint64 // calls of inline handlers that took the slower way; see tooDeep

	mu       sync.Mutex // guards what follows, and names; never held while user code or a transport runs
	subs     map[*Subscription]struct{}
	stopping map[*Subscription]struct{} // ending, with handlers that may still run
	order    int64
	patterns trie[*Subscription] // subs by pattern
	fresh    trie[*entry]        // topics whose view is not stale
	feeds    map[feedKey]*feed
	hosts    map[hostKey]*host
	suspects chan struct{} // has room for one: the turn of suspicious durable events
	adapter  adapter.Adapter
	attached bool   // Attach was called
	remote   bool   // publishing goes to the adapter
	named    int    // entries that may be forgotten again
	numbers  uint64 // given to counts of events, for their ids
	drained  chan struct{}
	last     []*Subscription // those that the drain ends: they stay visible
	drainErr error
}

const (
	stateOpen uint32 = iota
	stateDraining
	stateClosed
)

// New makes a bus in process. The zero Options work; the error names the field
// that does not. The bus starts no goroutine until it is used.
func New(o Options) (*Bus, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Bus{opts: o, source: "//" + o.App + "/" + o.Instance, idPrefix: nonce() + "-",
		subs: map[*Subscription]struct{}{}, stopping: map[*Subscription]struct{}{}, feeds: map[feedKey]*feed{},
		hosts: map[hostKey]*host{}, suspects: make(chan struct{}, 1)}
	b.hung.bus, b.flights.bus = b, b
	for _, wrap := range slices.Backward(o.PublishMiddleware) {
		if b.around == nil {
			b.around = b.publishInside
		}
		if b.around = wrap(b.around); b.around == nil {
			return nil, &Error{Op: "new", Err: errors.New("Options.PublishMiddleware returned nil instead of a PublishFunc")}
		}
	}
	return b, nil
}

// setState also makes publishers notice. mu is held.
func (b *Bus) setState(state uint32) {
	b.state.Store(state)
	b.allChanged()
}

// add makes the subscription known; join waits for the transport.
func (b *Bus) add(s *Subscription) (join func(context.Context) error, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.state.Load() {
	case stateClosed:
		return nil, ErrClosed
	case stateDraining:
		return nil, ErrDraining
	}
	if s.opts.Durable {
		if err := b.checkDurable(s); err != nil {
			return nil, err
		}
	}
	b.order++
	if s.order = b.order; s.opts.Prepend {
		s.order = -b.order
	}
	s.start()
	b.subs[s] = struct{}{}
	if s.watcher {
		b.watchers.Add(1)
	}
	b.patterns.insert(s.pattern, s)
	b.changed(s.pattern)
	if b.adapter == nil || isOwn(s.pattern) || s.watcher {
		return func(context.Context) error { return nil }, nil
	}
	f, made := b.feedOf(s)
	if a := b.adapter; made {
		return func(ctx context.Context) error { return f.open(ctx, a) }, nil
	}
	return f.join, nil
}

// checkDurable: the routes of this app cover the pattern, or the broker may know
// better. mu is held.
func (b *Bus) checkDurable(s *Subscription) error {
	for other := range b.subs {
		if other.key == s.key {
			return fmt.Errorf("group %q has a durable subscription to this pattern in this process already: give one of them another Group", s.opts.Group)
		}
	}
	if b.adapter != nil {
		return nil
	}
	for _, r := range b.opts.Routes {
		if r.Class == Durable && topic.Covers(r.Pattern, s.pattern) {
			return nil
		}
	}
	return fmt.Errorf("%w: add Route{Pattern: %q, Class: Durable} to Options.Routes, or %s=durable to TIDINGS_ROUTES", ErrNotDurable, s.pattern, s.pattern)
}

// feedOf joins the feed of the subscription's group and pattern. mu is held.
func (b *Bus) feedOf(s *Subscription) (f *feed, made bool) {
	f = b.feeds[s.key]
	if made = f == nil; made {
		f = newFeed(b, s.key)
		b.feeds[s.key] = f
	}
	f.members[s] = struct{}{}
	f.subs.Store(nil)
	s.joined = f
	return f, made
}

// remove makes the subscription unknown; events on their way may still come.
func (b *Bus) remove(s *Subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.subs[s]; !known {
		return
	}
	delete(b.subs, s)
	if s.watcher {
		b.watchers.Add(-1)
	}
	b.patterns.remove(s.pattern, s)
	b.unhost(s)
	b.changed(s.pattern)
	f := s.joined
	if f == nil {
		return
	}
	if s.lastOfFeed = len(f.members) == 1; s.lastOfFeed {
		// The feed still delivers to s what the transport has already sent.
		delete(b.feeds, f.key)
		return
	}
	delete(f.members, s)
	f.subs.Store(nil)
}

func (b *Bus) setStopping(s *Subscription, yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if yes {
		b.stopping[s] = struct{}{}
	} else {
		delete(b.stopping, s)
	}
}

// cancelStopping ends the contexts of handlers whose subscriptions are no members
// any more.
func (b *Bus) cancelStopping() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.stopping {
		s.cancel()
	}
}

func (b *Bus) transport() adapter.Adapter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adapter
}

// report tells the log and OnError.
func (b *Bus) report(ctx context.Context, err error) {
	b.tell(ctx, err, func() { b.opts.Logger.ErrorContext(ctx, err.Error()) })
}

// tell is report with a log line of its own.
func (b *Bus) tell(ctx context.Context, err error, log func()) {
	b.inside(func() {
		log()
		if b.opts.OnError == nil {
			return
		}
		if p := protect(func() error { b.opts.OnError(ctx, err); return nil }); p != nil {
			b.opts.Logger.ErrorContext(ctx, "tidings: Options.OnError failed", "err", p)
		}
	})
}

// inside runs user code where a Drain must not wait, since it would wait for its
// own caller: in OnError and in the log's handler, and where a transport delivers.
func (b *Bus) inside(f func()) {
	id := goid.ID()
	if _, already := b.workers.LoadOrStore(id, (*Subscription)(nil)); !already {
		defer b.workers.Delete(id)
	}
	f()
}

// background runs f, which Drain waits for.
func (b *Bus) background(f func()) {
	b.work.add()
	loop.Go(func(context.Context) {
		defer b.work.done()
		f()
	})
}

// members is a snapshot of what the bus has to end, in the order it came.
func (b *Bus) members() ([]*Subscription, []*feed, adapter.Adapter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	subs := slices.SortedFunc(maps.Keys(b.subs), func(x, y *Subscription) int { return cmp.Compare(x.order, y.order) })
	return subs, slices.Collect(maps.Values(b.feeds)), b.adapter
}

// tracker counts what must be finished before the bus has drained.
type tracker struct {
	n    atomic.Int64
	ever atomic.Uint64
	mu   sync.Mutex
	zero chan struct{} // closed when n is seen to be 0; nil when nobody waits
}

func (t *tracker) add() { t.n.Add(1); t.ever.Add(1) }

func (t *tracker) done() {
	if t.n.Add(-1) != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.zero != nil && t.n.Load() == 0 {
		close(t.zero)
		t.zero = nil
	}
}

// idle returns a channel that is closed once nothing is to be done.
func (t *tracker) idle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.zero == nil {
		t.zero = make(chan struct{})
	}
	c := t.zero
	if t.n.Load() == 0 {
		close(t.zero)
		t.zero = nil
	}
	return c
}
