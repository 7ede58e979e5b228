package tidings

import (
	"context"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/internal/topic"
)

// Topic is a topic whose payloads are all T, checked by the compiler. It is
// resolved once: publishing looks nothing up, and costs one atomic load when
// nobody listens. Copies are the same topic; the zero Topic is of no use.
type Topic[T any] struct {
	e *entry // also in t; from here Publish is just small enough to be inlined
	t *typedTopic[T]
}

// typedTopic gives payloads to typed handlers without unpacking them from an
// interface.
type typedTopic[T any] struct {
	view atomic.Pointer[typedView[T]] // follows the view of the entry; nil as that is
	send func(context.Context, T) error
	e    *entry
}

// typedView is a view and its inline handlers, as they take T.
type typedView[T any] struct {
	*view
	handlers []typedHandler[T]
	direct   bool  // there is nothing to do but to call them
	lone     *lone // there is nothing to do but to put it here
}

// lone is the only ring that events of a topic go to. It counts them, under the
// lock that it needs anyway: counting at the topic too cost a sixth of publishing.
type lone struct {
	*ring
	view  *view
	epoch uint64 // of the ring
	plain record // read by workers while n changes: not on one line with it
	_     [64]byte
	n     uint64 // guarded by the ring's lock
}

// count is what the topic has not counted.
func (l *lone) count() uint64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// offer makes an event where it waits, if the ring has room and the readers that
// the view knows.
func (l *lone) offer(ctx context.Context, payload any) (num uint64, ok bool) {
	r := l.ring
	r.mu.Lock()
	l.n++
	num = l.n << attemptBits
	if l.epoch != r.epoch || (r.tail >= r.limit && r.full()) {
		r.mu.Unlock()
		return num, false
	}
	it := r.slot(r.tail)
	it.ctx = ctx
	it.event.r = &l.plain
	it.event.payload = payload
	it.event.num = num
	r.pushed()
	r.mu.Unlock()
	return num, true
}

// put is for an event that offer would not take.
func (l *lone) put(ctx context.Context, e Event) error {
	errs := l.view.enqueueFrom(ctx, &e, 0)
	if errs == nil {
		return nil
	}
	return &Error{Op: "publish", Topic: e.Topic(), Accepted: len(l.view.queued) > len(errs), Err: join(errs)}
}

type typedHandler[T any] = func(context.Context, Event, T) error

// NewTopic makes a typed topic on the [Default] bus. It panics on a bad name, and
// on a name that is taken with another type: both are mistakes in the program. It
// is meant for package-level variables.
func NewTopic[T any](name string) Topic[T] { return newTopic[T](Default(), name) }

// On is the same topic on another bus. It panics if that bus has the name with
// another type.
func (t Topic[T]) On(b *Bus) Topic[T] { return newTopic[T](b, t.Name()) }

// Name is what it was made with.
func (t Topic[T]) Name() string { return t.e.topic }

