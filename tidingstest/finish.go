package tidingstest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
)

// finish is the end of the test: it ends the bus and fails the test for what was
// left behind.
func (b *Bus) finish() {
	b.t.Helper()
	defer b.log.close()
	defer kits.Delete(b.Bus)
	b.drain()
	unhandled, missing := b.errs.report()
	for _, err := range unhandled {
		b.t.Errorf("tidingstest: an error that was not expected: %v", err)
	}
	for _, what := range missing {
		b.t.Errorf("tidingstest: the expected error did not come: %s", what)
	}
	for _, drop := range b.drops.report() {
		b.t.Errorf("tidingstest: dropped %s", drop)
	}
}

// drain ends the bus, and waits for handlers that Drain does not wait for: those
// of a bus that the test has closed, and inline ones.
func (b *Bus) drain() {
	b.t.Helper()
	d := limit(b.t, b.timeout)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	left, looked := "", make(chan struct{})
	// Looked at before the deadline comes true: then the bus forgets its
	// subscriptions, and handlers may obey their context and be gone.
	timer := time.AfterFunc(d, func() {
		defer close(looked)
		left = b.unfinished()
		b.drops.stop()
		cancel(fmt.Errorf("not idle after %v", d))
	})
	err := b.Bus.Drain(ctx)
	b.awaitCalls(ctx)
	if !timer.Stop() {
		<-looked
	}
	switch {
	case left != "":
		b.t.Errorf("tidingstest: the bus has not ended after %v:\n%s", d, left)
	case err != nil:
		b.t.Errorf("tidingstest: the bus has not ended well: %v", err)
	}
}

func (b *Bus) awaitCalls(ctx context.Context) {
	for {
		running, changed := b.calls.look()
		if len(running) == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// unfinished describes the handlers that run and the events that wait; it is
// empty if there are none.
func (b *Bus) unfinished() string {
	var out strings.Builder
	running, _ := b.calls.look()
	dump, known := stacks(), func(place string) bool {
		return slices.ContainsFunc(running, func(c *call) bool { return c.place == place })
	}
	for _, s := range b.Debugger().Snapshot().Subscriptions {
		if s.Queued == 0 && s.Running == 0 {
			continue
		}
		fmt.Fprintf(&out, "subscription %s of group %q, made at %s: %d handlers running, %d events queued\n",
			s.Pattern, s.Group, s.Place, s.Running, s.Queued)
		if s.Running > 0 && !known(s.Place) {
			out.WriteString(batchStacks(s, dump))
		}
	}
	for _, c := range running {
		fmt.Fprintf(&out, "handler of the subscription made at %s has not ended, for %s, attempt %d:\n%s\n",
			c.place, c.event, c.event.Attempt(), find(dump, func(s string) bool { return strings.HasPrefix(s, c.goroutine) }))
	}
	return out.String()
}

// batchStacks is for handlers whose calls the kit does not see: their stacks as
// the bus has found them, or else those of all batch handlers of the process.
func batchStacks(s tidings.SubscriptionInfo, dump []string) string {
	if len(s.Hung) > 0 {
		return string(s.Hung[0].Stack) + "\n"
	}
	if stack := find(dump, func(s string) bool { return strings.Contains(s, "tidings.(*worker).handleBatch(") }); stack != "" {
		return "one of these, the batch handlers of this process:\n" + stack + "\n"
	}
	return ""
}

// find joins the stacks that are wanted.
func find(dump []string, want func(string) bool) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(dump), func(s string) bool { return !want(s) }), "\n\n")
}
