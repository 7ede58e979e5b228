package tidingstest

import "context"

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
	if b.settle(ctx) != nil {
		b.t.Fatalf("tidingstest: the bus is not idle after %v:\n%s", d, b.unfinished())
	}
}

// settle adds to [tidings.Debugger.Idle] the handlers that run on no queue: inline
// ones, on the goroutines of publishers. They may give work to the queues, so the
// bus has settled when none of them ran from before it was found idle until after.
func (b *Bus) settle(ctx context.Context) error {
	for {
		before, err := b.calls.wait(ctx)
		if err != nil {
			return err
		}
		if err := b.Debugger().Idle(ctx); err != nil {
			return err
		}
		if after, err := b.calls.wait(ctx); err != nil || after == before {
			return err
		}
	}
}