func newTopic[T any](b *Bus, name string) Topic[T] {
	err := topic.Check(name)
	if err == nil && isOwn(name) {
		err = fmt.Errorf("%w %q: topics that begin with tidings. are the bus's own", ErrTopic, name)
	}
	if err != nil {
		panic(&Error{Op: "new topic", Topic: name, Err: err})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.makeEntry(name)
	if e.typed == nil {
		t := &typedTopic[T]{e: e}
		t.send, e.typed = t.publisher(), t
		e.typed.follow(e.view.Load())
	}
	t, same := e.typed.(*typedTopic[T])
	if !same {
		panic(&Error{Op: "new topic", Topic: name, Err: fmt.Errorf("it is taken with the type %s, not %s", e.typed.payload(), reflect.TypeFor[T]())})
	}
	return Topic[T]{e, t}
}

// payload names T.
func (t *typedTopic[T]) payload() string { return reflect.TypeFor[T]().String() }

// follow takes over what has become of the entry's view. The bus's mu is held.
func (t *typedTopic[T]) follow(v *view) {
	t.e.count.Add(t.alone())
	if v == nil {
		t.view.Store(nil)
		return
	}
	tv := &typedView[T]{view: v}
	if tv.direct = v.fast && len(v.queued) == 0; tv.direct {
		for _, s := range v.inline {
			h, ok := s.typed.(typedHandler[T])
			if !ok {
				h = func(ctx context.Context, e Event, _ T) error { return s.handler(ctx, e) }
			}
			tv.handlers = append(tv.handlers, h)
		}
	}
	if v.fast && len(v.inline) == 0 && len(v.shares) == 1 && v.shares[0].ring != nil {
		h := &v.shares[0]
		tv.lone = &lone{ring: h.ring, view: v, epoch: h.epoch, plain: t.e.record()}
	}
	t.view.Store(tv)
}

// alone is how many events its view has counted itself.
func (t *typedTopic[T]) alone() uint64 {
	if tv := t.view.Load(); tv != nil {
		return tv.lone.count()
	}
	return 0
}

// Publish is [Bus.Publish] with the payload's type checked. It inlines to one
// atomic load when nobody listens.
func (t Topic[T]) Publish(ctx context.Context, v T) error {
	if t.e.view.Load() == nil {
		return nil
	}
	return t.t.send(ctx, v)
}

// publisher is entry.publish for typed handlers. It is one piece, and a function
// value, because each call less counts: one costs as much as a handler.
func (t *typedTopic[T]) publisher() func(context.Context, T) error {
	e := t.e
	return func(ctx context.Context, v T) error {
		tv := t.view.Load()
		if tv == nil || e.stamp.Load() != 0 {
			return e.publish(ctx, v)
		}
		if l := tv.lone; l != nil {
			num, ok := l.offer(ctx, v)
			if ok {
				return nil
			}
			return l.put(ctx, Event{r: &l.plain, payload: v, num: num})
		}
		if !tv.direct {
			return e.publish(ctx, v)
		}
		n := e.count.Add(1)
		num := n << attemptBits
		if sampled(n) {
			tv.run(&dispatch{ctx: ctx, ev: Event{r: &e.plain, payload: v, num: num}})
			return nil
		}
		i, finished := 0, false
		defer func() {
			if !finished {
				tv.unfinished(&dispatch{ctx: ctx, ev: Event{r: &e.plain, payload: v, num: num}, next: i}, recover())
			}
		}()
		handlers, ev := tv.handlers, Event{r: &e.plain, payload: v, num: num}
		for ; i < len(handlers); i++ {
			if err := handlers[i](ctx, ev, v); err != nil {
				tv.inline[i].failed(ctx, ev, err)
			}
		}
		finished = true
		return nil
	}
}

// Instrument is [Bus.Instrument] with the payload's type checked.
func (t Topic[T]) Instrument(ctx context.Context, v T, fn func(context.Context) error) error {
	if t.e.view.Load() == nil && fn != nil {
		return fn(ctx)
	}
	return t.t.instrument(ctx, v, fn)
}

func (t *typedTopic[T]) instrument(ctx context.Context, v T, fn func(context.Context) error) error {
	tv := t.view.Load()
	if tv == nil || !tv.direct || fn == nil {
		return t.e.instrument(ctx, v, fn)
	}
	return tv.time(ctx, t.e, v, fn)
}

// time is entry.time for typed handlers.
func (tv *typedView[T]) time(ctx context.Context, e *entry, v T, fn func(context.Context) error) error {
	start, returned := monotonic(), false
	defer func() {
		if !returned {
			e.blockDied(ctx, tv.view, v, start, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	if err != nil || e.bus.state.Load() != stateOpen {
		e.timed(ctx, tv.view, v, start, err)
		return err
	}
	ev := Event{r: &e.plain, payload: v, start: start, dur: time.Duration(monotonic() - start), num: e.count.Add(1)<<attemptBits | instrumented}
	if sampled(ev.num >> attemptBits) {
		tv.run(&dispatch{ctx: ctx, ev: ev})
		return nil
	}
	i, finished := 0, false
	defer func() {
		if !finished {
			tv.unfinished(&dispatch{ctx: ctx, ev: ev, next: i}, recover())
		}
	}()
	for handlers := tv.handlers; i < len(handlers); i++ {
		if err := handlers[i](ctx, ev, v); err != nil {
			tv.inline[i].failed(ctx, ev, err)
		}
	}
	finished = true
	return nil
}

// Subscribe is [Bus.Subscribe] to this topic. A remote payload that does not
// decode into T is a handler error that no retry can mend.
func (t Topic[T]) Subscribe(ctx context.Context, h func(context.Context, Event, T) error, o *SubscribeOptions) (*Subscription, error) {
	b := t.e.bus
	if h == nil {
		return b.Subscribe(ctx, t.Name(), nil, o) // says what is wrong
	}
	s := &Subscription{handler: func(ctx context.Context, e Event) error {
		if v, ok := e.payload.(T); ok && e.r.msg == nil {
			return h(ctx, e, v)
		}
		return decoded(ctx, e, h)
	}}
	if len(b.opts.Middleware) == 0 {
		s.typed = h
		s.run = func(w *worker) { runTyped(w, h) }
	}
	return b.subscribeHandler(ctx, t.Name(), s, o)
}

// runTyped is Subscription.runHandler for a typed handler.
func runTyped[T any](w *worker, h typedHandler[T]) {
	for ; w.next < len(w.batch); w.next++ {
		it := &w.batch[w.next]
		if w.special(it) {
			w.slow(it)
			continue
		}
		if !sameContext(it.ctx, w.given) {
			w.meet(it.ctx)
		}
		var err error
		if v, ok := it.event.payload.(T); ok && it.event.r.msg == nil {
			err = h(w.made, it.event, v)
		} else {
			err = decoded(w.made, it.event, h)
		}
		if err != nil {
			w.failed(it, err)
		}
	}
}

// decoded is apart from the way of local events, which would allocate for what
// the decoder is given a pointer to.
func decoded[T any](ctx context.Context, e Event, h func(context.Context, Event, T) error) error {
	var v T
	err := e.Decode(&v)
	if err != nil && e.r.msg == nil {
		return Permanent(fmt.Errorf("%s was published as %T, by name; the payload of the topic is %s", e.Topic(), e.payload, reflect.TypeFor[T]()))
	}
	if err != nil {
		return Permanent(fmt.Errorf("cannot decode %s from %s into %T: %w", e.Topic(), e.Source(), v, err))
	}
	return h(ctx, e, v)
}
