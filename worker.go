package tidings

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tidings-go/tidings/internal/goid"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/internal/progress"
)

// worker is the goroutine that runs handlers of one lane, one at a time.
type worker struct {
	sub     *Subscription
	queue   *queue
	loop    *loop.Loop
	limit   int           // events taken at once
	alone   bool          // no other worker has this queue, and nothing is dropped from its head: no need to copy
	careful bool          // each event needs more than a call of the handler
	linger  time.Duration // how long to wait for so many; of batch handlers

	goroutine atomic.Uint64
	begun     progress.Counter // events handed to the handler, ever
	paused    atomic.Bool      // it waits to try again: nothing hangs

	// Changed under the ring's lock, by the worker, between batches.
	batch []item
	taken uint64
	busy  bool

	// The worker's own.
	next  int             // of batch
	whole []item          // what a batch handler has in hand: the batch without what it must not get
	turn  bool            // it has the turn of suspicious events
	given context.Context // the publisher's, of the last event: most come with the same, or with Background
	made  context.Context // the handler's, for that
	watch watched
}

// maxBatch is where taking more at a time gained nothing any more.
const maxBatch = 32

func (s *Subscription) newWorker(q *queue) *worker {
	w := &worker{sub: s, queue: q, limit: 1,
		careful: s.opts.Durable || s.opts.Timeout > 0 || s.opts.Retry.Attempts > 1}
	switch {
	case s.batch != nil:
		w.limit, w.linger = s.opts.BatchSize, s.opts.BatchWait
	case s.opts.Durable, len(s.lanes) < s.opts.Workers:
		// What one worker has in hand no other can take.
	case s.opts.Overflow == DropOldest:
		// What waits longest must be where it can be dropped.
	default:
		w.limit = min(maxBatch, s.opts.Queue/16)
		w.alone = w.limit > 1
		w.limit = max(w.limit, 1)
	}
	w.loop = loop.Go(func(context.Context) { w.run() })
	return w
}

func (w *worker) run() {
	id := goid.ID()
	w.goroutine.Store(id)
	w.sub.bus.workers.Store(id, w.sub)
	defer w.sub.bus.workers.Delete(id)
	// A handler may end its goroutine with runtime.Goexit (t.FailNow is one): the
	// queue must not lose its worker.
	finished := false
	defer func() {
		if !finished {
			<-loop.Go(func(context.Context) { w.abandoned(); w.run() }).Done()
		}
	}()
	for w.next < len(w.batch) || w.take() {
		w.handleSome()
	}
	finished = true
}

func (w *worker) take() bool {
	w.next = 0
	w.given, w.made = context.Background(), w.sub.handlers // an idle worker keeps no publisher's context alive
	if !w.queue.take(w) {
		return false
	}
	w.sub.bus.hung.wake()
	return true
}

// handleSome works on the batch until its end, or until a handler panics.
func (w *worker) handleSome() {
	if w.sub.batch != nil {
		w.handleBatch()
		return
	}
	defer func() {
		if p := recover(); p != nil {
			w.panicked(p)
		}
	}()
	w.sub.run(w)
}

// runHandler is how a worker goes through its batch. Its twin is runTyped: with a
// call less for each event, and one costs as much as a handler.
func (s *Subscription) runHandler(w *worker) {
	for ; w.next < len(w.batch); w.next++ {
		it := &w.batch[w.next]
		if w.special(it) {
			w.slow(it)
			continue
		}
		if !sameContext(it.ctx, w.given) {
			w.meet(it.ctx)
		}
		if err := s.handler(w.made, it.event); err != nil {
			w.failed(it, err)
		}
	}
}

// special begins an event and reports whether it needs more than a call of the
// handler.
func (w *worker) special(it *item) bool {
	return sampled(w.begun.Next()) || w.careful || it.event.r.req != nil || w.queue.cleared.Load()
}

// slow is for an event that needs more than a call of the handler.
func (w *worker) slow(it *item) {
	if !w.queue.cleared.Load() {
		w.sub.handle(w, *it)
		return
	}
	w.sub.counts.unhandled.Add(1)
	w.sub.drop(w.queue, it.event, "the subscription has ended")
}

// meet makes the context of a handler for that of a publisher.
func (w *worker) meet(ctx context.Context) {
	w.given, w.made = ctx, &handlerContext{w.sub.handlers, ctx}
}

func (w *worker) failed(it *item, err error) {
	w.sub.failed(w.made, it.event, err)
	w.sub.counts.unhandled.Add(1)
	w.sub.counts.gaveUp.Add(1)
}

// panicked is what is left to do of the simple way through handleSome.
func (w *worker) panicked(p any) {
	it := w.batch[w.next]
	w.next++
	w.sub.failed(it.ctx, it.event, &PanicError{Value: p, Stack: debug.Stack()})
	w.sub.counts.unhandled.Add(1)
	w.sub.counts.gaveUp.Add(1)
}

