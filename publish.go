package tidings

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// PublishFunc publishes: what publishing middleware wraps.
type PublishFunc func(ctx context.Context, topic string, payload any) error

// Publish hands payload to everybody who listens to the topic, here and beyond.
// It returns nil if and only if every route and queue has accepted the event; an
// [*Error] says by Accepted whether anything has. What handlers return is not the
// publisher's: it goes to Options.OnError.
//
// The payload is frozen from now on: local subscribers share it. ctx gives
// handlers its values; cancelling it loses nothing that was accepted, but ends
// waiting for a full queue or for the broker. A durable event that was not sent until
// then is not accepted; one that was sent and not acknowledged is not sent again, and
// the error wraps [ErrInDoubt], with Accepted false: it may be stored. With a spool it
// is on the disk, and Publish returns nil.
func (b *Bus) Publish(ctx context.Context, topic string, payload any) error {
	e, err := b.entry(topic)
	if err != nil {
		return &Error{Op: "publish", Topic: topic, Err: err}
	}
	if e.view.Load() == nil {
		return nil
	}
	return e.publish(ctx, payload)
}

// PublishEvent publishes an event that there is already: one made by [NewEvent],
// or one that a handler was given. It keeps its id, time, duration, error and
// source, and goes where its topic is routed. Subscribers cannot tell it from the
// first; those who must not handle an event twice know it by its id.
func (b *Bus) PublishEvent(ctx context.Context, ev Event) error {
	fail := func(err error) error { return &Error{Op: "publish", Topic: ev.Topic(), Err: err} }
	if ev.r == nil {
		return fail(errors.New("the event is the zero Event"))
	}
	e, err := b.entry(ev.Topic())
	if err != nil {
		return fail(err)
	}
	v := e.current()
	if v == closedView {
		return fail(ErrClosed)
	}
	delayed, err := ev.timing().check(v, time.Now())
	if err != nil {
		return fail(err)
	}
	if v == nil {
		return nil
	}
	r := &record{bus: b, topic: e.topic, id: ev.ID(), source: ev.Source(), time: ev.Time(), err: ev.Err(), msg: ev.r.msg, tags: ev.r.tags, times: ev.r.times}
	if r.tags != nil {
		ctx = WithTags(ctx, r.tags)
	}
	e.count.Add(1)
	out := Event{payload: ev.payload, r: r, dur: ev.Duration(), num: ev.num & instrumented}
	if !delayed {
		return e.send(ctx, v.publish, v.route(e.topic), out)
	}
	if err := e.sendLater(ctx, out); err != nil {
		return fail(err)
	}
	return nil
}

// sampled reports whether the n-th call of handlers is measured. The clocks of one
// in 128 took a quarter of the time of all.
func sampled(n uint64) bool { return n%1024 == 0 || n <= 64 }

// publish is the way of most events; what needs more than a call or a queue takes
// the slow one.
func (e *entry) publish(ctx context.Context, payload any) error {
	v := e.view.Load()
	if v == nil {
		return nil
	}
	if !v.fast {
		return e.publishSlow(ctx, payload)
	}
	d := dispatch{ctx: ctx}
	e.fill(&d.ev, payload)
	if len(v.queued) > 0 {
		if accepted, err := v.enqueue(&d); err != nil {
			v.run(&d)
			return &Error{Op: "publish", Topic: e.topic, Accepted: accepted || len(v.inline) > 0, Err: err}
		}
	}
	v.run(&d)
	return nil
}

// dispatch is one event on its way to the handlers of this process. It lives on
// the stack of who publishes, and is passed by reference: copying a value that was
// just written costs more than all the rest.
type dispatch struct {
	ctx      context.Context
	ev       Event
	next     int // of the inline handlers
	finished bool
}

// fill makes an event with its number, and with its time only if somebody asks
// for times.
func (e *entry) fill(ev *Event, payload any) {
	ev.r = &e.plain
	ev.payload = payload
	ev.num = e.count.Add(1) << attemptBits
	if s := e.stamp.Load(); s != 0 {
		ev.start = monotonic()
		e.learn(s)
	}
}

// learn counts down to where no time is taken any more.
func (e *entry) learn(s int32) {
	if s > 0 {
		e.stamp.CompareAndSwap(s, s-1)
	}
}

// run calls the inline handlers.
func (v *view) run(d *dispatch) {
	if sampled(d.ev.num >> attemptBits) {
		callInline(d.ctx, v.inline, d.ev, func(*Subscription, error) {})
		return
	}
	for d.next < len(v.inline) {
		v.runOn(d)
	}
}

