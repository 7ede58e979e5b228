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
	maxUnackd = 4096 // durable events written and not acknowledged, for each stream
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
	noteDo                     // call do
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
	do      func()
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
	wanted bool          // somebody waits for that
	closed bool
	orders uint64 // of durable events
	untold int    // durable events that nobody waits for

	sent  atomic.Uint64 // live events written
	safe  atomic.Uint64 // of those, known to have reached the server
	dirty chan struct{}

	muteMarks atomic.Bool // they may not be published

	// What follows belongs to the goroutine.
	up      bool
	dials   uint64    // the connection that up speaks of
	openAt  time.Time // nothing is written before
	lives   []*item
	marks   marks
	expired time.Time // when it was last looked for items whose time is over
	boxes   []*outbox // does not change; the first is for what no route covers
	idle    []chan struct{}
}

// A load is what callers have handed over, and how much of it is unfinished.
type load struct {
	items []*item // not yet taken by the writer
	n     int
	bytes int
}

func (l *load) add(it *item) bool {
	if !l.reserve(it) {
		return false
	}
	l.items = append(l.items, it)
	return true
}

func (l *load) reserve(it *item) bool {
	if l.n >= maxItems || (l.n > 0 && l.bytes+it.size > maxBytes) {
		return false
	}
	l.n++
	l.bytes += it.size
	return true
}

func newWriter(c *conn) *writer {
	w := &writer{c: c, notes: newMailbox[note](), room: make(chan struct{}), dirty: make(chan struct{}, 1)}
	w.boxes = []*outbox{{w: w, window: dedupWindow}}
	w.marks = marks{runs: map[string]*outRun{}, emit: w.mark}
	return w
}

// start begins to write; the connection is up.
func (w *writer) start() {
	w.up, w.dials = w.c.link.isUp(), w.c.dials.Load()
	w.run = loop.Go(w.main)
	w.sync = loop.Go(w.barriers)
}

func (w *writer) post(n note) { w.notes.put(n) }

// call has the writer call f, and waits for it.
func (w *writer) call(f func()) {
	done := make(chan struct{})
	w.post(note{kind: noteDo, do: func() { f(); close(done) }})
	select {
	case <-done:
	case <-w.run.Done():
	}
}

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
		return w.overflow(it)
	}
	w.notes.poke()
	return nil
}

func (w *writer) overflow(it *item) error {
	return fmt.Errorf("natsbus: %s: not sent: %w: %d events or %d MiB of this class wait for the server at %s, which takes them more slowly than they are published, or not at all: publish less at once, or see what holds it up",
		it.topic, adapter.ErrFull, maxItems, maxBytes>>20, w.c.addr.public)
}

func (w *writer) acceptDurable(ctx context.Context, it *item) error {
	for {
		w.mu.Lock()
		closed, room, ok := w.closed, w.room, false
		switch {
		case closed:
		case w.c.spool.diverts(it):
			if it.reserved = !it.placed && w.keep.reserve(it); it.reserved || it.placed {
				w.c.spool.begin()
				w.c.spool.take(it)
				w.mu.Unlock()
				return nil
			}
		case it.placed:
			w.keep.items = append(w.keep.items, it)
			ok = true
		default:
			ok = w.keep.add(it)
		}
		w.wanted = w.wanted || !ok
		w.orders++
		it.order = w.orders
		if ok && it.tell != nil {
			w.untold++
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
			return fmt.Errorf("%w: no room in %v: %w", w.overflow(it), time.Since(it.since).Round(time.Millisecond), context.Cause(ctx))
		}
	}
}

// acceptForwarded takes an event that lies in a spool: it is not bounded, nor counted,
// here.
func (w *writer) acceptForwarded(it *item) {
	w.mu.Lock()
	closed := w.closed
	if !closed {
		w.keep.items = append(w.keep.items, it)
	}
	w.mu.Unlock()
	if closed {
		it.settle(errClosed)
		return
	}
	w.notes.poke()
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
	if w.run == nil {
		return
	}
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
		wait := min(w.expire(time.Now()), w.step(time.Now()))
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
	for _, it := range keep {
		if broken(mutantReordered) && it.forwarded {
			it.box.fresh = append([]*item{it}, it.box.fresh...)
			continue
		}
		it.box.fresh = append(it.box.fresh, it)
	}
}

