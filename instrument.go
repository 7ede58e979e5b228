package tidings

import (
	"context"
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// Instrument runs fn and then publishes an event with its duration and error. It
// returns exactly fn's error and panics again with fn's panic; nothing that a
// subscriber or the transport does changes that: such failures go to
// Options.OnError. When nobody listens it only calls fn. Who listens is fixed
// when fn begins. A nil fn does nothing, and the event is sent.
//
// A payload that fn is to fill in is a pointer or a map; it is frozen once fn has
// returned.
func (b *Bus) Instrument(ctx context.Context, topic string, payload any, fn func(context.Context) error) error {
	e, err := b.entry(topic)
	if err != nil {
		b.report(ctx, &Error{Op: "instrument", Topic: topic, Err: err})
		return callBlock(ctx, fn)
	}
	return e.instrument(ctx, payload, fn)
}

func callBlock(ctx context.Context, fn func(context.Context) error) error {
	if fn == nil {
		return nil
	}
	return fn(ctx)
}

var (
	// errGoexit marks a block that ended its goroutine instead of returning.
	errGoexit        = errors.New("the instrumented block ended its goroutine (runtime.Goexit)")
	errGoexitHandler = errors.New("the handler ended its goroutine (runtime.Goexit)")
)

func (e *entry) instrument(ctx context.Context, payload any, fn func(context.Context) error) error {
	v := e.view.Load()
	switch {
	case v == nil:
		return callBlock(ctx, fn)
	case v.fast && fn != nil:
		return e.time(ctx, v, payload, fn)
	default:
		return e.instrumentSlow(ctx, payload, fn)
	}
}

// time is Instrument when there is nobody but subscribers of this process.
func (e *entry) time(ctx context.Context, v *view, payload any, fn func(context.Context) error) error {
	start, returned := monotonic(), false
	defer func() {
		if !returned {
			e.blockDied(ctx, v, payload, start, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	e.timed(ctx, v, payload, start, err)
	return err
}

// blockDied publishes the event of a block that did not return, and panics again.
func (e *entry) blockDied(ctx context.Context, v *view, payload any, start int64, p any) {
	e.timed(ctx, v, payload, start, blockError(p))
	if p != nil {
		panic(p)
	}
}

// blockError is the error of a block that did not return: of its panic, or of
// ending its goroutine.
func blockError(p any) error {
	if p == nil {
		return errGoexit
	}
	return &PanicError{Value: p, Stack: debug.Stack()}
}

func (e *entry) timed(ctx context.Context, v *view, payload any, start int64, err error) {
	d := dispatch{ctx: ctx}
	d.ev.dur = time.Duration(monotonic() - start)
	d.ev.r, d.ev.payload, d.ev.start = &e.plain, payload, start
	d.ev.num = e.count.Add(1)<<attemptBits | instrumented
	if err != nil {
		d.ev.r = &record{bus: e.bus, entry: e, number: e.plain.number, err: err}
	}
	if e.bus.state.Load() != stateOpen {
		_ = e.finish(ctx, 0, route{inline: v.inline, queued: v.queued}, d.ev) // reported; a view that is fast is not strict
		return
	}
	if len(v.queued) > 0 {
		if accepted, err := v.enqueue(&d); err != nil {
			e.bus.report(ctx, &Error{Op: "instrument", Topic: e.topic, Accepted: accepted, Err: err})
		}
	}
	v.run(&d)
}

func (e *entry) instrumentSlow(ctx context.Context, payload any, fn func(context.Context) error) (err error) {
	inner, s := e.begin(ctx, payload)
	if s == nil {
		return callBlock(ctx, fn)
	}
	if s.startErr != nil {
		return s.startErr
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		p := recover()
		if strict := s.end(blockError(p)); strict != nil {
			e.bus.report(ctx, strict) // the panic goes on; it cannot be an error as well
		}
		if p != nil {
			panic(p)
		}
	}()
	err = callBlock(inner, fn)
	returned = true
	if strict := s.end(err); strict != nil {
		return strict
	}
	return err
}

// Span is an instrumented block that is not a function: it begins with
// [Bus.Begin]. The nil Span is one that nobody listens to. End may be called from
// another goroutine.
type Span struct {
	e        *entry
	ctx      context.Context
	event    Event
	to       route
	class    adapter.Class
	ended    atomic.Bool
	startErr error // of a Start, on a strict bus
}

// Begin begins what [Span.End] ends, where [Bus.Instrument] cannot be used since
// there is no function to wrap. Who listens is fixed here. Use the context for
// what happens inside. A span that is never ended is never published.
func (b *Bus) Begin(ctx context.Context, topic string, payload any) (context.Context, *Span) {
	e, err := b.entry(topic)
	if err != nil {
		b.report(ctx, &Error{Op: "instrument", Topic: topic, Err: err})
		return ctx, nil
	}
	inner, s := e.begin(ctx, payload)
	if s != nil && s.startErr != nil { // a strict bus; there is nobody else to tell
		b.report(ctx, s.startErr)
	}
	return inner, s
}

// End publishes the event, with its duration and err. Only the first call does;
// others are reported to Options.OnError.
func (s *Span) End(err error) {
	switch {
	case s == nil:
	case s.ended.Swap(true):
		s.e.bus.report(s.ctx, &Error{Op: "instrument", Topic: s.e.topic, Err: errors.New("the span was ended before")})
	default:
		if strict := s.end(err); strict != nil {
			s.e.bus.report(s.ctx, strict)
		}
	}
}

// begin returns nil when nobody listens.
func (e *entry) begin(ctx context.Context, payload any) (context.Context, *Span) {
	v := e.current()
	if v == nil || v == closedView || !v.wanted() {
		return ctx, nil
	}
	to := v.route(e.topic)
	if to.nobody() && v.instr == 0 {
		return ctx, nil
	}
	s := &Span{e: e, ctx: ctx, to: to, class: v.instr, event: e.newEvent(payload)}
	s.event.num |= instrumented
	if v.starts {
		s.ctx = s.start(ctx)
	}
	s.event.start = monotonic() // what Start did is not the block's time
	return s.ctx, s
}

// start shows the beginning to those who want to see it.
func (s *Span) start(outer context.Context) context.Context {
	shown := s.event // s.event's payload may still be filled in
	if s.e.bus.opts.Redact != nil {
		if err := s.e.bus.redact(&shown); err != nil {
			s.e.bus.report(outer, &Error{Op: "instrument", Topic: s.e.topic, Err: err})
			shown.payload = nil
		}
	}
	ctx := context.WithValue(outer, blockKey{}, &block{event: shown, outer: Parent(outer, s.event)})
	var errs []error
	for _, sub := range s.to.inline {
		if sub.opts.Start == nil {
			continue
		}
		if err := protect(func() error {
			if c := sub.opts.Start(ctx, shown); c != nil {
				ctx = c
			}
			return nil
		}); err != nil {
			sub.failed(ctx, shown, err)
			if s.e.bus.opts.Strict {
				errs = append(errs, err)
			}
		}
	}
	if errs != nil {
		s.startErr = &Error{Op: "instrument", Topic: s.e.topic, Err: join(errs)}
	}
	return ctx
}

// end publishes; the error is what a strict bus returns.
func (s *Span) end(err error) error {
	s.event.dur = time.Duration(monotonic() - s.event.start)
	if err != nil {
		s.event.r = &record{bus: s.e.bus, entry: s.e, number: s.e.plain.number, err: err}
	}
	return s.e.finish(s.ctx, s.class, s.to, s.event)
}

// finish publishes what was instrumented; its failures have no caller, but on a
// strict bus.
func (e *entry) finish(ctx context.Context, class adapter.Class, to route, ev Event) error {
	err := e.send(ctx, class, to, ev)
	if err == nil {
		return nil
	}
	if e.bus.opts.Strict {
		return errors.Join(err, ev.Err())
	}
	e.bus.report(ctx, err)
	return nil
}

// topicSettled is published once for each durable event of this process.
const topicSettled = "tidings.settled"

// Settled is the payload of "tidings.settled", an event that the bus makes about
// itself: the store has confirmed the acknowledgement of a durable event, or,
// with Err, will not. Such events never leave the process, and only patterns that
// begin with "tidings." get them.
type Settled struct {
	Event          Event
	Pattern, Group string
	Err            error
}

// announce publishes an event of the bus's own, on a goroutine of its own: it is
// called by the transport, which must not wait for user code.
func (b *Bus) announce(topic string, payload any) {
	e := b.names.load(topic)
	if e == nil {
		b.mu.Lock()
		e = b.makeEntry(topic)
		b.mu.Unlock()
	}
	v := e.current()
	if v == nil {
		return
	}
	to, ev := v.route(topic), e.newEvent(payload)
	b.background(func() {
		for _, err := range putEach(context.Background(), &ev, to.queued, nil) {
			b.report(context.Background(), &Error{Op: "publish", Topic: topic, Err: err})
		}
		for _, s := range to.inline {
			_ = s.call(context.Background(), ev) // reported by call
		}
	})
}
