package tidings

import (
	"context"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// item is one event that waits for a handler.
type item struct {
	ctx    context.Context // the publisher's, for its values
	event  Event
	settle adapter.Settler // of durable events
}

// queue is a bounded ring between publishers and the workers of one lane. No
// user code runs under its lock. Workers wait on a condition variable: measured
// on two cores at half the cost of a channel when several publish.
type queue struct {
	mu       sync.Mutex
	nonEmpty sync.Cond
	ring     []item // grows up to bound, so that an idle subscription is small
	head, n  int
	bound    int
	space    chan struct{} // closed when an item was taken; nil when nobody waits
	closed   bool          // takes no more; what is in it is still handed out
}

func newQueue(bound int) *queue {
	q := &queue{bound: bound}
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

// offer adds it if there is room. Full: the channel is closed at the next take.
func (q *queue) offer(it item) (putResult, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return putClosed, nil
	case q.n == q.bound:
		if q.space == nil {
			q.space = make(chan struct{})
		}
		return putFull, q.space
	}
	q.push(it)
	return putOK, nil
}

// replaceOldest adds it, in place of the oldest if there is no room.
func (q *queue) replaceOldest(it item) (dropped item, full bool, res putResult) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return item{}, false, putClosed
	}
	if full = q.n == q.bound; full {
		dropped = q.pop()
	}
	q.push(it)
	return dropped, full, putOK
}

func (q *queue) push(it item) {
	if q.n == len(q.ring) {
		q.grow()
	}
	q.ring[(q.head+q.n)%len(q.ring)] = it
	q.n++
	q.nonEmpty.Signal()
}

func (q *queue) pop() item {
	it := q.ring[q.head]
	q.ring[q.head] = item{} // the ring must not keep payloads alive
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return it
}

func (q *queue) grow() {
	ring := make([]item, min(max(2*len(q.ring), 8), q.bound))
	for i := range q.n {
		ring[i] = q.ring[(q.head+i)%len(q.ring)]
	}
	q.ring, q.head = ring, 0
}

// take waits for an item. false: the queue is closed and empty.
func (q *queue) take() (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 {
		if q.closed {
			return item{}, false
		}
		q.nonEmpty.Wait()
	}
	it := q.pop()
	if q.space != nil {
		close(q.space)
		q.space = nil
	}
	return it, true
}

// close makes put fail; take goes on until the queue is empty.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.nonEmpty.Broadcast()
	if q.space != nil {
		close(q.space)
		q.space = nil
	}
}

// clear closes the queue and returns what was in it.
func (q *queue) clear() []item {
	q.close()
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []item
	for q.n > 0 {
		left = append(left, q.pop())
	}
	return left
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// putWait offers until there is room, timeout has passed or ctx has ended.
func (q *queue) putWait(ctx context.Context, it item, timeout time.Duration) putResult {
	var timer *time.Timer
	for {
		res, space := q.offer(it)
		if res != putFull {
			return res
		}
		if timer == nil {
			timer = time.NewTimer(timeout)
			defer timer.Stop()
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
