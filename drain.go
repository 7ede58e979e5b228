package tidings

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
)

// Drain ends the bus and loses nothing: it stops taking from the transport and
// from outside, lets handlers finish what was taken (they may go on publishing),
// confirms the last acknowledgements, flushes what was published, and closes.
// When ctx ends first, it cancels the handlers' contexts, hands durable events
// back, closes all the same, and the error names what was left: durable events
// one by one, in a [LeftError].
//
// A second call waits for the first. Called from inside a handler it starts the
// drain and returns nil, since it cannot wait for its own caller. It does not
// wait for callers of Publish that are still inside inline handlers.
func (b *Bus) Drain(ctx context.Context) error {
	if b.insideHandler() {
		ctx := context.WithoutCancel(ctx)
		loop.Go(func(context.Context) { _ = b.drain(ctx) })
		return nil
	}
	return b.drain(ctx)
}

func (b *Bus) drain(ctx context.Context) error {
	if mutant.On("drain-not-waited") {
		return b.Close()
	}
	b.mu.Lock()
	first := b.drained == nil
	if first {
		b.drained = make(chan struct{})
		b.setState(stateDraining)
	}
	drained := b.drained
	b.mu.Unlock()
	if !first {
		select {
		case <-drained:
			return b.drainErr
		case <-ctx.Done():
			return &Error{Op: "drain", Err: context.Cause(ctx)}
		}
	}
	if err := b.drainAll(ctx); err != nil {
		b.drainErr = &Error{Op: "drain", Err: err}
	}
	close(drained)
	return b.drainErr
}

func (b *Bus) drainAll(ctx context.Context) error {
	subs, feeds, a := b.members()
	b.mu.Lock()
	b.last = slices.Clone(subs)
	b.mu.Unlock()
	if mutant.On("queue-not-drained") {
		forgetQueued(subs)
	}
	each(feeds, func(f *feed) error {
		if f.join(ctx) == nil {
			_ = f.at.Drain(ctx) // its last subscription tells
		}
		return nil
	})
	b.finishWork(ctx)
	b.mu.Lock()
	b.setState(stateClosed)
	b.mu.Unlock()
	drainSub := func(s *Subscription) error {
		var own *Error
		if err := s.drain(ctx); !errors.As(err, &own) {
			return err
		}
		return own.Err // it names the subscription
	}
	// The bus's own events tell of the last acknowledgements: who listens to them
	// goes last.
	listeners := slices.DeleteFunc(slices.Clone(subs), func(s *Subscription) bool { return !isOwn(s.pattern) })
	errs := each(slices.DeleteFunc(subs, func(s *Subscription) bool { return isOwn(s.pattern) }), drainSub)
	b.finishWork(ctx)
	errs = append(errs, each(listeners, drainSub)...)
	b.hung.stop()
	b.cancelStopping()
	errs = append(errs, b.stillStopping(ctx))
	if a != nil {
		errs = append(errs, a.Drain(ctx))
	}
	return leftOfAll(joinOnce(ctx, errs))
}

// finishWork waits until nothing is taken and unfinished, or ctx ends.
func (b *Bus) finishWork(ctx context.Context) {
	subs, _, _ := b.members()
	for _, s := range subs {
		for _, q := range s.lanes {
			q.hurry()
		}
		s.held.hurry()
	}
	_ = b.idle(ctx) // each subscription tells what it has left
}

// forgetQueued is a defect on purpose, for the drill: of live events what waits for
// a handler is dropped, and the drain says that nothing was left.
func forgetQueued(subs []*Subscription) {
	for _, s := range subs {
		for _, q := range s.lanes {
			q.cleared.Store(!s.opts.Durable)
		}
	}
}

// idle waits until nothing is taken and unfinished. Handlers may publish to each
// other meanwhile: all is done when every queue has been idle while none of them
// took anything.
func (b *Bus) idle(ctx context.Context) error {
	for before, after := uint64(0), uint64(1); before != after; {
		subs := b.working()
		before = b.activity(subs)
		waits := []<-chan struct{}{b.work.idle()}
		for _, s := range subs {
			for _, q := range s.lanes {
				idle, _ := q.whenIdle()
				waits = append(waits, idle)
			}
			waits = append(waits, s.held.whenEmpty())
		}
		for _, idle := range waits {
			select {
			case <-idle:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		after = b.activity(b.working()) // new ones may have taken something
	}
	return nil
}

// working are the members and those that are about to be none.
func (b *Bus) working() []*Subscription {
	subs, _, _ := b.members()
	b.mu.Lock()
	defer b.mu.Unlock()
	return append(subs, slices.Collect(maps.Keys(b.stopping))...)
}

// stillStopping names the subscriptions that were stopped and whose handlers still
// run when ctx ends.
func (b *Bus) stillStopping(ctx context.Context) error {
	select {
	case <-b.work.idle():
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for s := range b.stopping {
		errs = append(errs, fmt.Errorf("%w: %s was stopped, and a handler of it still runs", context.Cause(ctx), s))
	}
	return errors.Join(errs...)
}

// activity is how much was ever begun.
func (b *Bus) activity(subs []*Subscription) uint64 {
	n := b.work.ever.Load()
	for _, s := range subs {
		for _, q := range s.lanes {
			_, accepted := q.whenIdle()
			n += accepted
		}
	}
	return n
}

// Close ends the bus at once: handlers' contexts are cancelled, queued events go
// back to the store if they are durable and are dropped and counted if not. It
// does not wait for handlers that run; [Subscription.Done] does. Closing again
// does nothing.
func (b *Bus) Close() error {
	b.mu.Lock()
	closed := b.state.Load() == stateClosed
	b.setState(stateClosed)
	if b.drained == nil {
		b.drained = make(chan struct{})
		close(b.drained)
	}
	b.mu.Unlock()
	if closed {
		return nil
	}
	b.hung.stop()
	subs, _, a := b.members()
	for _, s := range subs {
		s.cancel()
		s.Stop()
	}
	b.cancelStopping()
	if a != nil {
		return a.Close()
	}
	return nil
}

// each runs f for all at once, since each may wait for a round trip.
func each[T any](all []T, f func(T) error) []error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() { errs[i] = f(v) })
	}
	wg.Wait()
	return errs
}
