package tidings

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// drainRetry is how far away a retry may be for a drain to wait for it. A failing
// event must not use up the deadline of every deploy.
const drainRetry = time.Second

// holds keep the order of the keys of a durable subscription: an event that is to
// be retried holds its key, and later ones of the key wait behind it. All of them
// stay unsettled, so they count as in flight and the transport keeps them alive.
// Workers take from their queue and never wait: what is due goes to the queue
// again. No user code runs under mu.
type holds struct {
	sub *Subscription
	n   atomic.Int64 // events held

	mu      sync.Mutex
	keys    map[string]*hold
	hurried bool          // the subscription drains: nobody waits for a distant retry
	closed  bool          // nothing is held any more
	warned  bool          // of many that wait
	empty   chan struct{} // closed when nothing is held; nil when nobody asks
}

// hold is one key.
type hold struct {
	queue   *queue
	items   []item // the first comes next
	offered bool   // it is in the queue, or in its worker's hand
	due     time.Time
	timer   *time.Timer
}

// handleInOrder is handle for a durable subscription with a Key. Only the worker
// of a key's lane calls it for that key.
func (s *Subscription) handleInOrder(w *worker, it item) {
	var key string
	if s.held.n.Load() > 0 {
		if key = s.keyOf(it.event); !s.held.enter(key, it) {
			s.counts.unhandled.Add(1) // it comes again
			s.held.warn()
			s.refill()
			return
		}
	}
	// Its own retries are one beginning: only a death is without an outcome.
	if s.missed(it.event) || !it.event.r.begun && !s.begin(w, it) || !s.attemptInOrder(w, it) {
		s.passOn(it.event)
	}
}

// attemptInOrder calls the handler and reports whether the event holds its key.
func (s *Subscription) attemptInOrder(w *worker, it item) (holds bool) {
	it.event.r.begun = true
	err := s.call(it.ctx, it.event)
	if err == nil || s.wasCut(it, err) {
		s.finished(it, err)
		return false
	}
	t := s.bus.tries.failed(s.tryKey(it.event))
	s.counts.unhandled.Add(1)
	if !s.again(err, t.failures) {
		s.giveUp(it.event, err, t)
		return false
	}
	it.event = it.event.withAttempt(it.event.Attempt() + 1)
	it.event.r.failures = t.failures
	s.held.retry(s.keyOf(it.event), w.queue, it, s.retryDelay(err, t.failures))
	s.refill()
	return true
}

// passOn lets the next event of the key come.
func (s *Subscription) passOn(e Event) {
	if s.held.n.Load() > 0 {
		s.held.next(s.keyOf(e))
	}
}

// enter reports whether the event may be handled now; if not it waits.
func (hs *holds) enter(key string, it item) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.keys[key]
	if h == nil || h.offered && h.items[0].event.r == it.event.r {
		return true
	}
	h.items = append(h.items, it)
	hs.n.Add(1)
	return false
}

// retry holds the key of an event that has failed, until delay has passed and it
// was handled.
func (hs *holds) retry(key string, q *queue, it item, delay time.Duration) {
	hs.mu.Lock()
	h := hs.keys[key]
	if h == nil {
		h = &hold{queue: q, items: []item{it}}
		hs.n.Add(1)
	}
	h.items[0], h.offered, h.due = it, false, time.Now().Add(delay)
	if hs.keys == nil {
		hs.keys = map[string]*hold{}
	}
	hs.keys[key] = h
	var back []item
	if hs.closed || hs.hurried && delay > drainRetry {
		back = hs.release(key)
	} else {
		h.timer = time.AfterFunc(delay, func() { hs.offerDue(key, h) })
	}
	hs.mu.Unlock()
	hs.sub.handBackAll(back, delay)
}

// next lets the one behind a handled event come.
func (hs *holds) next(key string) {
	hs.mu.Lock()
	h := hs.keys[key]
	if h == nil {
		hs.mu.Unlock()
		return
	}
	h.items[0] = item{}
	h.items, h.offered = h.items[1:], false
	hs.n.Add(-1)
	var back []item
	if len(h.items) == 0 {
		delete(hs.keys, key)
		hs.tellEmpty()
	} else {
		back = hs.offer(key, h)
	}
	hs.mu.Unlock()
	hs.sub.handBackAll(back, 0)
}