// callInline is run with everything that options may ask for; done hears of each
// handler.
func callInline(ctx context.Context, subs []*Subscription, ev Event, done func(*Subscription, error)) {
	if len(subs) == 0 {
		return
	}
	if subs[0].bus.tooDeep(&ev) {
		for _, s := range subs {
			s.failed(ctx, ev, errTooDeep)
			done(s, errTooDeep)
		}
		return
	}
	for i, s := range subs {
		returned := false
		func() {
			defer func() {
				if returned {
					return
				}
				// A panic is an error by now: runtime.Goexit ends this goroutine, but not
				// before the others had the event.
				s.failed(ctx, ev, errGoexitHandler)
				done(s, errGoexitHandler)
				callInline(ctx, subs[i+1:], ev, done)
			}()
			err := s.call(ctx, ev)
			returned = true
			done(s, err)
		}()
	}
}

// runOn calls handlers until one panics: one guard for all costs a third of one
// for each.
func (v *view) runOn(d *dispatch) {
	d.finished = false
	defer func() {
		if !d.finished {
			v.unfinished(d, recover())
		}
	}()
	subs, ev := v.inline, d.ev
	for i := d.next; i < len(subs); i++ {
		d.next = i
		if err := subs[i].handler(d.ctx, ev); err != nil {
			subs[i].failed(d.ctx, d.ev, err)
		}
	}
	d.next, d.finished = len(subs), true
}

// unfinished is what is left to do when a handler does not return.
func (v *view) unfinished(d *dispatch, p any) {
	s := v.inline[d.next]
	d.next++
	var err error = errGoexitHandler // runtime.Goexit ends this goroutine, but not before the others had the event
	if p != nil {
		err = &PanicError{Value: p, Stack: debug.Stack()}
	}
	s.failed(d.ctx, d.ev, err)
	for d.next < len(v.inline) {
		v.runOn(d)
	}
}

func (e *entry) publishSlow(ctx context.Context, payload any) error {
	switch v := e.current(); {
	case v == nil:
		return nil
	case v == closedView:
		return &Error{Op: "publish", Topic: e.topic, Err: ErrClosed}
	case v.fast:
		return e.publish(ctx, payload)
	case v.around:
		return e.bus.around(ctx, e.topic, payload)
	default:
		return e.publishNow(ctx, v, payload)
	}
}

// publishInside is what publishing middleware calls in the end.
func (b *Bus) publishInside(ctx context.Context, topic string, payload any) error {
	e, err := b.entry(topic)
	if err != nil {
		return &Error{Op: "publish", Topic: topic, Err: err}
	}
	switch v := e.current(); v {
	case nil:
		return nil
	case closedView:
		return &Error{Op: "publish", Topic: topic, Err: ErrClosed}
	default:
		return e.publishNow(ctx, v, payload)
	}
}

func (e *entry) publishNow(ctx context.Context, v *view, payload any) error {
	r := v.route(e.topic)
	if r.nobody() && v.publish == 0 {
		return nil
	}
	return e.send(ctx, v.publish, r, e.newEvent(payload))
}

// newEvent is for the slow way: it has a number and its time.
func (e *entry) newEvent(payload any) Event {
	return Event{r: &e.plain, payload: payload, num: e.count.Add(1) << attemptBits, start: monotonic()}
}

// route is who gets one event here.
type route struct {
	inline, queued []*Subscription
	not            []*Subscription // who would get it, and must not
}

func (v *view) route(topic string) route {
	inline, queued := v.pick(topic)
	return route{inline: inline, queued: queued}
}

func (r route) nobody() bool { return len(r.inline)+len(r.queued) == 0 }

// A delivery is one event on its way to the transport, and then to those of this
// process.
type delivery struct {
	ctx   context.Context
	entry *entry
	class adapter.Class
	msg   *adapter.Message // nil: it does not leave the process
	local Event
	to    route
	puts  []target // whose gates are held, if it leaves the process
}

func (d *delivery) fail(accepted bool, err error) error {
	return &Error{Op: "publish", Topic: d.entry.topic, Accepted: accepted, Err: err}
}

// send hands an event to the transport first, then to those of this process.
func (e *entry) send(ctx context.Context, class adapter.Class, to route, ev Event) error {
	d, err := e.prepare(ctx, class, to, ev)
	if err != nil {
		return err
	}
	if class != 0 {
		err := e.bus.transport().Publish(ctx, d.msg, class)
		if class == adapter.Live && !e.bus.opts.AlwaysEncode {
			reuse(d.msg) // adapters do not keep it
		}
		if err != nil {
			d.refused()
			return d.fail(false, err)
		}
	}
	return d.deliver()
}

// prepare does what may fail before anybody gets the event.
func (e *entry) prepare(ctx context.Context, class adapter.Class, to route, ev Event) (*delivery, error) {
	b := e.bus
	d := &delivery{ctx: ctx, entry: e, class: class, to: to}
	if err := b.admit(); err != nil {
		return nil, d.fail(false, err)
	}
	if b.opts.Redact != nil && !isOwn(e.topic) {
		if err := b.redact(&ev); err != nil {
			return nil, d.fail(false, err)
		}
	}
	d.local = ev
	if class != 0 || (b.opts.AlwaysEncode && !isOwn(e.topic)) {
		m, err := ev.wire(ctx, b)
		if err != nil {
			return nil, d.fail(false, err)
		}
		if b.opts.AlwaysEncode {
			d.local = b.encoded(ev, m)
		}
		d.msg = m
	}
	if class != 0 {
		d.puts = takeLocals(targets(to.queued, d.local), to.inline, d.msg)
		if d.msg.Source != b.source {
			d.msg.Served = append(d.msg.Served, b.source) // what echoes are known by, else
		}
	}
	return d, nil
}

