package tidings

import (
	"context"
	"runtime"
	"slices"
	"time"

	"github.com/tidings-go/tidings/internal/goid"
)

// share is one ring as a view knows it: the subscriptions whose queues read it.
// Where each event has to be put in its own way, ring is nil and there is one.
type share struct {
	ring  *ring
	epoch uint64
	subs  []*Subscription
}

// host is a ring for all subscriptions that may share one. Guarded by bus.mu.
type host struct {
	ring *ring
	subs int // members that there are
}

// hostKey is what they have in common.
type hostKey struct {
	pattern string
	queue   int
}

// sharing reports whether the subscription's queue may read a ring with others:
// it gets all that its pattern matches, by one worker that reads in place.
func (s *Subscription) sharing() bool { return len(s.workers) == 1 && s.workers[0].alone && s.plain }

// host finds the ring of a subscription, and has it read one with others if it
// can. mu is held.
func (b *Bus) host(s *Subscription) *ring {
	q := s.lanes[0]
	if !s.sharing() {
		return q.ring.Load()
	}
	if s.host == nil {
		key := hostKey{s.pattern, s.opts.Queue}
		if s.host = b.hosts[key]; s.host == nil {
			s.host = &host{ring: q.ring.Load()}
			b.hosts[key] = s.host
		}
		s.host.subs++
	}
	if !s.host.take(q) {
		return q.ring.Load()
	}
	return s.host.ring
}

// take has the queue read the ring if it may. If nobody reads that any more whom
// others may join, it is the queue's own from now on.
func (h *host) take(q *queue) bool {
	if h.ring.take(q) {
		return true
	}
	h.ring.mu.Lock()
	over := h.ring.over()
	h.ring.mu.Unlock()
	if over {
		h.ring = q.ring.Load()
	}
	return over
}

// unhost has the subscription share no ring any more: others go on, and it is to
// get only what views know that have it. mu is held.
func (b *Bus) unhost(s *Subscription) {
	if s.host == nil {
		return
	}
	s.lanes[0].part()
	if s.host.subs--; s.host.subs == 0 {
		delete(b.hosts, hostKey{s.pattern, s.opts.Queue})
	}
}

// shares groups subscriptions by the rings that they read, in order. mu is held.
func (b *Bus) shares(subs []*Subscription) []share {
	var out []share
	at := map[*ring]int{}
	for _, s := range subs {
		if s.onlyQueue() == nil {
			out = append(out, share{subs: []*Subscription{s}})
			continue
		}
		r := b.host(s)
		i, known := at[r]
		if !known {
			i = len(out)
			at[r] = i
			out = append(out, share{ring: r})
		}
		out[i].subs = append(out[i].subs, s)
	}
	for i := range out {
		if out[i].ring != nil {
			for _, s := range out[i].see() {
				own := share{ring: s.lanes[0].ring.Load(), subs: []*Subscription{s}}
				own.see()
				out = append(out, own)
			}
		}
	}
	return slices.DeleteFunc(out, func(h share) bool { return len(h.subs) == 0 })
}

// see notes who reads the ring now, and returns those that have left it since it
// was looked at: for good, so they have one of their own.
func (h *share) see() (gone []*Subscription) {
	h.ring.mu.Lock()
	defer h.ring.mu.Unlock()
	h.epoch = h.ring.epoch
	h.subs = slices.DeleteFunc(h.subs, func(s *Subscription) bool {
		left := s.lanes[0].ring.Load() != h.ring
		if left {
			gone = append(gone, s)
		}
		return left
	})
	return gone
}

// offer adds the event for all readers, if they are those that the view knows and
// there is room.
func (h *share) offer(ctx context.Context, e *Event) bool {
	r := h.ring
	r.mu.Lock()
	if r.epoch != h.epoch || (r.tail >= r.limit && r.full()) {
		r.mu.Unlock()
		return false
	}
	r.push(ctx, e)
	r.mu.Unlock()
	return true
}

// insist gives workers a chance before anything is waited for, which allocates.
func (h *share) insist(ctx context.Context, e *Event) bool {
	for range 64 {
		if runtime.Gosched(); h.offer(ctx, e) {
			return true
		}
	}
	return false
}

// moved reports whether the view has to look again.
func (h *share) moved() bool {
	if h.ring == nil {
		return false
	}
	h.ring.mu.Lock()
	defer h.ring.mu.Unlock()
	return h.ring.epoch != h.epoch
}

