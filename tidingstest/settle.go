package tidingstest

import (
	"runtime"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
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
	if !settle(b.Bus, b, d) {
		b.t.Fatalf("tidingstest: the bus is not idle after %v:\n%s", d, b.unfinished())
	}
}

// progress is what tells two looks at a bus apart if anything was handled between
// them.
type progress struct {
	subscriptions                      int
	handled, failed, dropped, received uint64
}

// look reports whether the bus is idle, whether workers only have to put down
// what they have handled, and how far the bus has come.
func look(bus *tidings.Bus, running int) (idle, ending bool, p progress) {
	snap := bus.Debugger().Snapshot()
	p.subscriptions = len(snap.Subscriptions)
	queued, busy := 0, uint64(running)
	for _, s := range snap.Subscriptions {
		queued += s.Queued
		busy += s.Running
		p.handled += s.Handled
		p.failed += s.Failed
		p.dropped += s.Dropped
	}
	for _, t := range snap.Topics {
		p.received += t.Events
	}
	return queued == 0 && busy == 0, queued == 0 && running == 0, p
}

// settle waits until the bus is idle; false: not within d. The kit may be nil.
//
// A Snapshot looks at one subscription after the other, and an event may pass on
// to one that it has looked at already: so the bus is idle when two looks in a row
// find it so and nothing was handled in between.
//
// The end of a handler wakes it. Of two things it is not told, and looks again by
// a timer: that a batch handler has ended, and that a worker is done with what its
// last handler has left, which takes it a moment.
func settle(bus *tidings.Bus, b *Bus, d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	again := time.NewTimer(d)
	defer again.Stop()
	yields, pause := 0, firstPause
	for {
		var running []*call
		var changed <-chan struct{}
		if b != nil {
			running, changed = b.calls.look()
		}
		inBubble := bubbleIsBlocked()
		idle, ending, before := look(bus, len(running))
		if idle {
			if running = nil; b != nil {
				running, _ = b.calls.look()
			}
			if idle, _, after := look(bus, len(running)); idle && after == before {
				return true
			}
			select {
			case <-over.C:
				return false
			default:
				continue // something has just moved
			}
		}
		if ending && !inBubble && yields < maxYields {
			yields++
			runtime.Gosched()
			continue
		}
		again.Reset(pause)
		pause = min(2*pause, maxPause)
		select {
		case <-changed:
			yields, pause = 0, firstPause
		case <-again.C:
		case <-over.C:
			return false
		}
	}
}

// Measured: one or two yields are enough on an idle machine; the pauses are for a
// busy one, and for batch handlers.
const (
	maxYields  = 100
	firstPause = 100 * time.Microsecond
	maxPause   = 10 * time.Millisecond
)

// bubbleIsBlocked waits, in a synctest bubble, until all its other goroutines are
// blocked: there no timer is needed to see the end of what runs, and time stands
// still. Outside one it returns false at once.
func bubbleIsBlocked() (yes bool) {
	defer func() { _ = recover() }() // not in a bubble, or another goroutine of it does the same
	synctest.Wait()
	return true
}
