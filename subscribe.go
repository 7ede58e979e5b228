package tidings

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/goid"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/internal/topic"
)

// Subscription is a pattern and a handler on a bus. All methods may be called
// concurrently, and from inside any handler.
type Subscription struct {
	bus     *Bus
	pattern string
	handler Handler
	opts    SubscribeOptions
	key     feedKey

	lanes      []*queue // none: inline
	workers    []*loop.Loop
	handlers   context.Context // cancelled when handlers must give up
	cancel     context.CancelFunc
	gate       gate
	joined     *feed // set under bus.mu, as is the next
	lastOfFeed bool

	ending  atomic.Bool
	done    chan struct{}
	err     error // read after done
	counts  counters
	bursted atomic.Bool // a burst of drops has been logged
}

type counters struct{ handled, failed, panicked, dropped, running atomic.Uint64 }

// Subscribe calls h for each event whose topic matches the pattern, from when it
// returns until the subscription or the bus ends. "*" stands for one token, ">"
// at the end for one or more. nil options are the defaults.
//
// With a transport attached it returns once the subscription is certain to get
// what is published from now on, anywhere; ctx bounds that wait. It may be called
// from inside a handler; the new subscription does not see the event in hand.
func (b *Bus) Subscribe(ctx context.Context, pattern string, h Handler, o *SubscribeOptions) (*Subscription, error) {
	fail := func(err error) (*Subscription, error) {
		return nil, &Error{Op: "subscribe", Topic: pattern, Err: err}
	}
	if err := topic.CheckPattern(pattern); err != nil {
		return fail(err)
	}
	if h == nil {
		return fail(errors.New("the handler is nil"))
	}
	opts, err := o.withDefaults(b)
	if err != nil {
		return fail(err)
	}
	s := newSubscription(b, pattern, h, opts)
	join, err := b.add(s)
	if err != nil {
		s.cancel()
		return fail(err)
	}
	if err := join(ctx); err != nil {
		s.Stop()
		return fail(err)
	}
	return s, nil
}

func newSubscription(b *Bus, pattern string, h Handler, o SubscribeOptions) *Subscription {
	s := &Subscription{bus: b, pattern: pattern, handler: h, opts: o, done: make(chan struct{}),
		key: feedKey{group: o.Group, pattern: pattern, durable: o.Durable}}
	s.handlers, s.cancel = context.WithCancel(context.Background())
	if o.Inline {
		return s
	}
	n := 1
	if o.Key != nil {
		n = o.Workers
	}
	for range n {
		bound := max(o.Queue/n, 1)
		if o.Durable {
			// All that is in flight may have one key, and a durable delivery must
			// never wait for room.
			bound = s.maxInFlight()
		}
		s.lanes = append(s.lanes, newQueue(bound))
	}
	return s
}

// maxInFlight bounds what a durable subscription holds: enough to keep its
// workers busy, little enough that others of the group get their share and that
// not much waits for the death of this process to be noticed.
func (s *Subscription) maxInFlight() int { return min(s.opts.Queue, 64*s.opts.Workers) }

func (s *Subscription) start() {
	if s.opts.Inline {
		return
	}
	for i := range s.opts.Workers {
		q := s.lanes[i%len(s.lanes)]
		s.workers = append(s.workers, loop.Go(func(context.Context) { s.work(q) }))
	}
}

// work is the goroutine of one worker.
func (s *Subscription) work(q *queue) {
	id := goid.ID()
	s.bus.workers.Store(id, s)
	defer s.bus.workers.Delete(id)
	for {
		it, ok := q.take()
		if !ok {
			return
		}
		if s.bursted.Load() && q.len() == 0 {
			s.bursted.Store(false)
		}
		// A goroutine of its own only for the rest of a worker whose handler ended it
		// with runtime.Goexit (t.FailNow is one): the queue must not lose its worker.
		finished := false
		func() {
			defer func() {
				if !finished {
					<-loop.Go(func(context.Context) { s.abandoned(it); s.work(q) }).Done()
				}
			}()
			s.handle(it)
			finished = true
		}()
	}
}

// abandoned settles an event whose handler ended its goroutine.
func (s *Subscription) abandoned(it item) {
	defer s.bus.work.done()
	s.counts.running.Add(^uint64(0))
	s.counts.failed.Add(1)
	err := errors.New("the handler ended its goroutine (runtime.Goexit)")
	s.bus.report(it.ctx, &Error{Op: "handle", Topic: it.event.Topic(), Accepted: true, Err: err})
	if it.settle != nil {
		s.settleDurable(it, err, it.event.Attempt())
	}
}

// handle calls the handler until the event is handled, given up or handed back.
func (s *Subscription) handle(it item) {
	if s.opts.Durable && mutant.On("ack-before-handler") {
		it.settle.Ack(s.settled(it))
		it.settle = nil
	}
	attempt := max(it.event.attempt, 1)
	for {
		err := s.call(it.ctx, Event{it.event.r, attempt})
		if it.settle != nil {
			s.settleDurable(it, err, attempt)
		}
		if it.settle != nil || err == nil || !s.retryHere(err, attempt) {
			s.bus.work.done()
			return
		}
		attempt++
	}
}

