package tidings

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// item is one event that waits for a handler.
type item struct {
	ctx   context.Context // the publisher's, for its values
	event Event
}

// queue is what waits for the workers of one lane: a place in a ring. Workers wait
// on a condition variable and take several events at a time, which a worker that
// is alone reads where they are.
type queue struct {
	sub  *Subscription
	ring atomic.Pointer[ring] // whose mu guards what follows; see lock

	head     uint64 // number of the oldest item that is not done
	held     int    // items from head on that are in the hand of the only worker
	start    uint64 // number of the first item ever, had it had no other ring before
	at       int    // index among the ring's readers
	nonEmpty *sync.Cond
	waiting  int           // workers that wait and have not been told of an event
	busy     int           // workers with events in hand
	idle     chan struct{} // closed when nothing waits and nothing is in hand; nil when nobody asks
	closed   bool          // takes no more; what is in it is still handed out
	hurried  bool          // batches are no longer waited for
	apart    bool          // shares no ring, or not any more

	cleared atomic.Bool // what workers have in hand is to be dropped too
	bursted atomic.Bool // a burst of drops has been logged
}

func newQueue(bound int, s *Subscription) *queue {
	q := &queue{sub: s}
	(&ring{bound: uint64(bound)}).readBy(q)
	return q
}

// lock locks the ring that the queue reads.
func (q *queue) lock() *ring {
	for {
		r := q.ring.Load()
		r.mu.Lock()
		if q.ring.Load() == r {
			return r
		}
		r.mu.Unlock()
	}
}

// lockOwn is lock for what concerns this queue alone.
func (q *queue) lockOwn() *ring {
	r := q.lock()
	if len(r.readers) > 1 {
		r.part(q)
		r.mu.Unlock()
		r = q.ring.Load() // for good
		r.mu.Lock()
	}
	return r
}

// part has it share no ring from now on.
func (q *queue) part() {
	r := q.lockOwn()
	defer r.mu.Unlock()
	q.apart = true
}

// n counts what waits or is in hand.
func (q *queue) n(r *ring) int { return int(r.tail - q.head) }

// put results.
type putResult uint8

const (
	putOK putResult = iota
	putFull
	putClosed
)

// offer adds it if there is room.
func (q *queue) offer(ctx context.Context, e *Event) putResult {
	r := q.lockOwn()
	defer r.mu.Unlock()
	switch {
	case q.closed:
		return putClosed
	case r.tail >= r.limit && r.full():
		return putFull
	}
	r.push(ctx, e)
	return putOK
}

// room returns a channel that is closed when the queue may have room.
func (q *queue) room() <-chan struct{} {
	r := q.lockOwn()
	defer r.mu.Unlock()
	return r.room()
}

var closedChan = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// replaceOldest adds it, in place of the oldest if there is no room. Workers of
// such a queue copy what they take, so that nothing is held.
func (q *queue) replaceOldest(ctx context.Context, e *Event) (dropped item, full bool, res putResult) {
	r := q.lockOwn()
	defer r.mu.Unlock()
	if q.closed {
		return item{}, false, putClosed
	}
	if r.tail >= r.limit && r.full() {
		full, dropped = true, *r.slot(q.head)
		r.advance(q, 1)
	}
	r.push(ctx, e)
	return dropped, full, putOK
}

// take gives the worker its next events; what it had in hand is done. false: the
// queue is closed and empty.
func (q *queue) take(w *worker) bool {
	r := q.lock()
	q.release(r, w)
	for {
		for q.n(r) == 0 {
			if q.closed {
				r.mu.Unlock()
				return false
			}
			r = q.wait(r)
		}
		if w.linger == 0 {
			break
		}
		if r = q.linger(r, w); q.n(r) > 0 { // else another worker has taken it
			break
		}
	}
	defer r.mu.Unlock()
	k := min(q.n(r), w.limit)
	if w.alone {
		first := int(q.head & uint64(len(r.items)-1))
		q.held = min(k, len(r.items)-first)
		w.batch = r.items[first : first+q.held]
	} else {
		for ; k > 0; k-- {
			w.batch = append(w.batch, *r.slot(q.head))
			r.advance(q, 1)
		}
	}
	w.taken += uint64(len(w.batch))
	w.busy = true
	q.busy++
	if q.n(r) == q.held {
		q.bursted.Store(false)
	}
	return true
}

