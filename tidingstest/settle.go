package tidingstest

import (
	"context"
	"time"
)

// Settle waits until everything published so far has been handled: until the
// queue of every subscription is empty, no handler of the bus runs, none waits for
// a retry, and the same holds for all that handlers published meanwhile. It fails
// the test at once, with the stacks of the handlers, if that takes longer than
// Options.Timeout. What other goroutines publish while it waits may or may not be
// waited for.
//
// Settle waits out BatchWait; handlers must not call it, it would wait for them.
func (b *Bus) Settle() {
	b.t.Helper()
	d := limit(b.t, b.timeout)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if _, err := b.settle(ctx); err != nil {
		b.t.Fatalf("tidingstest: the bus is not idle after %v:\n%s", d, b.unfinished())
	}
}

// settle adds to [tidings.Debugger.Idle] the handlers that run on no queue: inline
// ones, on the goroutines of publishers. They may give work to the queues, so the
// bus has settled when none of them ran from before it was found idle until after.
// It returns how many handlers ever ran.
func (b *Bus) settle(ctx context.Context) (begun uint64, err error) {
	for {
		before, err := b.calls.wait(ctx)
		if err != nil {
			return 0, err
		}
		if err := b.Debugger().Idle(ctx); err != nil {
			return 0, err
		}
		if after, err := b.calls.wait(ctx); err != nil || after == before {
			return after, err
		}
	}
}

// quiet waits until the bus has settled and no handler has run for that long; false
// if ctx ended first.
func (b *Bus) quiet(ctx context.Context, long time.Duration) bool {
	for {
		before, err := b.settle(ctx)
		if err != nil {
			return false
		}
		select {
		case <-time.After(long):
		case <-ctx.Done():
			return false
		}
		if after, err := b.settle(ctx); err != nil || after == before {
			return err == nil
		}
	}
}
