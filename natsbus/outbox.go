package natsbus

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// An outbox is what goes to one stream, in the order in which it was accepted. It
// belongs to the writer's goroutine.
//
// Until the stream has acknowledged an event, it is sent again whenever it may have
// been lost: with a connection, or because the stream was not there. Then the oldest
// goes alone first, and the others follow once it is answered: a stream that comes
// up while they are written would else take the later ones and refuse the first.
//
// On a cluster that is how it goes on after the death of a leader, too. What that had
// accepted and not acknowledged is known by its id: nats-server has the next one lead,
// and answer, only when it has applied all that was committed (raft.go, switchToLeader).
type outbox struct {
	w       *writer
	stream  string    // empty: any, of which nothing is known
	created time.Time // a stream of that name that is younger is another

	fresh   []*item // not written
	unacked []*item // written, in order
	again   []*item // of those, what must be written again after the probe
	probing bool    // the oldest unacknowledged event must be answered first
	probeAt time.Time
	backoff time.Duration
	heard   time.Time // when the stream last answered, or was first asked

	batch   *batch // in flight: nothing else is
	batches bool   // the stream takes them
	pace    pace

	last   atomic.Uint64 // the highest sequence that an acknowledgement has named
	known  bool          // last is at least that of when this process began to write
	window time.Duration // how long the stream remembers ids
	look   *lookup       // under way: what is in doubt is looked up first
}

// ask makes the oldest unacknowledged event go alone, at the given time.
func (o *outbox) ask(at time.Time) {
	o.batch = nil // its members go singly; should it be answered after all, they are done
	o.probing = len(o.unacked) > 0
	o.probeAt = at
	o.again = nil
}

// down notes that a connection is lost, and the answers with it.
func (o *outbox) down() {
	o.batch = nil
	o.endLook()
	for _, it := range o.unacked {
		it.lost, it.open = it.lost || it.open > 0, 0
	}
}

// step writes what may be written and returns how long it has nothing to do.
func (o *outbox) step(now time.Time) time.Duration {
	if o.look != nil && o.look.fence != "" && now.Sub(o.look.asked) >= lookTimeout {
		o.endLook()
		o.later(now)
	}
	if len(o.unacked) > 0 && !o.probing && now.Sub(o.heard) > ackPatience {
		o.ask(now)
	}
	if o.probing {
		return o.probe(now)
	}
	for len(o.again) > 0 {
		if it := o.again[0]; it.state.Load() <= written && !o.write(it) {
			return writeRetry
		}
		o.again = o.again[1:]
	}
	return o.writeFresh(now)
}

func (o *outbox) writeFresh(now time.Time) time.Duration {
	switch {
	case o.batch != nil:
		return ackPatience / 4
	case o.look != nil:
		return lookTimeout
	case o.mustLook(now), o.nextDoubtful(now) && len(o.unacked) == 0:
		return o.lookUp(now)
	case o.nextDoubtful(now):
		return ackPatience / 4 // what is on its way is answered first: it is in no such doubt
	}
	expected, d := o.pace.gather(len(o.fresh)+len(o.unacked), now)
	if o.batches && len(o.fresh) > 0 && o.pace.batch(expected, now) {
		switch {
		case len(o.unacked) > 0:
			return ackPatience / 4 // it goes alone
		case d > 0:
			return d
		}
		if o.writeBatch(now) {
			return ackPatience / 4
		}
	}
	if !o.writeSingly(now) {
		return writeRetry
	}
	if len(o.unacked) == 0 && len(o.fresh) > 0 {
		return 0
	}
	if len(o.unacked) > 0 {
		return ackPatience / 4
	}
	return time.Hour
}

func (o *outbox) writeSingly(now time.Time) bool {
	for len(o.fresh) > 0 && len(o.unacked) < maxUnackd && !o.nextDoubtful(now) {
		it := o.fresh[0]
		if it.state.CompareAndSwap(queued, written) {
			if len(o.unacked) == 0 {
				o.heard = now
				o.pace.begin()
			}
			o.unacked = append(o.unacked, it)
			if !o.write(it) {
				if it.state.Load() <= written { // else its caller has given up
					o.unacked = o.unacked[:len(o.unacked)-1]
					o.unwritten(it)
				}
				return false
			}
		} else {
			o.w.finish(it, nil)
		}
		o.fresh = o.fresh[1:]
	}
	if len(o.fresh) == 0 {
		o.fresh = nil
	}
	return true
}

// unwritten takes back that an item was written: by that it was not stored.
func (o *outbox) unwritten(it *item) {
	if it.unsent() {
		it.first = time.Time{}
	}
	it.state.CompareAndSwap(written, queued)
}

