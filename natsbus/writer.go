package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// Bounds of what was accepted and is not finished, for each class.
const (
	maxItems  = 65536
	maxBytes  = 64 << 20
	maxUnackd = 4096 // durable events written and not acknowledged
)

// Times of the writer.
const (
	barrierEvery = 50 * time.Millisecond // how often what was written is known to have arrived
	ackPatience  = 3 * time.Second       // then the stream is asked again
	backoffFirst = 25 * time.Millisecond
	backoffCap   = 500 * time.Millisecond
	writeRetry   = 20 * time.Millisecond
)

type noteKind int

const (
	noteAck    noteKind = iota // an answer for an item
	noteDown                   // the connection is lost
	noteUp                     // it is back
	noteGone                   // a caller has given up
	noteDenied                 // no permission to publish to a subject
	noteIdle                   // close ch once nothing is left
)

// A note tells the writer what happened.
type note struct {
	kind    noteKind
	item    *item
	msg     *nats.Msg
	subject string
	ch      chan struct{}
}

// The writer is the only goroutine that publishes events. Callers meet it in
// two queues; nothing of nats.go that can block runs on their goroutines
// (against a hung broker, nats.go's Publish blocked for over nine seconds).
type writer struct {
	c     *conn
	notes *mailbox[note]
	run   *loop.Loop
	sync  *loop.Loop

	mu     sync.Mutex
	live   load
	keep   load          // durable
	room   chan struct{} // closed when durable room appears
	closed bool

	sent  atomic.Uint64 // live events written
	safe  atomic.Uint64 // of those, known to have reached the server
	dirty chan struct{}

	// What follows belongs to the goroutine.
	up      bool
	dials   uint64    // the connection that up speaks of
	openAt  time.Time // nothing is written before
	lives   []*item
	fresh   []*item // durable, not written
	unacked []*item // durable, written, in order
	again   []*item // of those, what must be written again after the probe
	probing bool    // the oldest unacknowledged event must be answered first
	probeAt time.Time
	backoff time.Duration
	heard   time.Time // when the stream last answered, or was first asked
	idle    []chan struct{}
}

// A load is what callers have handed over, and how much of it is unfinished.
type load struct {
	items []*item // not yet taken by the writer
	n     int
	bytes int
}

func (l *load) add(it *item) bool {
	if l.n >= maxItems || (l.n > 0 && l.bytes+it.size > maxBytes) {
		return false
	}
	l.items = append(l.items, it)
	l.n++
	l.bytes += it.size
	return true
}

func newWriter(c *conn) *writer {
	return &writer{c: c, notes: newMailbox[note](), room: make(chan struct{}), dirty: make(chan struct{}, 1)}
}

// start begins to write; the connection is up.
func (w *writer) start() {
	w.up, w.dials = true, w.c.dials.Load()
	w.run = loop.Go(w.main)
	w.sync = loop.Go(w.barriers)
}

func (w *writer) post(n note) { w.notes.put(n) }

func (w *writer) acceptLive(it *item) error {
	w.mu.Lock()
	closed, ok := w.closed, false
	if !closed {
		ok = w.live.add(it)
	}
	w.mu.Unlock()
	switch {
	case closed:
		return errClosed
	case !ok:
		return fmt.Errorf("natsbus: %s: %w: %d events or %d MiB wait for the connection to %s", it.topic, adapter.ErrFull, maxItems, maxBytes>>20, w.c.addr.public)
	}
	w.notes.poke()
	return nil
}

func (w *writer) acceptDurable(ctx context.Context, it *item) error {
	for {
		w.mu.Lock()
		closed, room, ok := w.closed, w.room, false
		if !closed {
			ok = w.keep.add(it)
		}
		w.mu.Unlock()
		switch {
		case closed:
			return errClosed
		case ok:
			w.notes.poke()
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return fmt.Errorf("natsbus: %s: not sent: %w: %d durable events wait for the connection to %s: %w",
				it.topic, adapter.ErrFull, maxItems, w.c.addr.public, context.Cause(ctx))
		}
	}
}

// buffered is how many events were accepted and are not finished.
func (w *writer) buffered() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live.n + w.keep.n
}