// enqueue puts the event into all queues; accepted is whether any has taken it.
func (v *view) enqueue(d *dispatch) (accepted bool, err error) {
	var errs []error
	for i := range v.shares {
		h := &v.shares[i]
		if h.ring == nil {
			if err := h.subs[0].put(h.subs[0].lane(&d.ev), d.ctx, &d.ev); err != nil {
				errs = append(errs, err)
			}
		} else if !h.offer(d.ctx, &d.ev) {
			errs = append(errs, v.enqueueFrom(d.ctx, &d.ev, i)...)
			break
		}
	}
	if errs == nil {
		return true, nil
	}
	return len(v.queued) > len(errs), join(errs)
}

// enqueueFrom goes on where the i-th share would not take it just so.
func (v *view) enqueueFrom(ctx context.Context, e *Event, i int) []error {
	if h := &v.shares[i]; len(v.shares) == 1 && len(h.subs) == 1 && !h.moved() {
		if err := h.subs[0].put(h.subs[0].lanes[0], ctx, e); err != nil {
			return []error{err}
		}
		return nil
	}
	if len(v.shares) == 1 && v.shares[0].insist(ctx, e) {
		return nil
	}
	var had, rest []*Subscription
	moved := false
	for n := range v.shares {
		h := &v.shares[n]
		if n < i {
			had = append(had, h.subs...)
		} else {
			rest = append(rest, h.subs...)
			moved = moved || h.moved()
		}
	}
	if moved {
		e.r.entry.renew(v)
	}
	return putEach(ctx, e, rest, had)
}

// putEach puts an event into the queues of subs and of no subscription in not,
// whatever rings they read by now. The errors are of those that did not accept it.
func putEach(ctx context.Context, e *Event, subs, not []*Subscription) (errs []error) {
	var alone []*Subscription
	left := slices.Clone(subs)
	var wait patience
	for len(left) > 0 {
		s := left[0]
		if !s.sharing() {
			alone, left = append(alone, s), left[1:]
			continue
		}
		r := s.lanes[0].lock()
		switch {
		case len(r.readers) == 1 || r.anyOf(not):
			alone, left = append(alone, s), left[1:]
		case r.tail < r.limit || !r.full():
			r.push(ctx, e)
			left = slices.DeleteFunc(left, func(s *Subscription) bool {
				had := s.lanes[0].ring.Load() == r
				if had {
					not = append(slices.Clip(not), s) // it must not have it twice, wherever it goes
				}
				return had
			})
		case wait.more(s.bus, r):
			space := r.room()
			r.mu.Unlock()
			wait.until(ctx, space)
			continue
		default:
			r.partFull()
		}
		r.mu.Unlock()
	}
	for _, s := range alone {
		if err := s.put(s.lane(e), ctx, e); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// anyOf reports whether one of the subscriptions reads the ring, which is locked.
func (r *ring) anyOf(subs []*Subscription) bool {
	return slices.ContainsFunc(subs, func(s *Subscription) bool { return s.sharing() && s.lanes[0].ring.Load() == r })
}

// isFull reports whether it is this queue that has no room. The ring is locked.
func (q *queue) isFull(r *ring) bool { return r.tail-q.head >= r.bound }

// partFull has those without room go on alone. The ring is locked.
func (r *ring) partFull() {
	for _, q := range slices.Clone(r.readers) {
		if q.isFull(r) && len(r.readers) > 1 {
			r.part(q)
		}
	}
}

// patience is how a publisher waits for the slowest of several readers: as long as
// somebody takes something within patienceLimit. Then the others go on without
// those that are full, and it waits for these alone, as their options say.
type patience struct {
	step int
	me   *Subscription // whose handler is publishing
}

const patienceLimit = 20 * time.Millisecond

const (
	findSelf = iota
	waitForRoom
	outOfPatience
)

// more reports whether to wait on. The ring is locked.
func (p *patience) more(b *Bus, r *ring) bool {
	if p.step == findSelf {
		me, _ := b.workers.Load(goid.ID())
		p.me, _ = me.(*Subscription)
		p.step = waitForRoom
	}
	return p.step == waitForRoom && !slices.ContainsFunc(r.readers, func(q *queue) bool {
		return q.isFull(r) && (q.sub.opts.Overflow != Block || q.sub == p.me) // waiting for oneself helps nobody
	})
}

// until waits for room.
func (p *patience) until(ctx context.Context, space <-chan struct{}) {
	timer := time.NewTimer(patienceLimit)
	defer timer.Stop()
	select {
	case <-space:
	case <-timer.C:
		p.step = outOfPatience
	case <-ctx.Done():
		p.step = outOfPatience
	}
}
