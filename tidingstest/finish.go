package tidingstest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
)

// AllowDrops says that dropped events are no failure of this test: for tests of
// Overflow, or that stop a subscription with work in its queue.
func (b *Bus) AllowDrops() { b.dropsAllowed.Store(true) }

// finish is the end of the test: it ends the bus and fails the test for what was
// left behind.
func (b *Bus) finish() {
	b.t.Helper()
	defer b.log.close()
	defer kits.Delete(b.Bus)
	subs := b.Debugger().Snapshot().Subscriptions // a drained bus has none
	dropped := b.drain()
	unhandled, missing := b.errs.report()
	for _, err := range unhandled {
		b.t.Errorf("tidingstest: an error that was not expected: %v", err)
	}
	for _, what := range missing {
		b.t.Errorf("tidingstest: the expected error did not come: %s", what)
	}
	if dropped > 0 && !b.dropsAllowed.Load() {
		b.t.Errorf("tidingstest: %d events were dropped; the log of the bus names the first of each burst:\n%s", dropped, drops(subs, dropped))
	}
}

// drops says whose queues dropped so many events.
func drops(subs []tidings.SubscriptionInfo, total uint64) string {
	var out strings.Builder
	for _, s := range subs {
		if s.Dropped > 0 {
			fmt.Fprintf(&out, "  %d by the %s\n", s.Dropped, called(s))
			total -= min(s.Dropped, total)
		}
	}
	if total > 0 {
		fmt.Fprintf(&out, "  %d by subscriptions that had ended, or while the bus was drained\n", total)
	}
	return out.String()
}

// drain ends the bus, waits for handlers that Drain does not wait for (those of a
// bus that the test has closed, and inline ones), and returns how many events were
// dropped. What the deadline cuts does not count: it is reported as unfinished.
func (b *Bus) drain() (dropped uint64) {
	b.t.Helper()
	d := limit(b.t, b.timeout)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	left, looked := "", make(chan struct{})
	// Looked at before the deadline comes true: then the bus forgets its
	// subscriptions, and handlers may obey their context and be gone.
	timer := time.AfterFunc(d, func() {
		defer close(looked)
		left, dropped = b.unfinished(), b.Debugger().Snapshot().Dropped
		cancel(fmt.Errorf("not idle after %v", d))
	})
	drained := b.Bus.Drain(ctx)
	_, err := b.settle(ctx)
	err = errors.Join(drained, err)
	if timer.Stop() {
		dropped = b.Debugger().Snapshot().Dropped
	} else {
		<-looked
	}
	switch {
	case left != "":
		b.t.Errorf("tidingstest: the bus has not ended after %v:\n%s", d, left)
	case err != nil:
		b.t.Errorf("tidingstest: the bus has not ended well: %v", err)
	}
	return dropped
}

// unfinished describes the handlers that run and the events that wait; it is
// empty if there are none. It looks itself for what a Snapshot does not have: the
// handlers of inline and of ended subscriptions, and stacks before HungAfter.
func (b *Bus) unfinished() string {
	var out strings.Builder
	running := b.calls.list()
	dump, known := stacks(), func(place string) bool {
		return slices.ContainsFunc(running, func(c *call) bool { return c.place == place })
	}
	for _, s := range b.Debugger().Snapshot().Subscriptions {
		if s.Queued == 0 && s.Running == 0 {
			continue
		}
		fmt.Fprintf(&out, "%s: %d handlers running, %d events queued\n", called(s), s.Running, s.Queued)
		if s.Running > 0 && !known(s.Place) {
			out.WriteString(batchStacks(s.Hung, dump))
		}
	}
	for _, c := range running {
		fmt.Fprintf(&out, "handler of the subscription made at %s has not ended, for %s, attempt %d:\n%s\n",
			c.place, c.event, c.event.Attempt(), find(dump, func(s string) bool { return strings.HasPrefix(s, c.goroutine) }))
	}
	if out.Len() == 0 { // what is waited for is of a subscription that has ended
		out.WriteString(batchStacks(nil, dump))
	}
	return out.String()
}

// called is a subscription for people.
func called(s tidings.SubscriptionInfo) string {
	name := "subscription"
	if s.Name != "" {
		name += fmt.Sprintf(" %q:", s.Name)
	}
	return fmt.Sprintf("%s %s of group %q, made at %s", name, s.Pattern, s.Group, s.Place)
}

// batchStacks is for handlers whose calls the kit does not see: their stacks as
// the bus has found them, or else those of all batch handlers of the process.
func batchStacks(hung []tidings.Hung, dump []string) string {
	if len(hung) > 0 {
		return string(hung[0].Stack) + "\n"
	}
	stack := find(dump, func(s string) bool { return strings.Contains(s, "tidings.(*worker).handleBatch(") })
	if stack == "" {
		return ""
	}
	return "one of these, the batch handlers of this process:\n" + stack + "\n"
}

// find joins the stacks that are wanted.
func find(dump []string, want func(string) bool) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(dump), func(s string) bool { return !want(s) }), "\n\n")
}