// abandoned settles the event whose handler ended its goroutine.
func (w *worker) abandoned() {
	s := w.sub
	its := w.batch[w.next:]
	if w.next++; s.batch == nil {
		its = its[:1]
	} else {
		its, w.next = w.whole, len(w.batch)
	}
	for _, it := range its {
		s.failed(it.ctx, it.event, errGoexitHandler)
		s.finished(it, errGoexitHandler)
		if s.opts.Key != nil {
			s.passOn(it.event)
		}
	}
}

// dropRest gives up what the worker has in hand.
func (w *worker) dropRest() {
	for ; w.next < len(w.batch); w.next++ {
		w.begun.Next()
		w.sub.counts.unhandled.Add(1)
		w.sub.drop(w.queue, w.batch[w.next].event, "the subscription has ended")
	}
}

// inHand counts the events that the worker has taken and not begun, and whether
// it runs a handler.
func (w *worker) inHand() (waiting int, running bool) {
	defer w.queue.lock().mu.Unlock()
	return int(w.taken - w.begun.Load()), w.busy
}

// handle calls the handler until the event is handled, given up or handed back.
func (s *Subscription) handle(w *worker, it item) {
	defer w.endTurn()
	if s.opts.Durable && it.event.r.settle != nil && mutant.On("ack-before-handler") {
		it.event.r.settle.Ack(s.settled(it))
		it.event.r.settle = nil
	}
	if s.opts.Key != nil && it.event.r.settle != nil {
		s.handleInOrder(w, it)
		return
	}
	if s.opts.Durable && (s.missed(it.event) || !s.begin(w, it)) {
		return
	}
	for attempt := it.event.Attempt(); ; attempt++ {
		err := s.call(it.ctx, it.event.withAttempt(attempt))
		if it.event.r.settle != nil || err == nil || !s.retryHere(w, err, attempt) {
			s.finished(it, err)
			return
		}
	}
}

// finished tells whoever has to know what became of an event.
func (s *Subscription) finished(it item, err error) {
	if err != nil {
		s.counts.unhandled.Add(1)
	}
	switch {
	case s.wasCut(it, err):
		s.handBack(it.event, 0)
	case it.event.r.settle != nil:
		s.settleDurable(it, err)
	case err != nil:
		s.counts.gaveUp.Add(1)
	}
	it.event.answered(err)
}

// handleBatch is handle for a batch handler: what holds for an event holds for
// all of the batch.
func (w *worker) handleBatch() {
	if w.queue.cleared.Load() {
		w.dropRest()
		return
	}
	w.begun.Add(uint64(len(w.batch)))
	defer w.endTurn()
	batch := w.batch
	if w.sub.opts.Durable {
		batch = slices.DeleteFunc(slices.Clone(batch), func(it item) bool { return w.sub.missed(it.event) || !w.sub.begin(w, it) })
	}
	if len(batch) == 0 {
		w.next = len(w.batch)
		return
	}
	w.whole = batch
	events := make([]Event, len(batch))
	for i, it := range batch {
		events[i] = it.event
	}
	for attempt := events[0].Attempt(); ; attempt++ {
		for i := range events {
			events[i] = events[i].withAttempt(attempt)
		}
		err := w.sub.invoke(w.sub.handlers, events[0], func(ctx context.Context) error { return w.sub.batch(ctx, events) })
		if batch[0].event.r.settle == nil && err != nil && w.sub.retryHere(w, err, attempt) {
			continue
		}
		for _, it := range batch {
			w.sub.finished(it, err)
		}
		w.next, w.whole = len(w.batch), nil
		return
	}
}

// retryHere waits before the next attempt of a local or live event; false when
// there is none.
func (s *Subscription) retryHere(w *worker, err error, attempt int) bool {
	if !s.again(err, attempt) {
		return false
	}
	w.paused.Store(true)
	defer w.paused.Store(false)
	t := time.NewTimer(s.retryDelay(err, attempt))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.handlers.Done():
		return false
	}
}

func (s *Subscription) retryDelay(err error, attempt int) time.Duration {
	var after *retryAfterError
	if errors.As(err, &after) {
		return max(after.delay, 0)
	}
	return s.opts.Retry.delay(attempt)
}

// settled returns what is called once the store has confirmed.
func (s *Subscription) settled(it item) func(error) {
	return func(err error) {
		if err == nil {
			s.counts.acked.Add(1)
		}
		s.bus.announce(topicSettled, Settled{Event: it.event, Pattern: s.pattern, Group: s.opts.Group, Err: err})
	}
}

// sameContext compares by identity: == would call the contexts' own types, which
// takes longer, and panics for some.
func sameContext(a, b context.Context) bool {
	x, y := (*[2]unsafe.Pointer)(unsafe.Pointer(&a)), (*[2]unsafe.Pointer)(unsafe.Pointer(&b))
	return x[0] == y[0] && x[1] == y[1]
}

// handlerContext has the publisher's values and the subscription's life.
type handlerContext struct {
	context.Context
	values context.Context
}

func (c *handlerContext) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v // the life's own bookkeeping must be found first
	}
	return c.values.Value(key)
}
