package tidings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/topic"
)

// Bus routes events to subscribers in this process and, once a transport is
// attached, beyond it. All methods may be called concurrently, and from inside
// any handler, in every state.
type Bus struct {
	opts      Options
	source    string
	idPrefix  string
	idCounter atomic.Uint64

	// topics holds an entry for each topic in use, so that publishing is one look-up
	// and one atomic load; changes rebuild the views they touch.
	topics sync.Map // string → *entry

	state   atomic.Uint32
	workers sync.Map // goroutine id → *Subscription, of those that run handlers
	work    tracker  // events taken and not yet handled, and background tasks

	mu       sync.Mutex // guards what follows; never held while user code or a transport runs
	subs     []*Subscription
	feeds    map[feedKey]*feed
	adapter  adapter.Adapter
	attached bool // Attach was called
	remote   bool // publishing goes to the adapter
	named    int  // entries that may be forgotten again
	drained  chan struct{}
	drainErr error
}

const (
	stateOpen uint32 = iota
	stateDraining
	stateClosed
)

// maxNamed bounds the topics remembered by name alone: published names that
// contain ids must not accumulate.
const maxNamed = 4096

// entry is one topic.
type entry struct {
	bus    *Bus
	topic  string
	view   atomic.Pointer[view] // nil: nobody listens, nothing to do
	pinned bool                 // a typed topic holds it; guarded by bus.mu
	typ    any                  // *T of the typed topic; guarded by bus.mu
}

// view is where events of one topic go: an immutable snapshot.
type view struct {
	locals  []*Subscription
	publish adapter.Class // 0: stays in this process
	instr   adapter.Class // the same for instrumented events
}

// New makes a bus in process. The zero Options work; the error names the field
// that does not. The bus starts no goroutine until it is used.
func New(o Options) (*Bus, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Bus{opts: o, source: "//" + o.App + "/" + o.Instance, idPrefix: nonce() + "-",
		feeds: map[feedKey]*feed{}}, nil
}

// Publish hands payload to everybody who listens to the topic, here and beyond.
// It returns nil if and only if every route and queue has accepted the event; an
// [*Error] says by Accepted whether anything has. What handlers return is not the
// publisher's: it goes to Options.OnError.
//
// The payload is frozen from now on: local subscribers share it. ctx gives
// handlers its values; cancelling it loses nothing that was accepted, but ends
// waiting for a full queue or for the broker.
func (b *Bus) Publish(ctx context.Context, topic string, payload any) error {
	e, err := b.entry(topic)
	if err != nil {
		return &Error{Op: "publish", Topic: topic, Err: err}
	}
	v := e.view.Load()
	if v == nil {
		return b.closedError(topic)
	}
	return e.publish(ctx, v, payload)
}

// closedError is what publishing to nobody returns.
func (b *Bus) closedError(topic string) error {
	if b.state.Load() == stateClosed {
		return &Error{Op: "publish", Topic: topic, Err: ErrClosed}
	}
	return nil
}

// Listening reports whether publishing to the topic would reach anybody here or
// leave the process: ask before building an expensive payload.
func (b *Bus) Listening(topic string) bool {
	e, err := b.entry(topic)
	return err == nil && e.view.Load() != nil
}

func (e *entry) publish(ctx context.Context, v *view, payload any) error {
	r := &record{bus: e.bus, topic: e.topic, payload: payload, time: time.Now()}
	return e.bus.emit(ctx, v, r, v.publish)
}

// emit hands an event to the transport first, then to local subscribers.
func (b *Bus) emit(ctx context.Context, v *view, r *record, class adapter.Class) error {
	if err := b.admit(); err != nil {
		return &Error{Op: "publish", Topic: r.topic, Err: err}
	}
	if class == 0 {
		return b.deliverLocal(ctx, v.locals, r, nil, false)
	}
	m, err := r.message()
	if err != nil {
		return &Error{Op: "publish", Topic: r.topic, Err: err}
	}
	locals, gates := takeLocals(v.locals, m)
	if err := b.transport().Publish(ctx, m, class); err != nil {
		for _, s := range gates {
			s.gate.leave()
		}
		return &Error{Op: "publish", Topic: r.topic, Err: err}
	}
	return b.deliverLocal(ctx, locals, r, gates, true)
}

// takeLocals notes on the message which groups this process serves itself. A
// subscription that is about to end leaves the event to others of its group.
func takeLocals(subs []*Subscription, m *adapter.Message) (locals, gates []*Subscription) {
	locals = make([]*Subscription, 0, len(subs))
	for _, s := range subs {
		if !s.opts.Inline {
			if !s.gate.enter() {
				continue
			}
			gates = append(gates, s)
		}
		locals = append(locals, s)
		if key := s.key.served(); s.key.group != "" && !slices.Contains(m.Served, key) {
			m.Served = append(m.Served, key)
		}
	}
	return locals, gates
}

func (b *Bus) deliverLocal(ctx context.Context, subs []*Subscription, r *record, gated []*Subscription, accepted bool) error {
	if b.opts.AlwaysEncode && len(subs) > 0 && r.msg == nil {
		m, err := r.message()
		if err != nil {
			return &Error{Op: "publish", Topic: r.topic, Accepted: accepted, Err: err}
		}
		r = b.received(m)
	}
	var errs []error
	e := Event{r, 1}
	for _, s := range subs {
		if err := s.deliver(ctx, e, nil); err != nil {
			errs = append(errs, err)
		} else {
			accepted = true
		}
	}
	for _, s := range gated {
		s.gate.leave()
	}
	if len(errs) > 0 {
		return &Error{Op: "publish", Topic: r.topic, Accepted: accepted, Err: errors.Join(errs...)}
	}
	return nil
}

