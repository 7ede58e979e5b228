package tidings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/activity"
)

// Debugger shows what a bus does, to tools and tests. It changes nothing. Its
// methods may be called concurrently and from inside handlers.
type Debugger struct{ b *Bus }

// Debugger returns the bus's debugger.
func (b *Bus) Debugger() *Debugger { return &Debugger{b} }

// Snapshot is the state of a bus at one moment.
type Snapshot struct {
	App, Instance string
	Attached      bool
	Transport     adapter.Stats // zero unless Attached
	Subscriptions []SubscriptionInfo
	Dropped       uint64      // events that queues dropped, also of subscriptions that have ended
	Topics        []TopicInfo // those remembered: at most some 4096 by name, and all typed ones
}

// TopicInfo is the state of one topic.
type TopicInfo struct {
	Name      string
	Events    uint64 // since it is remembered, without those that nobody listened to
	Listeners int    // subscriptions of this process
	Publish   string // the class of what is published: "local", "live" or "durable"
}

// SubscriptionInfo is the state of one subscription. Counts are since it began;
// those of inline handlers are exact but for events under way when it began.
//
// Received counts receptions: an event that the store delivers twice is received
// twice, and one that waits for its retry inside the process is received once,
// however often it is tried. What a Filter refuses is not received. Each reception
// has one outcome: Handled, GaveUp, Returned, Expired or Dropped. Until it has, it
// is in Queued or Running. Once the subscription has ended, what has none is Left,
// and the sum of these is Received.
type SubscriptionInfo struct {
	Name, Pattern, Group               string // Name is of SubscribeOptions
	Durable, Inline                    bool
	Ready                              bool   // Bus.Ready has seen its events flow; one that is only local always is
	Place                              string // file:line of the call that made it
	Queued                             int    // events that wait, also for a retry or behind one of their key
	Running                            uint64 // handlers that run; not known of inline ones
	Received, Redelivered              uint64 // receptions and, of these, those of events that the store had delivered before
	Handled, Failed, Panicked, Dropped uint64 // events handled and dropped, attempts that failed
	Acked                              uint64 // of durable events handled, those of which the store has confirmed the acknowledgement
	GaveUp                             uint64 // events failed for good: DeadLetters, and other events whose last attempt failed
	Returned                           uint64 // durable events that went back while the subscription lived, to come again: for a retry, as a rule
	DeadLetters                        uint64 // durable events given up, and stored as dead letters
	DeadLetterErrors                   uint64 // times that one could not be stored: its event comes again
	Expired                            uint64 // events that came too late to be handled
	HungEver                           uint64 // handlers that did not return in time
	Hung                               []Hung // those that still have not
	Latency                            Latency
	// Lag is how many events wait in the store that no process of the group was given
	// yet, as the transport heard last; if LagKnown.
	Lag      uint64
	LagKnown bool
	// Missing is how many live events were sent that no process of the group got, as
	// far as the transport knows: the same number in every process of the group.
	Missing uint64
	// Ended: it was drained with its bus, and counts are final, but for handlers that
	// the deadline did not wait for: their events are Left.
	Ended bool
	Left  uint64 // events without an outcome when it ended
	// HandedBack and Unconfirmed are those of its [LeftError], once Ended.
	HandedBack, Unconfirmed []Event

	active *activity.Marks
}

// Active says in which 10 ms from a slot on events came from the transport, as far
// back as some 5 s: bit i, counted from the highest of the first hexadecimal digit,
// is of slot first+i. Slots are of the process's own clock or, under worker.Run, of
// CLOCK_MONOTONIC. The last one is not over. It may be called concurrently, and
// inside a handler.
func (i SubscriptionInfo) Active(from int64) (first int64, bits string) {
	if i.active == nil {
		return 0, ""
	}
	return i.active.Since(from, activity.Now())
}

// Hung is a handler that does not return.
type Hung struct {
	Event Event
	Since time.Time // no later than this it ran already
	Stack []byte    // of its goroutine when it was found
}

