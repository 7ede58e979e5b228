package tidings

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// PublishAsync is [Bus.Publish] for those who publish much and do not wait for each
// event. An error says that the event was refused at once. Otherwise done is called
// once, with what Publish would have returned: on a goroutine of the bus, or before
// PublishAsync returns. It may call the bus, but others wait while it runs. With a nil
// done, what fails goes to Options.OnError, and [Bus.Flush] counts it.
//
// Events of one goroutine keep their order. How many wait is bounded by the transport:
// at the bound PublishAsync waits for room, until ctx ends. Subscribers of this process
// get a durable event once it is stored.
func (b *Bus) PublishAsync(ctx context.Context, topic string, payload any, done func(error)) error {
	e, err := b.entry(topic)
	if err != nil {
		return &Error{Op: "publish", Topic: topic, Err: err}
	}
	switch v := e.current(); {
	case v == nil:
	case v == closedView:
		err = ErrClosed
	case v.around:
		call := &asyncCall{done: done}
		switch err = b.around(context.WithValue(ctx, asyncKey{}, call), topic, payload); {
		case !call.taken:
		case err != nil: // the middleware's own; what was published is on its way
			b.report(ctx, err)
			return nil
		default:
			return nil
		}
	case v.publish >= adapter.Durable:
		return e.publishAsync(ctx, v, payload, done)
	default:
		err = e.publish(ctx, payload)
	}
	if err == nil && done != nil {
		done(nil)
	}
	return err
}

// PublishAsync is [Bus.PublishAsync] with the payload's type checked.
func (t Topic[T]) PublishAsync(ctx context.Context, v T, done func(error)) error {
	return t.e.bus.PublishAsync(ctx, t.e.topic, v, done)
}

// An asyncCall is how PublishAsync reaches through middleware.
type asyncCall struct {
	done  func(error)
	taken bool
}

type asyncKey struct{}

// publishAsync prepares the event as send does, and leaves the rest to its outcome.
func (e *entry) publishAsync(ctx context.Context, v *view, payload any, done func(error)) error {
	b := e.bus
	a, ok := b.transport().(adapter.AsyncPublisher)
	if !ok {
		err := e.publishNow(ctx, v, payload)
		if err == nil && done != nil {
			done(nil)
		}
		return err
	}
	d, err := e.prepare(ctx, v.publish, v.route(e.topic), e.newEvent(payload))
	if err != nil {
		return err
	}
	o := &outcome{delivery: d, done: done}
	b.flights.begin(o)
	err = a.PublishAsync(ctx, d.msg, d.class, func(err error) { b.flights.end(o, err) })
	if err != nil {
		d.refused()
		b.flights.over(o)
		return d.fail(false, err)
	}
	return nil
}

// An outcome is what becomes of an event that nobody waits for.
type outcome struct {
	*delivery
	done func(error)
	err  error
	turn uint64
}

// flights are the events that were handed to the transport and have no outcome yet.
type flights struct {
	bus *Bus

	mu      sync.Mutex
	turn    uint64         // of those that begin now
	open    map[uint64]int // how many of each turn have no outcome
	changed chan struct{}  // closed when a turn has ended; nil: nobody waits
	landed  []*outcome
	busy    bool // somebody tells of those
	failed  int  // without anybody to tell, since the last Flush
	first   error
}

func (f *flights) begin(o *outcome) {
	f.bus.work.add()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		f.open = map[uint64]int{}
	}
	o.turn = f.turn
	f.open[o.turn]++
}

// end takes an outcome from the transport, and does not block it.
func (f *flights) end(o *outcome, err error) {
	o.err = err
	f.mu.Lock()
	defer f.mu.Unlock()
	f.landed = append(f.landed, o)
	if f.busy {
		return
	}
	f.busy = true
	loop.Go(func(context.Context) { f.tell() })
}

// tell delivers what the transport has accepted to those of this process, and tells
// who has published it. It ends when there is nothing to tell.
func (f *flights) tell() {
	f.bus.inside(func() {
		for {
			f.mu.Lock()
			all := f.landed
			f.landed = nil
			f.busy = len(all) > 0
			f.mu.Unlock()
			if len(all) == 0 {
				return
			}
			for _, o := range all {
				f.tellOf(o)
				f.over(o)
			}
		}
	})
}

func (f *flights) tellOf(o *outcome) {
	err := o.err
	if err != nil {
		o.refused()
		err = o.fail(false, err)
	} else {
		err = o.deliver()
	}
	switch {
	case o.done != nil:
		if p := protect(func() error { o.done(err); return nil }); p != nil {
			f.bus.report(o.ctx, &Error{Op: "publish", Topic: o.entry.topic, Err: fmt.Errorf("the function given to PublishAsync: %w", p)})
		}
	case err != nil:
		f.mu.Lock()
		if f.failed++; f.failed == 1 {
			f.first = err
		}
		f.mu.Unlock()
		f.bus.report(o.ctx, err)
	}
}

func (f *flights) over(o *outcome) {
	f.mu.Lock()
	if f.open[o.turn]--; f.open[o.turn] == 0 {
		delete(f.open, o.turn)
		if f.changed != nil {
			close(f.changed)
			f.changed = nil
		}
	}
	f.mu.Unlock()
	f.bus.work.done()
}

// Flush waits until all that [Bus.PublishAsync] took before has its outcome, and every
// done was called; it returns an error if of the events without one any was not
// accepted, for the first time. Called from inside a handler, or from a done, it does
// not wait, since it could wait for its own caller.
func (b *Bus) Flush(ctx context.Context) error {
	err := error(nil)
	if !b.insideHandler() {
		err = b.flights.wait(ctx)
	}
	b.flights.mu.Lock()
	failed, first := b.flights.failed, b.flights.first
	b.flights.failed, b.flights.first = 0, nil
	b.flights.mu.Unlock()
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d events were not accepted, the first: %w", failed, first))
	}
	if err != nil {
		return &Error{Op: "flush", Err: err}
	}
	return nil
}

func (f *flights) wait(ctx context.Context) error {
	f.mu.Lock()
	until := f.turn
	f.turn++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		left := 0
		for turn, n := range f.open {
			if turn <= until {
				left += n
			}
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d events have no outcome yet: %w", left, context.Cause(ctx))
		}
	}
}