// unsent reports whether nothing that was written of an item can have stored it.
func (it *item) unsent() bool { return it.open == 0 && !it.lost }

// probe sends the oldest unacknowledged event alone when its time has come.
func (o *outbox) probe(now time.Time) time.Duration {
	if len(o.unacked) == 0 {
		o.probing = false
		return 0
	}
	if d := o.probeAt.Sub(now); d > 0 {
		return d
	}
	if o.look != nil {
		return lookTimeout
	}
	if o.mustLook(now) {
		return o.lookUp(now)
	}
	if !o.write(o.unacked[0]) {
		return writeRetry
	}
	o.probeAt = now.Add(ackPatience / 3)
	return ackPatience / 3
}

// write writes an item by itself. False means: not now.
func (o *outbox) write(it *item) bool {
	if !it.state.CompareAndSwap(queued, written) && it.state.Load() != written {
		return true // its caller has given up
	}
	if it.batch != nil {
		it.dissolve()
	}
	if it.token == "" {
		it.token = o.w.c.mux.expect(func(m *nats.Msg) { o.w.post(note{kind: noteAck, item: it, msg: m}) })
	}
	it.msg.Reply = o.w.c.mux.subject(it.token)
	o.mark(it)
	if !o.w.write(it) {
		if it.unsent() {
			o.unwritten(it)
		}
		return false
	}
	it.open++
	return true
}

// mark notes when an item was written first, and what was known of its stream then.
func (o *outbox) mark(it *item) {
	if it.first.IsZero() {
		it.first, it.after, it.certain = time.Now(), o.last.Load(), o.known
	}
	it.writtenAfter.Store(it.after + 1)
}

// acked takes the answer to an item.
func (o *outbox) acked(it *item, m *nats.Msg) {
	if it.state.Load() > written {
		return
	}
	now := time.Now()
	first := len(o.unacked) > 0 && o.unacked[0] == it
	it.open = max(it.open-1, 0)
	a, retry, err := o.w.c.verdict(it, m)
	if retry {
		if it.unsent() && (a.Error == nil || unavailable(a.Error.ErrCode)) {
			it.nobody.Store(true)
			o.unwritten(it)
		}
		if !o.probing || first {
			o.later(now)
		}
		return
	}
	o.stored(a.Seq)
	it.stream, it.seq = a.Stream, a.Seq
	o.answered(now)
	if err != nil {
		err = it.refusal(err)
	}
	o.w.finish(it, err)
	o.compact()
	if o.probing && first {
		o.probing = false
		o.again = append([]*item(nil), o.unacked...)
	} else if !o.probing && len(o.again) == 0 {
		o.pace.single(len(o.fresh)+len(o.unacked), now)
	}
}

func (o *outbox) stored(seq uint64) { o.last.Store(max(o.last.Load(), seq)) }

// position is after which sequence what is not written yet will be stored, and whether
// that is known. It may be called by any goroutine.
func (o *outbox) position() (after uint64, certain bool) { return o.last.Load(), o.known }

func (o *outbox) answered(now time.Time) { o.heard, o.backoff = now, 0 }

// later asks again after a while: the stream is not there, or not yet.
func (o *outbox) later(now time.Time) {
	o.backoff = min(max(2*o.backoff, backoffFirst), backoffCap)
	o.ask(now.Add(o.backoff))
}

// compact forgets finished items at the head, and all of them now and then.
func (o *outbox) compact() {
	for len(o.unacked) > 0 && o.unacked[0].state.Load() >= gone {
		o.unacked = o.unacked[1:]
	}
	if len(o.unacked) == 0 {
		o.unacked = nil
		o.probing = false
	} else if len(o.unacked) >= maxUnackd {
		o.unacked = pending(o.unacked)
	}
}

func pending(items []*item) []*item {
	var rest []*item
	for _, it := range items {
		if it.state.Load() < gone {
			rest = append(rest, it)
		}
	}
	return rest
}

// sweep finishes every item that f picks.
func (o *outbox) sweep(f func(*item) bool, err error) {
	for _, list := range [][]*item{o.unacked, o.fresh} {
		for _, it := range list {
			if it.state.Load() == done || !f(it) {
				continue
			}
			if err == nil {
				o.w.finish(it, nil)
				continue
			}
			it.open = 0 // what else was written to this connection was refused as well
			o.w.finish(it, it.refusal(err))
		}
	}
	head := o.unacked
	o.unacked, o.fresh = pending(o.unacked), pending(o.fresh)
	if o.probing && len(head) > 0 && (len(o.unacked) == 0 || o.unacked[0] != head[0]) {
		o.ask(time.Now()) // another one is the oldest now
	}
}
