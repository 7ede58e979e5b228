package tidings

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// item is one event that waits for a handler.
type item struct {
	ctx   context.Context // the publisher's, for its values
	event Event
}

// queue is a bounded ring between publishers and the workers of one lane. No
// user code runs under its lock. Workers wait on a condition variable and take
// several events at a time, which a worker that is alone reads where they are.
type queue struct {
	mu       sync.Mutex
	nonEmpty sync.Cond
	ring     []item // its length is a power of two; grows up to bound, so that an idle subscription is small
	head, n  int
	held     int // of n, from head: in the hand of the only worker
	bound    int
	limit    int           // bound, or 0 once it is closed
	waiting  int           // workers that wait and have not been told of an event
	busy     int           // workers with events in hand
	accepted uint64        // events ever
	space    chan struct{} // closed when an item was taken; nil when nobody waits
	idle     chan struct{} // closed when nothing waits and nothing is in hand; nil when nobody asks
	closed   bool          // takes no more; what is in it is still handed out
	hurried  bool          // batches are no longer waited for
	cleared  atomic.Bool   // what workers have in hand is to be dropped too
	bursted  atomic.Bool   // a burst of drops has been logged
}

func newQueue(bound int) *queue {
	q := &queue{bound: bound, limit: bound}
	q.nonEmpty.L = &q.mu
	return q
}

// put results.
type putResult uint8

const (
	putOK putResult = iota
	putFull
	putClosed
)

// offer adds it if there is room.
func (q *queue) offer(ctx context.Context, e *Event) putResult {
	q.mu.Lock()
	if q.n >= q.limit {
		return q.refuse()
	}
	q.push(ctx, e)
	q.mu.Unlock()
	return putOK
}

// offerNew is offer of an event that is nothing yet but its number.
func (q *queue) offerNew(ctx context.Context, l *lone, payload any) (num uint64, ok bool) {
	q.mu.Lock()
	l.n++
	num = l.n << attemptBits
	if q.n >= q.limit {
		q.mu.Unlock()
		return num, false
	}
	it := q.slot()
	it.ctx = ctx
	it.event.r = &l.plain
	it.event.payload = payload
	it.event.num = num
	q.pushed()
	q.mu.Unlock()
	return num, true
}

// refuse says why there is no room, and unlocks.
func (q *queue) refuse() putResult {
	defer q.mu.Unlock()
	if q.closed {
		return putClosed
	}
	return putFull
}

// room returns a channel that is closed when the queue may have room.
func (q *queue) room() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.n < q.bound {
		return closedChan
	}
	if q.space == nil {
		q.space = make(chan struct{})
	}
	return q.space
}

var closedChan = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// replaceOldest adds it, in place of the oldest if there is no room. Workers of
// such a queue copy what they take, so that nothing is held.
func (q *queue) replaceOldest(ctx context.Context, e *Event) (dropped item, full bool, res putResult) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return item{}, false, putClosed
	}
	if full = q.n == q.bound; full {
		dropped = q.pop()
	}
	q.push(ctx, e)
	return dropped, full, putOK
}

func (q *queue) push(ctx context.Context, e *Event) {
	it := q.slot()
	// Word by word: reading what was just written in larger pieces than it was
	// written in stalls the processor, for longer than all the rest takes.
	it.ctx = ctx
	it.event.r = e.r
	it.event.payload = e.payload
	it.event.start = e.start
	it.event.dur = e.dur
	it.event.num = e.num
	q.pushed()
}

// slot is the next free place, which is zero.
func (q *queue) slot() *item {
	if q.n == len(q.ring) {
		q.grow()
	}
	return &q.ring[(q.head+q.n)&(len(q.ring)-1)]
}

func (q *queue) pushed() {
	q.n++
	q.accepted++
	if q.waiting > 0 {
		q.waiting-- // here, since it may be long until the worker runs
		q.nonEmpty.Signal()
	}
}

func (q *queue) pop() item {
	it := q.ring[q.head]
	q.discard(1)
	return it
}

// discard lets go of the oldest: the ring must not keep payloads alive.
func (q *queue) discard(n int) {
	clear(q.ring[q.head : q.head+n])
	q.head = (q.head + n) & (len(q.ring) - 1)
	q.n -= n
}

func (q *queue) grow() {
	ring := make([]item, max(2*len(q.ring), 8))
	for i := range q.n {
		ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
	}
	q.ring, q.head = ring, 0
}

// take gives the worker its next events; what it had in hand is done. false: the
// queue is closed and empty.
func (q *queue) take(w *worker) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(w)
	for {
		for q.n == 0 {
			if q.closed {
				return false
			}
			q.wait()
		}
		if w.linger == 0 || q.linger(w) {
			break
		}
	}
	if w.alone {
		q.held = min(q.n, w.limit, len(q.ring)-q.head)
		w.batch = q.ring[q.head : q.head+q.held]
	} else {
		for k := min(q.n, w.limit); k > 0; k-- {
			w.batch = append(w.batch, q.pop())
		}
	}
	w.taken += uint64(len(w.batch))
	w.busy = true
	q.busy++
	if q.n == q.held {
		q.bursted.Store(false)
	}
	q.tellSpace()
	return true
}

func (q *queue) tellSpace() {
	if q.space != nil {
		close(q.space)
		q.space = nil
	}
}

// release is called with mu held.
func (q *queue) release(w *worker) {
	if w.busy {
		w.busy = false
		q.busy--
		if w.alone {
			w.batch = nil
			q.discard(q.held)
			q.held = 0
			q.tellSpace()
		} else {
			clear(w.batch)
			w.batch = w.batch[:0]
		}
	}
	if q.n == 0 && q.busy == 0 && q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
}

func (q *queue) wait() {
	q.waiting++
	q.nonEmpty.Wait()
}

// wakeAll is called with mu held.
func (q *queue) wakeAll() {
	q.waiting = 0
	q.nonEmpty.Broadcast()
}

// linger waits for a batch to fill, as long as the worker may; false: another
// worker has taken it. mu is held.
func (q *queue) linger(w *worker) bool {
	over := false
	timer := time.AfterFunc(w.linger, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		over = true
		q.wakeAll()
	})
	defer timer.Stop()
	for q.n > 0 && q.n < min(w.limit, q.bound) && !over && !q.closed && !q.hurried {
		q.wait()
	}
	return q.n > 0
}

// hurry ends waiting for batches to fill.
func (q *queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hurried = true
	q.wakeAll()
}

// whenIdle returns a channel that is closed once nothing waits and nothing is in
// hand, and how much was ever accepted.
func (q *queue) whenIdle() (<-chan struct{}, uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == 0 && q.busy == 0 {
		return closedChan, q.accepted
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	return q.idle, q.accepted
}

// close makes put fail; take goes on until the queue is empty.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.limit = true, 0
	q.wakeAll()
	q.tellSpace()
}

// clear closes the queue and returns what was in it; workers drop what they have
// in hand and have not begun.
func (q *queue) clear() []item {
	q.close()
	q.cleared.Store(true)
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []item
	for ; q.n > q.held; q.n-- {
		it := &q.ring[(q.head+q.n-1)&(len(q.ring)-1)]
		left = append(left, *it)
		*it = item{}
	}
	slices.Reverse(left)
	return left
}

// len counts what waits and is in nobody's hand.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n - q.held
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