// release gives back what the worker had in hand. The ring is locked.
func (q *queue) release(r *ring, w *worker) {
	if w.busy {
		w.busy = false
		q.busy--
		if w.alone {
			w.batch = nil
			n := q.held
			q.held = 0
			r.advance(q, uint64(n))
		} else {
			clear(w.batch)
			w.batch = w.batch[:0]
		}
	}
	q.tellIdle(r)
}

func (q *queue) tellIdle(r *ring) {
	if q.idle != nil && q.n(r) == 0 && q.busy == 0 {
		close(q.idle)
		q.idle = nil
	}
}

// wait waits for an event, in whatever ring is the queue's by then.
func (q *queue) wait(r *ring) *ring {
	if q.waiting++; q.waiting == 1 {
		r.sleepers++
	}
	if q.nonEmpty.Wait(); q.ring.Load() == r {
		return r
	}
	r.mu.Unlock()
	return q.lock()
}

// wakeAll is called with the ring locked.
func (q *queue) wakeAll(r *ring) {
	if q.waiting > 0 {
		r.sleepers--
		q.waiting = 0
	}
	q.nonEmpty.Broadcast()
}

// linger waits for a batch to fill, as long as the worker may.
func (q *queue) linger(r *ring, w *worker) *ring {
	over := false
	timer := time.AfterFunc(w.linger, func() {
		r := q.lock()
		defer r.mu.Unlock()
		over = true
		q.wakeAll(r)
	})
	defer timer.Stop()
	for q.n(r) > 0 && q.n(r) < min(w.limit, int(r.bound)) && !over && !q.closed && !q.hurried {
		r = q.wait(r)
	}
	return r
}

// hurry ends waiting for batches to fill.
func (q *queue) hurry() {
	r := q.lock()
	defer r.mu.Unlock()
	q.hurried = true
	q.wakeAll(r)
}

// whenIdle returns a channel that is closed once nothing waits and nothing is in
// hand, and how much was ever accepted.
func (q *queue) whenIdle() (<-chan struct{}, uint64) {
	r := q.lock()
	defer r.mu.Unlock()
	accepted := r.tail - q.start
	if q.n(r) == 0 && q.busy == 0 {
		return closedChan, accepted
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	return q.idle, accepted
}

// accepted is how much was ever put into it.
func (q *queue) accepted() uint64 {
	r := q.lock()
	defer r.mu.Unlock()
	return r.tail - q.start
}

// close makes offer fail; take goes on until the queue is empty.
func (q *queue) close() {
	r := q.lockOwn()
	defer r.mu.Unlock()
	q.closeLocked(r)
}

func (q *queue) closeLocked(r *ring) {
	q.closed, q.apart, r.limit = true, true, 0
	q.wakeAll(r)
	r.tellSpace()
}

// clear closes the queue and returns what was in it; workers drop what they have
// in hand and have not begun.
func (q *queue) clear() []item {
	r := q.lockOwn()
	defer r.mu.Unlock()
	q.closeLocked(r)
	q.cleared.Store(true)
	var left []item
	from := q.head + uint64(q.held)
	for n := from; n < r.tail; n++ {
		left = append(left, *r.slot(n))
	}
	r.clear(from, r.tail)
	q.start -= r.tail - from // it counts what was accepted
	r.tail = from
	q.tellIdle(r)
	return left
}

// len counts what waits and is in nobody's hand.
func (q *queue) len() int {
	r := q.lock()
	defer r.mu.Unlock()
	return q.n(r) - q.held
}

// putWait offers until there is room, timeout has passed or ctx has ended.
func (q *queue) putWait(ctx context.Context, e *Event, timeout time.Duration) putResult {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		space := q.room()
		if res := q.offer(ctx, e); res != putFull {
			return res
		}
		select {
		case <-space:
		case <-timer.C:
			return putFull
		case <-ctx.Done():
			return putFull
		}
	}
}