// Snapshot returns the present state. It costs the publishers nothing but the
// memory traffic of reading their counters. From [Bus.Drain] on it shows the
// subscriptions that are drained, also when that is over.
func (d *Debugger) Snapshot() Snapshot {
	b := d.b
	subs, _, a := b.members()
	snap := Snapshot{App: b.opts.App, Instance: b.opts.Instance, Attached: a != nil, Dropped: b.dropped.Load()}
	if a != nil {
		snap.Transport = a.Stats()
	}
	b.mu.Lock()
	if b.last != nil {
		subs = b.last
	}
	inline, feeds := make([]uint64, len(subs)), make([]*feed, len(subs))
	for i, s := range subs {
		inline[i], feeds[i] = s.ran.count(), s.joined
	}
	for e := range b.names.all {
		snap.Topics = append(snap.Topics, e.info())
	}
	b.mu.Unlock()
	for i, s := range subs {
		if !s.watcher {
			info := s.info(inline[i])
			info.Ready = feeds[i] == nil || feeds[i].proven.Load()
			info.Lag, info.LagKnown = feeds[i].lag()
			info.Missing = feeds[i].missing()
			if feeds[i] != nil {
				info.active = &feeds[i].active
			}
			snap.Subscriptions = append(snap.Subscriptions, info)
		}
	}
	slices.SortFunc(snap.Topics, func(x, y TopicInfo) int { return cmp.Compare(x.Name, y.Name) })
	return snap
}

// info is called with bus.mu held.
func (e *entry) info() TopicInfo {
	v := e.bus.refreshLocked(e)
	t := TopicInfo{Name: e.topic, Events: e.count.Load(), Publish: Local.String()}
	if e.typed != nil {
		t.Events += e.typed.alone()
	}
	if v != nil {
		t.Listeners = len(v.inline) + len(v.queued) - v.watchers
		if v.publish != 0 {
			t.Publish = Class(v.publish + 1).String() // the adapter's classes begin with live
		}
	}
	return t
}

func (s *Subscription) info(inline uint64) SubscriptionInfo {
	c := &s.counts
	i := SubscriptionInfo{Name: s.opts.Name, Pattern: s.pattern, Group: s.opts.Group, Durable: s.opts.Durable, Inline: s.opts.Inline,
		Place: s.where(), Failed: c.failed.Load(), Panicked: c.panicked.Load(), Dropped: c.dropped.Load(),
		DeadLetters: c.dead.Load(), DeadLetterErrors: c.undead.Load(), Expired: c.expired.Load(), HungEver: c.hung.Load(), Latency: c.latency.read()}
	called := inline + c.inline.Load()
	ended, received := called, called+c.aside.Load()
	i.Queued = s.held.waiting()
	for _, q := range s.lanes {
		i.Queued += q.len()
		received += q.accepted()
	}
	for _, w := range s.workers {
		waiting, running := w.inHand()
		i.Queued += waiting
		ended += w.begun.Load()
		if running {
			i.Running++
			ended--
		}
		if h := s.bus.hung.of(w); h != nil {
			i.Hung = append(i.Hung, *h)
		}
	}
	i.Handled = ended - min(c.unhandled.Load(), ended)
	i.Received = received - min(c.requeued.Load(), received)
	i.Redelivered, i.Acked, i.GaveUp, i.Returned = c.redelivered.Load(), c.acked.Load(), c.gaveUp.Load()+i.DeadLetters, c.returned.Load()
	select {
	case <-s.done:
		i.end(s.err)
	default:
	}
	return i
}

// end says what was left. A handler that returned after its event was handed back
// is not believed: the event is handled again.
func (i *SubscriptionInfo) end(err error) {
	i.Ended = true
	if left, ok := errors.AsType[*LeftError](err); ok {
		i.HandedBack, i.Unconfirmed = left.HandedBack, left.Unconfirmed
	}
	over := i.Handled + i.GaveUp + i.Returned + i.Expired + i.Dropped
	i.Left = i.Received - min(over, i.Received)
	if back := uint64(len(i.HandedBack)); back > i.Left {
		i.Handled -= min(back-i.Left, i.Handled)
		i.Left = back
	}
}

