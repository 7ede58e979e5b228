package tidings

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/internal/goid"
	"github.com/tidings-go/tidings/internal/loop"
)

// stopGrace bounds the clean-up behind Stop and Close, which nobody waits for.
const stopGrace = 5 * time.Second

// Drain ends the subscription and loses nothing: it stops taking, lets the
// handlers finish what was taken, and settles it. When ctx ends first, handlers'
// contexts are cancelled, what was not handled goes back to the store if it is
// durable and is dropped and counted if not; the error says how much, and a
// [LeftError] in it names each durable event.
//
// Called from inside a handler it starts the drain and returns nil, since it
// cannot wait for its own caller; wait for [Subscription.Done] elsewhere.
func (s *Subscription) Drain(ctx context.Context) error {
	if s.bus.insideHandler() {
		ctx := context.WithoutCancel(ctx)
		s.bus.background(func() { _ = s.drain(ctx) })
		return nil
	}
	return s.drain(ctx)
}

func (s *Subscription) drain(ctx context.Context) error {
	if s.ending.CompareAndSwap(false, true) {
		s.bus.setStopping(s, true)
		s.finish(ctx, s.leave(ctx), s.finishQueue(ctx), s.joined.close(ctx, s))
		s.forget()
		s.warnLeft("the deadline of a drain ended first", int(s.left.Load()))
		return s.err
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return &Error{Op: "drain", Topic: s.pattern, Err: context.Cause(ctx)}
	}
}

// Stop ends the subscription at once: events that wait in its queue go back to
// the store if they are durable, and are dropped and counted if not. A running
// handler goes on; [Subscription.Done] waits for it.
func (s *Subscription) Stop() {
	if !s.ending.CompareAndSwap(false, true) {
		return
	}
	s.bus.setStopping(s, true)
	s.bus.remove(s)
	n := s.dropQueued("the subscription was stopped")
	s.bus.background(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		_ = s.leave(ctx)
		for _, w := range s.workers {
			<-w.loop.Done()
		}
		ctx2, cancel2 := context.WithTimeout(context.Background(), stopGrace)
		defer cancel2()
		s.bus.setStopping(s, false)
		s.finish(ctx2, s.joined.close(ctx2, s))
		s.warnLeft("the subscription was stopped", n)
	})
}

// Done is closed once the subscription has ended and no handler of it runs on its
// queue, or once Drain has given up waiting for one. An inline handler may still be
// called on a publisher's goroutine, for a block that began before.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err says why the subscription ended: nil while it lives and after a clean end,
// else what was left undone.
func (s *Subscription) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

func (s *Subscription) finish(ctx context.Context, errs ...error) {
	if err := s.receipt(ctx, errs); err != nil {
		s.err = &Error{Op: "drain", Topic: s.pattern, Err: err}
	}
	s.cancel()
	close(s.done)
}

// leave stops taking: from local publishers and from the transport. What was
// taken is in the queue when it returns.
func (s *Subscription) leave(ctx context.Context) error {
	s.bus.remove(s)
	select {
	case <-s.gate.close():
	case <-ctx.Done():
	}
	return s.joined.drain(ctx, s)
}

// finishQueue lets the workers finish.
func (s *Subscription) finishQueue(ctx context.Context) error {
	s.held.hurry()
	select {
	case <-s.held.whenEmpty():
	case <-ctx.Done():
	}
	for _, q := range s.lanes {
		q.close()
	}
	for _, w := range s.workers {
		if w.loop.Wait(ctx) == nil {
			continue
		}
		err := s.leftBehind(ctx) // first: a handler that obeys its context ends with it, and its worker takes the next event
		s.cancel()
		if err != nil {
			return err
		}
		<-w.loop.Done() // it had nothing to do
	}
	return nil
}

// leftBehind gives up what the deadline cut, and names it; nil if it cut nothing.
func (s *Subscription) leftBehind(ctx context.Context) error {
	left, running := s.dropQueued("the deadline of a drain ended first"), 0
	s.left.Store(int64(left))
	for _, w := range s.workers {
		waiting, busy := w.inHand()
		left += waiting
		if busy {
			running++
		}
	}
	if left+running == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s: %d handlers still running, %d queued events left", context.Cause(ctx), s, running, left)
}

// dropQueued empties the queues; workers drop what they have in hand.
func (s *Subscription) dropQueued(why string) (n int) {
	for _, q := range s.lanes {
		for _, it := range q.clear() {
			s.lose(it.event, why)
			n++
		}
	}
	for _, it := range s.held.close() {
		s.lose(it.event, why)
		n++
	}
	return n
}

// forget lets go of a subscription once its workers have ended, which a drain that
// was cut has not waited for.
func (s *Subscription) forget() {
	for _, w := range s.workers {
		select {
		case <-w.loop.Done():
		default:
			loop.Go(func(context.Context) {
				for _, w := range s.workers {
					<-w.loop.Done()
				}
				s.bus.setStopping(s, false)
			})
			return
		}
	}
	s.bus.setStopping(s, false)
}

// warnLeft comes when all is over: the log may ask for that.
func (s *Subscription) warnLeft(why string, n int) {
	if n > 0 && !s.opts.Durable {
		s.warn(why, "events", n)
	}
}

// insideHandler reports whether the calling goroutine runs a handler of this bus,
// or other user code that a Drain would wait for.
func (b *Bus) insideHandler() bool {
	_, ok := b.workers.Load(goid.ID())
	return ok
}
