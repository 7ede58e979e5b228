package tidings

import (
	"context"
	"errors"
	"runtime/debug"
	"time"
)

// Instrument runs fn and then publishes an event with its duration and error. It
// returns exactly fn's error and panics again with fn's panic; nothing that a
// subscriber or the transport does changes that: such failures go to
// Options.OnError. When nobody listens it only calls fn.
func (b *Bus) Instrument(ctx context.Context, topic string, payload any, fn func(context.Context) error) error {
	e, err := b.entry(topic)
	if err != nil {
		b.report(ctx, &Error{Op: "instrument", Topic: topic, Err: err})
		return fn(ctx)
	}
	v := e.view.Load()
	if v == nil || (len(v.locals) == 0 && v.instr == 0) {
		return fn(ctx)
	}
	return e.instrument(ctx, v, payload, fn)
}

// errGoexit marks a block that ended its goroutine instead of returning.
var errGoexit = errors.New("the instrumented block ended its goroutine (runtime.Goexit)")

// instrument fixes the subscribers when the block begins, as the original does.
func (e *entry) instrument(ctx context.Context, v *view, payload any, fn func(context.Context) error) (err error) {
	r := &record{bus: e.bus, topic: e.topic, payload: payload, time: time.Now(), err: errGoexit}
	defer func() {
		r.duration = time.Since(r.time)
		if r.err == errGoexit {
			if p := recover(); p != nil {
				r.err = &PanicError{Value: p, Stack: debug.Stack()}
				defer panic(p)
			}
		}
		e.bus.emitInstrumented(ctx, v, r)
	}()
	err = fn(ctx)
	r.err = err
	return err
}

// emitInstrumented publishes what was instrumented; its failures have no caller.
func (b *Bus) emitInstrumented(ctx context.Context, v *view, r *record) {
	if err := b.emit(ctx, v, r, v.instr); err != nil {
		b.report(ctx, err)
	}
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
	e, ok := b.topics.Load(topic)
	if !ok {
		b.mu.Lock()
		e = b.makeEntry(topic)
		b.mu.Unlock()
	}
	v := e.(*entry).view.Load()
	if v == nil {
		return
	}
	r := &record{bus: b, topic: topic, payload: payload, time: time.Now()}
	b.background(func() {
		if err := b.deliverLocal(context.Background(), v.locals, r, nil, false); err != nil {
			b.report(context.Background(), err)
		}
	})
}
