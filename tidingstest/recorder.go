package tidingstest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// Recorder holds what was published and instrumented on a bus. Events, Reset and
// its recording are safe for concurrent use.
type Recorder struct {
	t       testing.TB
	bus     *tidings.Bus
	kit     *Bus // nil: the bus is not one of New
	pattern string
	timeout time.Duration
	patient bool // Within was called: an idle bus is waited for

	mu     sync.Mutex
	events []*sight
	seen   map[string]*sight // by event id; for buses of New
	more   func()            // called with the next event; nil when nobody waits
}

// sight is an event that was seen. One that only a handler has shown keeps a
// place for when the watch shows it, which it never does if it was published
// before Record.
type sight struct {
	event     tidings.Event
	published bool
}

// Record records the events of this process that match the pattern, from now to
// the end of the test: those published and instrumented, and those that come from
// a transport for a subscription that there is. It fails the test if the pattern
// is bad or the bus has ended. Bus may be any; of [New]'s, use [Bus.Record].
//
// It watches as [tidings.Debugger.Watch] does rather than subscribe: so Listening
// says the same with it and without, Request has no more responders, no transport
// is asked for anything, and a Snapshot does not have it. What nobody listens to
// is recorded too; so its payload is encoded for the recorder alone.
//
// Events are recorded in the order of publishing, as far as that can be seen: what
// one goroutine publishes, in its order, and on a bus of [New] an event before all
// that its handlers publish in response. On another bus a handler with a queue may
// be quicker than the publisher is to show the event. Retries and redeliveries are
// not recorded again. A [tidings.Bus.Request] is not recorded: it is for those who
// may answer.
func Record(t testing.TB, bus *tidings.Bus, pattern string) *Recorder {
	t.Helper()
	r := &Recorder{t: t, bus: bus, pattern: pattern, timeout: defaultTimeout, seen: map[string]*sight{}}
	if k, ok := kits.Load(bus); ok {
		r.kit = k.(*Bus)
		r.timeout = r.kit.timeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	// The filter runs on the publisher's goroutine; nothing passes it, so nothing is
	// buffered and nothing can be missed.
	none, _, err := bus.Debugger().Watch(ctx, pattern, func(e tidings.Event) bool { r.published(e); return false })
	if err != nil {
		cancel()
		t.Fatalf("tidingstest.Record: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		for range none { // until the watch has ended
		}
	})
	if r.kit != nil {
		r.kit.calls.follow(r)
	}
	return r
}

// published is what the watch calls.
func (r *Recorder) published(e tidings.Event) {
	if e.Attempt() > 1 {
		return // a redelivery
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen[e.ID()]
	if s == nil || s.published { // a publisher may publish an event anew
		s = r.add(e)
	}
	s.published = true
	if r.more != nil {
		r.more()
		r.more = nil
	}
}

// handled is called before a handler is. Queues get an event before those who
// watch do, so this may be the first that is seen of it.
func (r *Recorder) handled(e tidings.Event) {
	if !covers(r.pattern, e.Topic()) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[e.ID()] == nil {
		r.add(e)
	}
}

// add is called with mu held.
func (r *Recorder) add(e tidings.Event) *sight {
	s := &sight{event: e.Keep()}
	r.events = append(r.events, s)
	r.seen[e.ID()] = s
	return s
}

// Events returns what has been recorded since Record or the last Reset.
func (r *Recorder) Events() []tidings.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list()
}

// list is called with mu held.
func (r *Recorder) list() []tidings.Event {
	var out []tidings.Event
	for _, s := range r.events {
		if s.published {
			out = append(out, s.event)
		}
	}
	return out
}

// Reset forgets what has been recorded. Call [Bus.Settle] before if handlers may
// still publish what is to be forgotten.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = slices.DeleteFunc(r.events, func(s *sight) bool { return s.published })
}

// grace is how long an idle bus is waited for: far above what a goroutine needs
// that is about to publish, and below what makes people wait for a test that fails.
const grace = time.Second

// Within sets how long the methods below wait, whatever the bus does, and returns
// r. It is for events that come from elsewhere, later: of a timer, or of a
// goroutine that works for more than a second. Without it they wait 5 s, or the
// Timeout of the bus's Options, and on a bus of [New] without a transport not on
// when that has been idle for a second. It is for the test's own goroutine.
func (r *Recorder) Within(d time.Duration) *Recorder {
	r.timeout, r.patient = d, true
	return r
}

// Wait waits until n events at least have been recorded, and returns all. The
// test fails at once if they do not come in time.
func (r *Recorder) Wait(n int) []tidings.Event {
	r.t.Helper()
	events, why := r.await(func(events []tidings.Event) bool { return len(events) >= n })
	if why != "" {
		r.t.Fatalf("tidingstest: %d of %d events have come %s\n%s", len(events), n, why, list(events, nil))
	}
	return events
}