// refused lets go: the transport has not accepted it.
func (d *delivery) refused() {
	for _, t := range d.puts {
		t.sub.gate.leave()
	}
}

// deliver hands the event to those of this process. The queues come before the inline
// handlers, so that no handler waits for another and a gate is held while no handler
// runs.
func (d *delivery) deliver() error {
	var errs []error
	if d.class == 0 {
		errs = putEach(d.ctx, &d.local, d.to.queued, d.to.not)
	}
	for _, t := range d.puts {
		if err := t.put(d.ctx, &d.local); err != nil {
			errs = append(errs, err)
		}
	}
	accepted := d.class != 0 || len(d.to.inline) > 0 || len(d.to.queued) > len(errs)
	callInline(d.ctx, d.to.inline, d.local, func(s *Subscription, err error) {
		d.local.answered(err)
		if err != nil && d.entry.bus.opts.Strict && !s.watcher {
			errs = append(errs, err)
		}
	})
	if len(errs) == 0 {
		return nil
	}
	return d.fail(accepted, join(errs))
}

// redact takes the secrets out of an event that was published here.
func (b *Bus) redact(ev *Event) error {
	if ev.r.msg != nil {
		return nil // it came from elsewhere, as it is
	}
	err := protect(func() error { ev.payload = b.opts.Redact(ev.payload); return nil })
	if err != nil {
		return fmt.Errorf("Options.Redact: %w", err)
	}
	return nil
}

// join is errors.Join but for a single error, which stays itself.
func join(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// wire is the event's message: the one it came in, if it did.
func (ev Event) wire(ctx context.Context, b *Bus) (*adapter.Message, error) {
	if ev.r.msg == nil {
		return ev.message(ctx, b.opts.Codec)
	}
	m := messages.Get().(*adapter.Message)
	*m = *ev.r.msg
	m.Served, m.NotBefore = nil, time.Time{} // it has waited already
	m.Header = forwarded(ctx, m.Header)
	return m, nil
}

// messages are such as a transport is done with: they are large, and live for as
// long as Publish takes.
var messages = sync.Pool{New: func() any { return new(adapter.Message) }}

func reuse(m *adapter.Message) {
	*m = adapter.Message{}
	messages.Put(m)
}

// encoded is the event as a remote subscriber would get it.
func (b *Bus) encoded(ev Event, m *adapter.Message) Event {
	out := b.received(new(record), m, ev.Attempt())
	out.r.entry, out.r.number, out.r.req, out.num, out.start = ev.r.entry, ev.r.number, ev.r.req, ev.num, ev.start
	return out
}

// target is the queue that one event goes to: found before any gate is entered,
// since it takes the user's Key.
type target struct {
	sub   *Subscription
	queue *queue
}

// put leaves the gate, too. What does not fit is logged, and that is user code.
func (t target) put(ctx context.Context, e *Event) (err error) {
	defer t.sub.gate.leave()
	if t.sub.opts.Overflow != DropOldest && t.queue.offer(ctx, e) == putOK {
		return nil
	}
	t.sub.bus.inside(func() { err = t.sub.put(t.queue, ctx, e) })
	return err
}

func targets(subs []*Subscription, ev Event) []target {
	out := make([]target, len(subs))
	for i, s := range subs {
		out[i] = target{s, s.lane(&ev)}
	}
	return out
}

// takeLocals notes on the message which groups this process serves itself. A
// subscription that is about to end leaves the event to others of its group.
func takeLocals(queued []target, inline []*Subscription, m *adapter.Message) []target {
	served := func(s *Subscription) {
		if key := s.key.served(); s.key.group != "" && !s.watcher && !slices.Contains(m.Served, key) {
			m.Served = append(m.Served, key)
		}
	}
	queued = slices.DeleteFunc(queued, func(t target) bool { return !t.sub.gate.enter() })
	for _, t := range queued {
		served(t.sub)
	}
	for _, s := range inline {
		served(s)
	}
	return queued
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

// Listening reports whether publishing to the topic would reach anybody here or
// leave the process: ask before building an expensive payload.
func (b *Bus) Listening(topic string) bool {
	e, err := b.entry(topic)
	if err != nil {
		return false
	}
	v := e.current()
	if v == nil || v == closedView {
		return false
	}
	if v.publish != 0 || v.instr != 0 {
		return true
	}
	r := v.route(topic)
	return len(r.inline)+len(r.queued) > v.watchers
}
