package natsbus

import (
	"context"
	"sync"
)

// ending is something that is done once, by the first who asks, within that one's
// context. Others wait for it, each no longer than its own.
type ending struct {
	once sync.Once
	done chan struct{}
	err  error // read after done
}

func (e *ending) do(ctx context.Context, f func(context.Context) error) error {
	first := false
	e.once.Do(func() {
		first, e.done = true, make(chan struct{})
	})
	if first {
		e.err = f(ctx)
		close(e.done)
		return e.err
	}
	select {
	case <-e.done: // also if the context is over
		return e.err
	default:
	}
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