// Expect waits until there is, among all that was recorded, an event for each
// matcher, in any order and beside any others; no event stands for two. It returns
// these events in the order of the matchers. The test fails at once, with what
// came and what is missing, if they do not come in time, or if the bus has had
// nothing to do for a second: see [Recorder.Within] for a goroutine that may yet
// publish.
func (r *Recorder) Expect(want ...Matcher) []tidings.Event {
	r.t.Helper()
	return r.expect(want, assign, "")
}

// ExpectInOrder is [Recorder.Expect] for events in the order of the matchers;
// others may come between.
func (r *Recorder) ExpectInOrder(want ...Matcher) []tidings.Event {
	r.t.Helper()
	return r.expect(want, inOrder, " in this order")
}

// ExpectExactly is [Recorder.Expect], in any order, and nothing else: once the
// events have come and the bus has settled as by [Bus.Settle], no others may have
// been recorded.
func (r *Recorder) ExpectExactly(want ...Matcher) []tidings.Event {
	r.t.Helper()
	found := r.expect(want, assign, "")
	r.settle()
	events := r.Events()
	if len(events) != len(want) {
		at := assign(compile(r.t, want), events)
		r.t.Fatalf("tidingstest: %d events came and were not wanted\n%s", len(events)-len(want), list(events, func(i int) string {
			if slices.Contains(at, i) {
				return ""
			}
			return "   <- not wanted"
		}))
	}
	return found
}

// ExpectNone waits until the bus has settled, as [Bus.Settle] does, and fails the
// test at once if an event that matches the pattern has been recorded by then. So
// it tells what all that was published before the call has led to; it cannot tell
// what a goroutine that is no handler will publish later.
func (r *Recorder) ExpectNone(pattern string) {
	r.t.Helper()
	want := compile(r.t, []Matcher{pattern})[0]
	r.settle()
	if events := r.Events(); slices.ContainsFunc(events, want.match) {
		r.t.Fatalf("tidingstest: %s must not come, and did\n%s", pattern, list(events, func(i int) string {
			if want.match(events[i]) {
				return "   <- not wanted"
			}
			return ""
		}))
	}
}

func (r *Recorder) settle() {
	r.t.Helper()
	if r.kit != nil {
		r.kit.Settle()
		return
	}
	d := limit(r.t, r.timeout)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if r.bus.Debugger().Idle(ctx) != nil {
		r.t.Fatalf("tidingstest: the bus is not idle after %v", d)
	}
}

func (r *Recorder) expect(want []Matcher, find func([]matcher, []tidings.Event) []int, how string) []tidings.Event {
	r.t.Helper()
	ms := compile(r.t, want)
	var at []int
	events, why := r.await(func(events []tidings.Event) bool {
		at = find(ms, events)
		return !slices.Contains(at, -1)
	})
	if why != "" {
		r.t.Fatalf("tidingstest: not all wanted events have come%s %s\nmissing:\n%s%s", how, why, missing(ms, at, events), list(events, nil))
	}
	found := make([]tidings.Event, len(at))
	for i, n := range at {
		found[i] = events[n]
	}
	return found
}

// await asks at each new event, until yes or there is nothing to wait for; then it
// says why.
func (r *Recorder) await(enough func([]tidings.Event) bool) (events []tidings.Event, why string) {
	over, cancel := context.WithTimeout(context.Background(), limit(r.t, r.timeout))
	defer cancel()
	patient := r.kit == nil || r.patient || r.kit.Debugger().Snapshot().Attached // or nobody can tell what is still to come
	for {
		events, next := r.next(over)
		switch {
		case enough(events):
			return events, ""
		case why != "":
			return events, why
		case over.Err() != nil:
			return events, fmt.Sprintf("within %v", r.timeout)
		}
		if patient {
			<-next.Done()
		} else if r.kit.quiet(next, grace) {
			why = fmt.Sprintf("until the bus had been idle for %v (Within waits for what comes later)", grace)
		}
	}
}

// next returns what has been recorded, and a context that ends with the next event
// or with over.
func (r *Recorder) next(over context.Context) ([]tidings.Event, context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.more != nil {
		r.more()
	}
	next, more := context.WithCancel(over)
	r.more = more
	return r.list(), next
}

// missing lists the matchers without an event, and what came in its place.
func missing(want []matcher, at []int, events []tidings.Event) string {
	var out strings.Builder
	for i, m := range want {
		if at[i] >= 0 {
			continue
		}
		fmt.Fprintf(&out, "  %s\n", m.text)
		for n, e := range events {
			switch {
			case slices.Contains(at, n) || m.topic == "" || !covers(m.topic, e.Topic()):
			case m.payload && !m.match(e):
				fmt.Fprintf(&out, "    event %d has another payload: %s\n", n+1, showEvent(e))
			case m.match(e):
				fmt.Fprintf(&out, "    event %d came at another place: %s\n", n+1, showEvent(e))
			}
		}
	}
	return out.String()
}

// list is what came, each with a remark.
func list(events []tidings.Event, remark func(int) string) string {
	if len(events) == 0 {
		return "came: nothing"
	}
	out := "came:"
	for i, e := range events {
		out += fmt.Sprintf("\n%3d. %s", i+1, showEvent(e))
		if remark != nil {
			out += remark(i)
		}
	}
	return out
}
