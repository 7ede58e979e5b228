package tidings

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
)

// Drain ends the bus and loses nothing: it stops taking from the transport and
// from outside, lets handlers finish what was taken (they may go on publishing),
// confirms the last acknowledgements, flushes what was published, and closes.
// When ctx ends first, it cancels the handlers' contexts, hands durable events
// back, closes all the same, and the error names what was left.
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
		b.state.Store(stateDraining)
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
	err := each(feeds, func(f *feed) error {
		if f.join(ctx) != nil {
			return nil
		}
		return f.at.Drain(ctx)
	})
	b.finishWork(ctx)
	b.state.Store(stateClosed)
	drainSub := func(s *Subscription) error { return s.drain(ctx) }
	// The bus's own events tell of the last acknowledgements: who listens to them
	// goes last.
	listeners := slices.DeleteFunc(slices.Clone(subs), func(s *Subscription) bool { return !isOwn(s.pattern) })
	err = errors.Join(err, each(slices.DeleteFunc(subs, func(s *Subscription) bool { return isOwn(s.pattern) }), drainSub))
	b.finishWork(ctx)
	err = errors.Join(err, each(listeners, drainSub))
	if a != nil {
		err = errors.Join(err, a.Drain(ctx))
	}
	return err
}

// finishWork waits until nothing is taken and unfinished, or ctx ends.
func (b *Bus) finishWork(ctx context.Context) {
	select {
	case <-b.work.idle():
	case <-ctx.Done():
	}
}

// Close ends the bus at once: handlers' contexts are cancelled, queued events go
// back to the store if they are durable and are dropped and counted if not. It
// does not wait for handlers that run; [Subscription.Done] does. Closing again
// does nothing.
func (b *Bus) Close() error {
	b.mu.Lock()
	closed := b.state.Swap(stateClosed) == stateClosed
	if b.drained == nil {
		b.drained = make(chan struct{})
		close(b.drained)
	}
	b.mu.Unlock()
	if closed {
		return nil
	}
	subs, _, a := b.members()
	for _, s := range subs {
		s.cancel()
		s.Stop()
	}
	if a != nil {
		return a.Close()
	}
	return nil
}

// members is a snapshot of what the bus has to end.
func (b *Bus) members() ([]*Subscription, []*feed, adapter.Adapter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var feeds []*feed
	for _, f := range b.feeds {
		feeds = append(feeds, f)
	}
	return slices.Clone(b.subs), feeds, b.adapter
}

// each runs f for all at once, since each may wait for a round trip.
func each[T any](all []T, f func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() { errs[i] = f(v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