// retryHere waits before the next attempt of a local or live event; false when
// there is none.
func (s *Subscription) retryHere(err error, attempt int) bool {
	var permanent *permanentError
	if attempt >= s.opts.Retry.Attempts || errors.As(err, &permanent) {
		return false
	}
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

// settleDurable tells the store what became of the event.
func (s *Subscription) settleDurable(it item, err error, attempt int) {
	var permanent *permanentError
	switch {
	case err == nil:
		it.settle.Ack(s.settled(it))
	case errors.As(err, &permanent) || (s.opts.Retry.Attempts > 0 && attempt >= s.opts.Retry.Attempts):
		s.bus.opts.Logger.Error("event given up; it stays in the stream but is not delivered to this group again",
			"topic", it.event.Topic(), "id", it.event.ID(), "group", s.opts.Group, "pattern", s.pattern, "attempts", attempt, "err", err)
		it.settle.Term(err.Error())
	default:
		it.settle.Nak(s.retryDelay(err, attempt))
	}
}

// call runs the handler once; what goes wrong is counted and reported.
func (s *Subscription) call(ctx context.Context, e Event) (err error) {
	hctx := context.Context(&handlerContext{s.handlers, ctx})
	if s.opts.Inline {
		hctx = ctx
	}
	if s.opts.Timeout > 0 {
		var cancel context.CancelFunc
		hctx, cancel = context.WithTimeout(hctx, s.opts.Timeout)
		defer cancel()
	}
	s.counts.running.Add(1)
	err = protect(func() error { return s.handler(hctx, e) })
	s.counts.running.Add(^uint64(0))
	if err == nil {
		s.counts.handled.Add(1)
		return nil
	}
	s.counts.failed.Add(1)
	var p *PanicError
	if errors.As(err, &p) {
		s.counts.panicked.Add(1)
	}
	s.bus.report(hctx, &Error{Op: "handle", Topic: e.Topic(), Accepted: true,
		Err: fmt.Errorf("subscription %s of group %q: event %s, attempt %d: %w", s.pattern, s.opts.Group, e.ID(), e.Attempt(), err)})
	return err
}

// protect turns a panic of user code into an error. It runs it on the calling
// goroutine.
func protect(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
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

var laneSeed = maphash.MakeSeed()

// lane picks the queue of an event: by key if there is one.
func (s *Subscription) lane(e Event) *queue {
	if len(s.lanes) == 1 {
		return s.lanes[0]
	}
	var key string
	if err := protect(func() error { key = s.opts.Key(e); return nil }); err != nil {
		s.bus.report(context.Background(), &Error{Op: "key", Topic: e.Topic(), Err: err})
	}
	return s.lanes[maphash.String(laneSeed, key)%uint64(len(s.lanes))]
}

// deliver hands the event to the handler or to the queue. The error is for the
// publisher: the event was not accepted.
func (s *Subscription) deliver(ctx context.Context, e Event, settle adapter.Settler) error {
	if s.opts.Inline {
		_ = s.call(ctx, e) // reported by call; inline failures are not the publisher's
		return nil
	}
	return s.put(s.lane(e), item{ctx, e, settle})
}

func (s *Subscription) put(q *queue, it item) error {
	s.bus.work.add()
	var res putResult
	switch s.opts.Overflow {
	case DropOldest:
		dropped, full, r := q.replaceOldest(it)
		if res = r; full {
			s.drop(dropped, "the queue is full: its oldest event is dropped")
			s.bus.work.done()
		}
	case Block:
		timeout := s.opts.BlockTimeout
		if res, _ = q.offer(it); res == putFull && s.insideOwnHandler() {
			timeout = 0 // waiting for oneself helps nobody
		}
		if res == putFull && timeout > 0 {
			res = q.putWait(it.ctx, it, timeout)
		}
	default:
		res, _ = q.offer(it)
	}
	if res == putOK {
		return nil
	}
	s.bus.work.done()
	if res == putClosed { // it has ended since the publisher looked: no subscriber any more
		switch {
		case it.settle != nil:
			it.settle.Nak(0)
		case s.bus.state.Load() != stateOpen:
			return ErrDraining
		}
		return nil
	}
	s.drop(it, "the queue is full: the new event is dropped")
	if s.opts.Overflow == DropNewest {
		return nil
	}
	return fmt.Errorf("%w: the queue of subscription %s (group %q) holds %d events", ErrOverflow, s.pattern, s.opts.Group, s.opts.Queue)
}

func (s *Subscription) insideOwnHandler() bool {
	me, ok := s.bus.workers.Load(goid.ID())
	return ok && me == s
}

// drop counts, and logs the first of a burst; the burst is over once the queue
// has been seen with room.
func (s *Subscription) drop(it item, why string) {
	if it.settle != nil {
		it.settle.Nak(0)
		return
	}
	n := s.counts.dropped.Add(1)
	if s.bursted.CompareAndSwap(false, true) {
		s.bus.opts.Logger.Warn("tidings: "+why, "topic", it.event.Topic(), "pattern", s.pattern,
			"group", s.opts.Group, "queue", s.opts.Queue, "dropped_so_far", n)
	}
}

// settled returns what is called once the store has confirmed.
func (s *Subscription) settled(it item) func(error) {
	return func(err error) {
		s.bus.announce(topicSettled, Settled{Event: it.event, Pattern: s.pattern, Group: s.opts.Group, Err: err})
	}
}

// gate lets Drain wait for publishers that have already told the wire that this
// subscription takes the event.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{}
}

// enter reports whether the subscription still takes events.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close returns a channel that is closed once nobody is inside.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	c := make(chan struct{})
	if g.inside == 0 {
		close(c)
	} else {
		g.empty = c
	}
	return c
}
