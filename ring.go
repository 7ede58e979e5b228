package tidings

import (
	"context"
	"math/bits"
	"sync"
)

// ring is where events wait between publishers and queues. Most rings have one
// reader. Subscriptions that get exactly the same events, under the same bound,
// read one ring, each queue at its own pace: an event is then written once, under
// one lock, for all of them. With eight that costs a third of eight rings.
//
// Whoever is to get what others do not, or less, leaves: it takes a copy of what
// it has not read. So one that ends, falls behind or is served alone is no
// concern of the rest, and everything but offering is about one reader.
//
// No user code runs under its lock.
type ring struct {
	mu       sync.Mutex
	items    []item   // its length is a power of two; grows, so that an idle subscription is small
	tail     uint64   // number of the next item, the first being 0
	low      uint64   // of the oldest item that a reader needs; below it all are zero
	limit    uint64   // from here on tail has to look closer: no room, items to grow, or closed
	epoch    uint64   // of its readers: who has seen others must look again
	sleepers int      // readers with workers that wait and have not been told of an event
	atLow    int      // readers whose head is low
	bound    uint64   // of every reader
	readers  []*queue // in no order
	space    chan struct{}
}

// readBy has a queue read the ring; from here on others may lock it.
func (r *ring) readBy(q *queue) {
	q.at = len(r.readers)
	r.readers = append(r.readers, q)
	if q.head == r.low {
		r.atLow++
	}
	q.nonEmpty = sync.NewCond(&r.mu)
	q.ring.Store(r)
}

// slot is the place of an item.
func (r *ring) slot(n uint64) *item { return &r.items[n&uint64(len(r.items)-1)] }

// full is asked where tail has reached limit: whether there is no room.
func (r *ring) full() bool {
	if r.closed() || r.tail-r.low >= r.bound {
		return true
	}
	if r.tail-r.low == uint64(len(r.items)) {
		r.resize(max(2*len(r.items), 8))
	}
	r.limit = r.low + min(r.bound, uint64(len(r.items)))
	return false
}

// closed: a queue that is closed has left.
func (r *ring) closed() bool { return r.readers[0].closed }

// resize also leaves the old items as they are, for workers that have some in hand.
func (r *ring) resize(n int) {
	items := make([]item, n)
	r.copy(items, r.low)
	r.items = items
}

// copy copies what is there from a number on to where it is in a ring of these
// items.
func (r *ring) copy(to []item, from uint64) {
	for n := from; n < r.tail; n++ {
		to[n&uint64(len(to)-1)] = *r.slot(n)
	}
}

// pushed is called once the item at tail is written.
func (r *ring) pushed() {
	r.tail++
	if r.sleepers > 0 {
		r.wake() // here, since it may be long until a worker runs
	}
}

func (r *ring) wake() {
	for _, q := range r.readers {
		if q.waiting > 0 {
			if q.waiting--; q.waiting == 0 {
				r.sleepers--
			}
			q.nonEmpty.Signal()
		}
	}
}

// advance lets a reader go on by n items.
func (r *ring) advance(q *queue, n uint64) {
	atLow := q.head == r.low
	if q.head += n; atLow && n > 0 {
		r.left()
	}
}

// left counts a reader less at low; what nobody needs any more must not be kept
// alive.
func (r *ring) left() {
	if r.atLow--; r.atLow > 0 {
		return
	}
	low := r.tail
	for _, q := range r.readers {
		switch {
		case q.head < low:
			low, r.atLow = q.head, 1
		case q.head == low:
			r.atLow++
		}
	}
	r.clear(r.low, low)
	if r.low = low; !r.closed() {
		r.limit = low + min(r.bound, uint64(len(r.items)))
	}
	r.tellSpace()
}

func (r *ring) clear(from, to uint64) {
	if from == to {
		return
	}
	mask := uint64(len(r.items) - 1)
	if i, j := from&mask, (to-1)&mask+1; i < j {
		clear(r.items[i:j])
	} else {
		clear(r.items[i:])
		clear(r.items[:j])
	}
}

func (r *ring) tellSpace() {
	if r.space != nil {
		close(r.space)
		r.space = nil
	}
}

// room returns a channel that is closed when there may be room.
func (r *ring) room() <-chan struct{} {
	if r.closed() || r.tail-r.low < r.bound {
		return closedChan
	}
	if r.space == nil {
		r.space = make(chan struct{})
	}
	return r.space
}

// part gives one of several readers a ring of its own, for good.
func (r *ring) part(q *queue) {
	q.apart = true
	q.wakeAll(r) // to wait where it will be told
	if q.held > 0 {
		r.resize(len(r.items)) // or what it has in hand would be overwritten
	}
	last := len(r.readers) - 1
	r.readers[q.at], r.readers[last].at = r.readers[last], q.at
	r.readers[last] = nil
	r.readers = r.readers[:last]
	r.epoch++
	own := &ring{bound: r.bound, low: q.head, tail: r.tail}
	own.items = make([]item, max(8, 1<<bits.Len64(own.tail-own.low)))
	r.copy(own.items, own.low)
	own.limit = own.low + min(own.bound, uint64(len(own.items)))
	if q.head == r.low {
		r.left()
	}
	own.readBy(q)
}

// over: whoever reads it shares no ring any more, or reads another.
func (r *ring) over() bool { return r.readers[0].apart || r.readers[0].ring.Load() != r }

// take lets an idle queue read this ring from now on; false if it may not. The
// bus's mu is held, and nobody else locks two rings.
func (r *ring) take(q *queue) bool {
	own := q.lock()
	defer own.mu.Unlock()
	if own == r {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.apart || r.over() || len(own.readers) > 1 || q.busy > 0 || q.head != own.tail {
		return false
	}
	q.wakeAll(own)
	own.epoch++
	r.epoch++
	q.start += r.tail - own.tail
	q.head = r.tail
	r.readBy(q)
	return true
}

func (r *ring) push(ctx context.Context, e *Event) {
	it := r.slot(r.tail)
	// Word by word: reading what was just written in larger pieces than it was
	// written in stalls the processor, for longer than all the rest takes.
	it.ctx = ctx
	it.event.r = e.r
	it.event.payload = e.payload
	it.event.start = e.start
	it.event.dur = e.dur
	it.event.num = e.num
	r.pushed()
}