// of returns what is known of a worker's handler, unless that has returned since: nobody
// looks again before there are more events.
func (h *hungHandlers) of(w *worker) *Hung {
	h.mu.Lock()
	hung, seen := w.watch.hung, w.watch.begun
	h.mu.Unlock()
	if hung == nil {
		return nil // as nearly always: the queue's lock is left to publishers
	}
	if _, begun, running := w.current(); !running || begun != seen {
		return nil
	}
	return hung
}

// where is the line that asked for the subscription.
func (s *Subscription) where() string {
	frames := runtime.CallersFrames(s.place[:])
	for {
		f, more := frames.Next()
		if f.File != "" && !isOurs(f.Function) {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		if !more {
			return ""
		}
	}
}

// Idle waits until every event that was accepted has been handled and no handler
// runs on a queue, also of subscriptions that were stopped; it returns ctx's error
// if that ends first. Called inside a handler it returns nil at once, since it
// cannot wait for its own caller. A batch that waits for more events is not idle.
func (d *Debugger) Idle(ctx context.Context) error {
	if d.b.insideHandler() {
		return nil
	}
	return d.b.idle(ctx)
}

// isOurs: packages that subscribe for their callers.
func isOurs(function string) bool {
	path, in := strings.CutPrefix(function, "github.com/tidings-go/tidings")
	return in && (path[0] == '.' || strings.HasPrefix(path, "/subscriber.") || strings.HasPrefix(path, "/report."))
}

// watchBuffer is how far who watches may fall behind before it misses events.
const watchBuffer = 256

// Watch yields the events of this process that match the pattern and, unless it
// is nil, the filter, from now until ctx or the bus ends: what is published here,
// and what comes from the transport for a subscription that there is. It asks the
// transport for nothing, and publishers never wait for it: missed counts what came
// faster than it was read. Call it once for each loop.
func (d *Debugger) Watch(ctx context.Context, pattern string, filter func(Event) bool) (events iter.Seq[Event], missed func() uint64, err error) {
	var n atomic.Uint64
	c := make(chan Event, watchBuffer)
	s := &Subscription{watcher: true, handler: func(_ context.Context, e Event) error {
		if filter != nil && !filter(e) {
			return nil
		}
		select {
		case c <- e:
		default:
			n.Add(1)
		}
		return nil
	}}
	if s, err = d.b.subscribe(ctx, pattern, s, &SubscribeOptions{Inline: true, Broadcast: true}); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, s.Stop)
	return func(yield func(Event) bool) {
		defer stop()
		defer s.Stop()
		for {
			select {
			case e := <-c:
				if !yield(e) {
					return
				}
			case <-s.Done():
				for len(c) > 0 {
					if !yield(<-c) {
						return
					}
				}
				return
			}
		}
	}, n.Load, nil
}

// show gives those who watch an event that came from the transport.
func (b *Bus) show(ctx context.Context, e Event) {
	if b.watchers.Load() == 0 {
		return
	}
	var watch []*Subscription
	b.mu.Lock()
	b.patterns.match(e.Topic(), func(s *Subscription) {
		if s.watcher {
			watch = append(watch, s)
		}
	})
	b.mu.Unlock()
	for _, s := range watch {
		_ = s.call(ctx, e) // reported by call
	}
}

// runs counts the calls of an inline handler from what its topics count: an event
// that a hundred handlers get is counted once. Guarded by bus.mu.
type runs struct {
	before uint64
	topics map[*entry]uint64 // their counts when the subscription joined
}

func (r *runs) follow(e *entry) {
	if r.topics == nil {
		r.topics = map[*entry]uint64{}
	}
	if _, already := r.topics[e]; !already {
		r.topics[e] = e.count.Load()
	}
}

func (r *runs) unfollow(e *entry) {
	if base, ok := r.topics[e]; ok {
		r.before += e.count.Load() - base
		delete(r.topics, e)
	}
}

func (r *runs) count() uint64 {
	n := r.before
	for e, base := range r.topics {
		n += e.count.Load() - base
	}
	return n
}