func (w *writer) handle(n note) {
	switch n.kind {
	case noteAck:
		n.item.box.acked(n.item, n.msg)
	case noteDo:
		n.do()
	case noteDown:
		w.down()
	case noteUp:
		w.down() // if the loss itself was overtaken
		w.up, w.dials = true, w.c.dials.Load()
		w.openAt = time.Now().Add(grace(w.c.addr.loopback))
		w.marks.again()
		for _, o := range w.boxes {
			o.ask(w.openAt)
		}
	case noteGone:
		n.item.box.sweep(func(it *item) bool { return it.state.Load() == gone }, nil)
	case noteDenied:
		w.sweep(func(it *item) bool { return it.msg.Subject == n.subject }, denied(n.subject))
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
	for _, o := range w.boxes {
		o.down()
	}
	w.divert("the connection was lost")
}

// expire gives up, about once a second, the items that nobody waits for and whose time
// is over. It returns when to do so again.
func (w *writer) expire(now time.Time) time.Duration {
	w.mu.Lock()
	untold := w.untold
	w.mu.Unlock()
	if untold == 0 {
		return time.Hour
	}
	if d := w.expired.Add(time.Second).Sub(now); d > 0 {
		return d
	}
	w.expired = now
	for _, o := range w.boxes {
		o.expire(now)
	}
	return time.Second
}

// sweep finishes every durable item that f picks.
func (w *writer) sweep(f func(*item) bool, err error) {
	for _, o := range w.boxes {
		o.sweep(f, err)
	}
}

// step writes what may be written and returns how long it has nothing to do.
func (w *writer) step(now time.Time) time.Duration {
	if !w.up {
		return time.Hour
	}
	if d := w.openAt.Sub(now); d > 0 {
		return d
	}
	if !w.writeLive(now) {
		return writeRetry
	}
	wait := w.marks.step(now)
	for _, o := range w.boxes {
		if len(o.unacked) > 0 && now.Sub(o.heard) > awayAfter {
			w.divert("stream " + o.stream + " does not answer")
		}
		wait = min(wait, o.step(now))
	}
	return wait
}

func (w *writer) writeLive(now time.Time) bool {
	n := 0
	ok := true
	for ; n < len(w.lives) && ok; n++ {
		w.marks.begin(w.lives[n], now)
		if ok = w.write(w.lives[n]); !ok {
			break
		}
	}
	if n > 0 {
		w.release(&w.live, w.lives[:n])
		for _, it := range w.lives[:n] {
			it.reuse()
		}
		if w.lives = w.lives[n:]; len(w.lives) == 0 {
			w.lives = nil
		}
		w.markDirty()
	}
	return ok
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
		if it.class == adapter.Live && !it.internal {
			w.sent.Add(1)
			w.marks.wrote(it)
		}
		return true
	case permanent(err):
		if errors.Is(err, nats.ErrMaxPayload) { // it was less when the event was accepted
			err = w.c.tooLarge(it, w.c.nc.MaxPayload())
		} else {
			err = fmt.Errorf("natsbus: %s: %w", it.topic, err)
		}
		if it.class == adapter.Live {
			w.c.drop(1, err)
		} else {
			w.finish(it, it.refusal(err))
			it.box.compact()
		}
		return true
	}
	return false
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
	if _, full := errors.AsType[*streamFull](err); !it.forwarded && !it.placed && !(full && it.tell != nil) {
		w.release(&w.keep, []*item{it})
	}
	switch {
	case it.forwarded:
		it.tell(err)
	case it.tell != nil:
		w.mu.Lock()
		w.untold--
		w.mu.Unlock()
		it.tell(err)
	case before != gone:
		it.done <- err
	}
}

func (w *writer) release(l *load, items []*item) (empty bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	full := l.n >= maxItems || l.bytes > maxBytes/2
	l.n -= len(items)
	for _, it := range items {
		l.bytes -= it.size
	}
	if l == &w.keep && (full || l.n == 0) {
		w.tellRoom()
	}
	return l.n == 0
}

// tellRoom wakes those that wait for room. mu is held.
func (w *writer) tellRoom() {
	if w.wanted {
		close(w.room)
		w.room, w.wanted = make(chan struct{}), false
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
	w.takeQueues()
	w.divert(whenClosed)
	w.mu.Lock()
	w.closed = true
	w.tellRoom()
	w.mu.Unlock()
	w.takeQueues()
	if n := len(w.lives); n > 0 {
		w.release(&w.live, w.lives)
		w.lives = nil
		w.c.drop(n, fmt.Errorf("natsbus: closed with %d live events that were not sent", n))
	}
	for _, o := range w.boxes {
		for _, it := range o.unacked {
			w.finish(it, fmt.Errorf("natsbus: %s: %w", it.topic, errors.Join(adapter.ErrInDoubt, adapter.ErrClosed)))
		}
		for _, it := range o.fresh {
			w.finish(it, errClosed)
		}
		o.unacked, o.fresh = nil, nil
	}
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