// admit refuses events once the bus ends; handlers may publish until it has
// drained.
func (b *Bus) admit() error {
	switch b.state.Load() {
	case stateClosed:
		return ErrClosed
	case stateDraining:
		if !b.insideHandler() {
			return ErrDraining
		}
	}
	return nil
}

// entry finds or makes the entry of a topic.
func (b *Bus) entry(name string) (*entry, error) {
	if e, ok := b.topics.Load(name); ok {
		return e.(*entry), nil
	}
	if err := topic.Check(name); err != nil {
		return nil, err
	}
	if isOwn(name) {
		return nil, fmt.Errorf("%w %q: topics that begin with tidings. are the bus's own", ErrTopic, name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.makeEntry(name), nil
}

// makeEntry is called with mu held.
func (b *Bus) makeEntry(name string) *entry {
	if e, ok := b.topics.Load(name); ok {
		return e.(*entry)
	}
	if b.named == maxNamed {
		b.forgetNamed()
	}
	b.named++
	e := &entry{bus: b, topic: strings.Clone(name)}
	e.view.Store(b.look(e.topic))
	b.topics.Store(e.topic, e)
	return e
}

// forgetNamed drops the entries that no typed topic holds; the next publish
// makes them again. mu is held.
func (b *Bus) forgetNamed() {
	b.topics.Range(func(k, e any) bool {
		if !e.(*entry).pinned {
			b.topics.Delete(k)
		}
		return true
	})
	b.named = 0
}

// look computes a view. mu is held.
func (b *Bus) look(name string) *view {
	v := &view{}
	for _, s := range b.subs {
		if matches(s.pattern, name) && !(s.opts.Durable && b.remote) {
			v.locals = append(v.locals, s)
		}
	}
	if b.remote && !isOwn(name) {
		v.publish, v.instr = b.classes(name)
	}
	if len(v.locals) == 0 && v.publish == 0 && v.instr == 0 {
		return nil
	}
	return v
}

// classes applies the routes: without any, what is published is live and what is
// instrumented stays here.
func (b *Bus) classes(name string) (publish, instr adapter.Class) {
	if len(b.opts.Routes) == 0 {
		return adapter.Live, 0
	}
	for _, r := range b.opts.Routes {
		if !topic.Match(r.Pattern, name) {
			continue
		}
		switch r.Class {
		case Live:
			return adapter.Live, adapter.Live
		case Durable:
			return adapter.Durable, adapter.Durable
		default:
			return 0, 0
		}
	}
	return 0, 0
}

// changed rebuilds the views that a pattern touches. mu is held.
func (b *Bus) changed(pattern string) {
	b.topics.Range(func(_, v any) bool {
		if e := v.(*entry); matches(pattern, e.topic) {
			e.view.Store(b.look(e.topic))
		}
		return true
	})
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
	s.start()
	b.subs = append(b.subs, s)
	b.changed(s.pattern)
	if b.adapter == nil || isOwn(s.pattern) {
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
	for _, other := range b.subs {
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
	subs := append(slices.Clone(*f.subs.Load()), s)
	f.subs.Store(&subs)
	s.joined = f
	return f, made
}

// remove makes the subscription unknown; events on their way may still come.
func (b *Bus) remove(s *Subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.subs, s)
	if i < 0 {
		return
	}
	b.subs = slices.Concat(b.subs[:i], b.subs[i+1:])
	b.changed(s.pattern)
	f := s.joined
	if f == nil {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(*f.subs.Load()), func(o *Subscription) bool { return o == s })
	if s.lastOfFeed = len(rest) == 0; s.lastOfFeed {
		// The feed still delivers to s what the transport has already sent.
		delete(b.feeds, f.key)
		return
	}
	f.subs.Store(&rest)
}

func (b *Bus) transport() adapter.Adapter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adapter
}

// report tells OnError and the log; it is called with no lock held.
func (b *Bus) report(ctx context.Context, err error) {
	b.opts.Logger.ErrorContext(ctx, err.Error())
	if b.opts.OnError == nil {
		return
	}
	if p := protect(func() error { b.opts.OnError(ctx, err); return nil }); p != nil {
		b.opts.Logger.ErrorContext(ctx, "tidings: Options.OnError failed", "err", p)
	}
}

// background runs f, which Drain waits for.
func (b *Bus) background(f func()) {
	b.work.add()
	loop.Go(func(context.Context) {
		defer b.work.done()
		f()
	})
}

// tracker counts what must be finished before the bus has drained.
type tracker struct {
	n    atomic.Int64
	mu   sync.Mutex
	zero chan struct{} // closed when n is seen to be 0; nil when nobody waits
}

func (t *tracker) add() { t.n.Add(1) }

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

// isOwn reports whether a topic or pattern is one of the bus's own events.
func isOwn(name string) bool { return strings.HasPrefix(name, "tidings.") }

// matches: the bus's own events are only for those who ask for them by name.
func matches(pattern, name string) bool {
	return isOwn(pattern) == isOwn(name) && topic.Match(pattern, name)
}