func (w *writer) waitIdle(ctx context.Context) error {
	ch := make(chan struct{})
	w.post(note{kind: noteIdle, ch: ch})
	select {
	case <-ch:
		return nil
	case <-w.run.Done():
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends the writer. What is left fails, and is counted.
func (w *writer) stop() {
	w.run.StopAndWait()
	w.sync.StopAndWait()
}

func (w *writer) main(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for _, n := range w.notes.take() {
			w.handle(n)
		}
		w.takeQueues()
		wait := w.step(time.Now())
		w.tellIdle()
		timer.Reset(wait)
		select {
		case <-w.notes.wake:
		case <-timer.C:
		case <-ctx.Done():
			w.end()
			return
		}
	}
}

// takeQueues takes both queues at one instant: live events go first, so that a
// durable one never overtakes a live one accepted before it.
func (w *writer) takeQueues() {
	w.mu.Lock()
	live, keep := w.live.items, w.keep.items
	w.live.items, w.keep.items = nil, nil
	w.mu.Unlock()
	w.lives = append(w.lives, live...)
	w.fresh = append(w.fresh, keep...)
}

func (w *writer) handle(n note) {
	switch n.kind {
	case noteAck:
		w.acked(n.item, n.msg)
	case noteDown:
		w.down()
	case noteUp:
		w.down() // if the loss itself was overtaken
		w.up, w.dials = true, w.c.dials.Load()
		w.openAt = time.Now().Add(grace(w.c.addr.loopback))
		w.ask(w.openAt)
	case noteGone:
		w.sweep(func(it *item) bool { return it.state.Load() == gone }, nil)
	case noteDenied:
		w.sweep(func(it *item) bool { return it.msg.Subject == n.subject },
			fmt.Errorf("natsbus: no permission to publish to %q: allow it for this user on the server", n.subject))
	case noteIdle:
		w.idle = append(w.idle, n.ch)
	}
}

// down notes that a connection is lost: what was written since the server last
// answered may have been lost with it.
func (w *writer) down() {
	w.up = false
	if n := w.sent.Load() - w.safe.Load(); n > 0 {
		w.c.inDoubt.Add(n)
		w.c.log.Warn("natsbus: live events may have been lost with the connection", "count", n)
	}
	w.safe.Store(w.sent.Load())
}

// ask makes the oldest unacknowledged event go alone, at the given time. Only
// when the stream has answered it the others follow: a stream that comes up
// while they are written would else take the later ones and refuse the first.
func (w *writer) ask(at time.Time) {
	w.probing = len(w.unacked) > 0
	w.probeAt = at
	w.again = nil
}

// step writes what may be written and returns how long it has nothing to do.
func (w *writer) step(now time.Time) time.Duration {
	if !w.up {
		return time.Hour
	}
	if d := w.openAt.Sub(now); d > 0 {
		return d
	}
	if !w.writeLive() {
		return writeRetry
	}
	if len(w.unacked) > 0 && !w.probing && now.Sub(w.heard) > ackPatience {
		w.ask(now)
	}
	if w.probing {
		return w.probe(now)
	}
	for len(w.again) > 0 {
		if it := w.again[0]; it.state.Load() == written && !w.write(it) {
			return writeRetry
		}
		w.again = w.again[1:]
	}
	if !w.writeFresh() {
		return writeRetry
	}
	if len(w.unacked) > 0 {
		return ackPatience / 4
	}
	return time.Hour
}

func (w *writer) writeLive() bool {
	n := 0
	ok := true
	for ; n < len(w.lives) && ok; n++ {
		if ok = w.write(w.lives[n]); !ok {
			break
		}
	}
	if n > 0 {
		w.release(&w.live, w.lives[:n])
		if w.lives = w.lives[n:]; len(w.lives) == 0 {
			w.lives = nil
		}
		w.markDirty()
	}
	return ok
}

func (w *writer) writeFresh() bool {
	for len(w.fresh) > 0 && len(w.unacked) < maxUnackd {
		it := w.fresh[0]
		if it.state.CompareAndSwap(queued, written) {
			if len(w.unacked) == 0 {
				w.heard = time.Now()
			}
			it.token = w.c.mux.expect(func(m *nats.Msg) { w.post(note{kind: noteAck, item: it, msg: m}) })
			it.msg.Reply = w.c.mux.subject(it.token)
			w.unacked = append(w.unacked, it)
			if !w.write(it) {
				if it.state.Load() == written { // else it was refused for good
					w.unacked = w.unacked[:len(w.unacked)-1]
					w.c.mux.forget(it.token)
					it.state.CompareAndSwap(written, queued)
				}
				return false
			}
		} else {
			w.finish(it, nil)
		}
		w.fresh = w.fresh[1:]
	}
	if len(w.fresh) == 0 {
		w.fresh = nil
	}
	return true
}

// probe sends the oldest unacknowledged event alone when its time has come.
func (w *writer) probe(now time.Time) time.Duration {
	if len(w.unacked) == 0 {
		w.probing = false
		return 0
	}
	if d := w.probeAt.Sub(now); d > 0 {
		return d
	}
	if !w.write(w.unacked[0]) {
		return writeRetry
	}
	w.probeAt = now.Add(ackPatience / 3)
	return ackPatience / 3
}

// write gives one message to nats.go. False means: not now.
func (w *writer) write(it *item) bool {
	if w.c.dials.Load() != w.dials {
		w.up = false // a new connection; the note that it is up will come
		return false
	}
	err := w.c.nc.PublishMsg(it.msg)
	switch {
	case err == nil:
		if it.class == adapter.Live {
			w.sent.Add(1)
		}
		return true
	case permanent(err):
		err = fmt.Errorf("natsbus: %s: %w", it.topic, err)
		if it.class == adapter.Live {
			w.c.drop(1, err)
		} else {
			w.finish(it, err)
			w.compact()
		}
		return true
	}
	return false
}

// acked takes the answer to an item.
func (w *writer) acked(it *item, m *nats.Msg) {
	if it.state.Load() != written {
		return
	}
	first := len(w.unacked) > 0 && w.unacked[0] == it
	retry, err := w.c.verdict(it, m)
	if retry {
		if !w.probing || first {
			w.backoff = min(max(2*w.backoff, backoffFirst), backoffCap)
			w.ask(time.Now().Add(w.backoff))
		}
		return
	}
	w.heard = time.Now()
	w.backoff = 0
	w.finish(it, err)
	w.compact()
	if w.probing && first {
		w.probing = false
		w.again = append([]*item(nil), w.unacked...)
	}
}

// compact forgets finished items at the head, and all of them now and then.
func (w *writer) compact() {
	for len(w.unacked) > 0 && w.unacked[0].state.Load() >= gone {
		w.unacked = w.unacked[1:]
	}
	if len(w.unacked) == 0 {
		w.unacked = nil
		w.probing = false
	} else if len(w.unacked) >= maxUnackd {
		w.unacked = pending(w.unacked)
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

// sweep finishes every durable item that f picks.
func (w *writer) sweep(f func(*item) bool, err error) {
	for _, list := range [][]*item{w.unacked, w.fresh} {
		for _, it := range list {
			if it.state.Load() != done && f(it) {
				w.finish(it, err)
			}
		}
	}
	head := w.unacked
	w.unacked, w.fresh = pending(w.unacked), pending(w.fresh)
	if w.probing && len(head) > 0 && (len(w.unacked) == 0 || w.unacked[0] != head[0]) {
		w.ask(time.Now()) // another one is the oldest now
	}
}

// finish gives a durable item its result. An item is finished once.
func (w *writer) finish(it *item, err error) {
	before := it.state.Swap(done)
	if before == done {
		return
	}
	if it.token != "" {
		w.c.mux.forget(it.token)
	}
	w.release(&w.keep, []*item{it})
	if before != gone {
		it.done <- err
	}
}

func (w *writer) release(l *load, items []*item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	full := l.n >= maxItems || l.bytes > maxBytes/2
	l.n -= len(items)
	for _, it := range items {
		l.bytes -= it.size
	}
	if l == &w.keep && full {
		close(w.room)
		w.room = make(chan struct{})
	}
}

func (w *writer) tellIdle() {
	if len(w.idle) == 0 || w.buffered() > 0 {
		return
	}
	for _, ch := range w.idle {
		close(ch)
	}
	w.idle = nil
}

// end fails what is left when the adapter closes.
func (w *writer) end() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.takeQueues()
	if n := len(w.lives); n > 0 {
		w.release(&w.live, w.lives)
		w.lives = nil
		w.c.drop(n, fmt.Errorf("natsbus: closed with %d live events that were not sent", n))
	}
	for _, it := range w.unacked {
		w.finish(it, fmt.Errorf("natsbus: %s: %w", it.topic, errors.Join(adapter.ErrInDoubt, adapter.ErrClosed)))
	}
	for _, it := range w.fresh {
		w.finish(it, errClosed)
	}
	w.unacked, w.fresh = nil, nil
}

func (w *writer) markDirty() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// barriers asks the server for a sign of life now and then while live events
// are written, so that those in doubt after a loss are few and counted.
func (w *writer) barriers(ctx context.Context) {
	for {
		select {
		case <-w.dirty:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(barrierEvery):
		case <-ctx.Done():
			return
		}
		dials, n := w.c.dials.Load(), w.sent.Load()
		if !w.c.link.isUp() {
			continue // what was written is counted as in doubt
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := w.c.nc.FlushWithContext(try)
		cancel()
		if err != nil || w.c.dials.Load() != dials {
			w.markDirty()
			continue
		}
		for {
			old := w.safe.Load()
			if old >= n || w.safe.CompareAndSwap(old, n) {
				break
			}
		}
	}
}