func (hs *holds) offerDue(key string, h *hold) {
	hs.mu.Lock()
	var back []item
	if hs.keys[key] == h && !h.offered {
		back = hs.offer(key, h)
	}
	hs.mu.Unlock()
	hs.sub.handBackAll(back, 0)
}

// offer puts the first of a key into the queue again, which has room for all that
// is in flight. If it is closed the key is let go. mu is held.
func (hs *holds) offer(key string, h *hold) (back []item) {
	if first := &h.items[0]; h.queue.offer(first.ctx, &first.event) != putOK {
		return hs.release(key)
	}
	h.offered = true
	hs.sub.counts.requeued.Add(1)
	return nil
}

// release lets a key go and returns its events, without one that is in the queue
// or in hand: that one has its own fate. mu is held.
func (hs *holds) release(key string) []item {
	h := hs.keys[key]
	delete(hs.keys, key)
	hs.n.Add(-int64(len(h.items)))
	if h.timer != nil {
		h.timer.Stop()
	}
	hs.tellEmpty()
	if h.offered {
		return h.items[1:]
	}
	return h.items
}

func (hs *holds) tellEmpty() {
	if len(hs.keys) == 0 {
		hs.warned = false
		if hs.empty != nil {
			close(hs.empty)
			hs.empty = nil
		}
	}
}

// whenEmpty returns a channel that is closed once nothing is held.
func (hs *holds) whenEmpty() <-chan struct{} {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if len(hs.keys) == 0 {
		return closedChan
	}
	if hs.empty == nil {
		hs.empty = make(chan struct{})
	}
	return hs.empty
}

// hurry hands back what waits for a retry that is far away, from now on.
func (hs *holds) hurry() {
	hs.mu.Lock()
	hs.hurried = true
	now := time.Now()
	type late struct {
		items []item
		delay time.Duration
	}
	var back []late
	for key, h := range hs.keys {
		if wait := h.due.Sub(now); !h.offered && wait > drainRetry {
			back = append(back, late{hs.release(key), wait})
		}
	}
	hs.mu.Unlock()
	for _, l := range back {
		hs.sub.handBackAll(l.items, l.delay)
	}
}

// waiting counts the events that are held and in no queue.
func (hs *holds) waiting() (n int) {
	if hs.n.Load() == 0 {
		return 0
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range hs.keys {
		if n += len(h.items); h.offered {
			n--
		}
	}
	return n
}

// close lets everything go and returns it.
func (hs *holds) close() (left []item) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.closed = true
	for key := range hs.keys {
		left = append(left, hs.release(key)...)
	}
	return left
}

// warn says so when failing events hold up most of what may be in flight: then
// other keys get nothing either.
func (hs *holds) warn() {
	s, n := hs.sub, int(hs.n.Load())
	if n < s.opts.Queue-s.opts.Queue/4 {
		return
	}
	hs.mu.Lock()
	told, keys := hs.warned, len(hs.keys)
	hs.warned = true
	hs.mu.Unlock()
	if told {
		return
	}
	s.bus.inside(func() {
		s.bus.opts.Logger.Warn("tidings: events wait behind failing ones of their key and soon hold up all others: mend the handler, bound Retry.Attempts, or raise Queue",
			"pattern", s.pattern, "group", s.opts.Group, "held", n, "keys", keys, "queue", s.opts.Queue)
	})
}

// refill has the transport take more: what is held is no work.
func (s *Subscription) refill() {
	s.bus.mu.Lock()
	f := s.joined
	s.bus.mu.Unlock()
	if f != nil {
		f.refill()
	}
}

// keyOf asks the user's Key; what it panics with is reported.
func (s *Subscription) keyOf(e Event) (key string) {
	if err := protect(func() error { key = s.opts.Key(e); return nil }); err != nil {
		s.bus.report(context.Background(), &Error{Op: "key", Topic: e.Topic(), Err: err})
	}
	return key
}
