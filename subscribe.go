package tidings

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/internal/goid"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/internal/topic"
)

// Subscription is a pattern and a handler on a bus. All methods may be called
// concurrently, and from inside any handler.
type Subscription struct {
	bus     *Bus
	pattern string
	wild    bool  // the pattern has wildcards
	order   int64 // among those of a topic; negative for Prepend
	handler Handler
	typed   any                                  // the handler as a typedHandler, when that is all there is
	run     func(*worker)                        // has the handler called for all that the worker has in hand
	batch   func(context.Context, []Event) error // in place of handler
	opts    SubscribeOptions
	key     feedKey
	plain   bool // events go to its only queue without asking anybody
	watcher bool // of Debugger.Watch: sees, and is not seen
	place   [8]uintptr

	lanes      []*queue // none: inline
	workers    []*worker
	handlers   context.Context // cancelled when handlers must give up
	cancel     context.CancelFunc
	gate       gate
	joined     *feed // set under bus.mu, as are the next three
	lastOfFeed bool
	host       *host
	ran        runs

	pace pace
	held *holds // of a durable subscription with a Key, else empty

	ending     atomic.Bool
	left       atomic.Int64 // events that the deadline of a drain dropped
	leftMu     sync.Mutex
	handedBack []Event // while it ended; guarded by leftMu
	done       chan struct{}
	err        error // read after done
	counts     counters
}

// counters are of what does not happen to most events: the others are counted
// where that costs nothing, by workers and topics.
type counters struct {
	failed, panicked, unhandled, dropped, hung atomic.Uint64
	dead, undead                               atomic.Uint64 // events given up: dead letters stored, and attempts to that failed
	inline                                     atomic.Uint64 // calls of an inline handler that its topics do not count
	expired                                    atomic.Uint64 // events that came too late
	// What is not known of queues and workers about receptions, which a
	// SubscriptionInfo explains.
	aside, requeued, redelivered atomic.Uint64 // never put into a queue; put there once more; delivered before
	gaveUp, returned, acked      atomic.Uint64 // gaveUp: what is not durable
	expiredSaid                  atomic.Int64  // when that was logged last
	latency                      histogram
}

// Subscribe calls h for each event whose topic matches the pattern, from when it
// returns until the subscription or the bus ends. "*" stands for one token, ">"
// at the end for one or more. nil options are the defaults.
//
// With a transport attached it returns once the subscription is certain to get
// what is published from now on, anywhere; ctx bounds that wait. It may be called
// from inside a handler; the new subscription does not see the event in hand.
func (b *Bus) Subscribe(ctx context.Context, pattern string, h Handler, o *SubscribeOptions) (*Subscription, error) {
	return b.subscribeHandler(ctx, pattern, &Subscription{handler: h}, o)
}

func (b *Bus) subscribeHandler(ctx context.Context, pattern string, s *Subscription, o *SubscribeOptions) (*Subscription, error) {
	if s.handler != nil && o != nil && (o.BatchSize != 0 || o.BatchWait != 0) {
		return nil, &Error{Op: "subscribe", Topic: pattern, Err: errors.New("SubscribeOptions.BatchSize and BatchWait are for SubscribeBatch")}
	}
	for i := len(b.opts.Middleware) - 1; i >= 0 && s.handler != nil; i-- {
		if s.handler = b.opts.Middleware[i](s.handler); s.handler == nil {
			return nil, &Error{Op: "subscribe", Topic: pattern, Err: fmt.Errorf("Options.Middleware[%d] returned nil instead of a Handler", i)}
		}
	}
	return b.subscribe(ctx, pattern, s, o)
}

// SubscribeBatch is [Bus.Subscribe] for a handler of several events at once: up
// to SubscribeOptions.BatchSize, or as many as came within BatchWait of the first.
// An error is that of every event in the batch; a retry is of the whole batch.
// Its context has no publisher's values, since each event may have others, and
// Options.Middleware is not around it.
func (b *Bus) SubscribeBatch(ctx context.Context, pattern string, h func(context.Context, []Event) error, o *SubscribeOptions) (*Subscription, error) {
	return b.subscribe(ctx, pattern, &Subscription{batch: h}, o)
}

func (b *Bus) subscribe(ctx context.Context, pattern string, s *Subscription, o *SubscribeOptions) (*Subscription, error) {
	fail := func(err error) (*Subscription, error) {
		return nil, &Error{Op: "subscribe", Topic: pattern, Err: err}
	}
	if err := topic.CheckPattern(pattern); err != nil {
		return fail(err)
	}
	if s.handler == nil && s.batch == nil {
		return fail(errors.New("the handler is nil"))
	}
	opts, err := o.withDefaults(b, s.batch != nil)
	if err != nil {
		return fail(err)
	}
	s.init(b, pattern, opts)
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

func (s *Subscription) init(b *Bus, pattern string, o SubscribeOptions) {
	if o.Durable && mutant.On("key-dropped") {
		o.Key = nil
	}
	s.bus, s.pattern, s.opts, s.done = b, pattern, o, make(chan struct{})
	s.wild = topic.IsPattern(pattern)
	s.key = feedKey{group: o.Group, pattern: pattern, durable: o.Durable}
	runtime.Callers(3, s.place[:])
	if s.run == nil {
		s.run = s.runHandler
	}
	s.held = &holds{sub: s}
	s.handlers, s.cancel = context.WithCancel(context.Background())
	if o.Inline {
		return
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
		s.lanes = append(s.lanes, newQueue(bound, s))
	}
	s.plain = s.onlyQueue() != nil && o.Filter == nil
}

func (s *Subscription) start() {
	if s.opts.Inline {
		return
	}
	for i := range s.opts.Workers {
		s.workers = append(s.workers, s.newWorker(s.lanes[i%len(s.lanes)]))
	}
}

// Matches reports whether the subscription would get an event of this topic: by
// its pattern, and by its Filter now.
func (s *Subscription) Matches(name string) bool {
	return topic.Check(name) == nil && isOwn(s.pattern) == isOwn(name) && topic.Match(s.pattern, name) && s.wants(name)
}

// wants asks the filter.
func (s *Subscription) wants(name string) (yes bool) {
	if s.opts.Filter == nil {
		return true
	}
	if err := protect(func() error { yes = s.opts.Filter(name); return nil }); err != nil {
		s.bus.report(context.Background(), &Error{Op: "filter", Topic: name, Err: fmt.Errorf("%s: %w", s, err)})
		return false
	}
	return yes
}

// String names it in logs and errors.
func (s *Subscription) String() string {
	name := "subscription"
	if s.opts.Name != "" {
		name += fmt.Sprintf(" %q:", s.opts.Name)
	}
	return fmt.Sprintf("%s %s of group %q", name, s.pattern, s.opts.Group)
}

// logged are the attributes that name it in a line of the log.
func (s *Subscription) logged() []any {
	args := []any{"pattern", s.pattern, "group", s.opts.Group}
	if s.opts.Name != "" {
		args = append(args, "subscription", s.opts.Name)
	}
	return args
}

// call runs the handler once.
func (s *Subscription) call(ctx context.Context, e Event) error {
	hctx := ctx
	if !s.opts.Inline {
		hctx = &handlerContext{s.handlers, ctx}
	} else if s.opts.Filter != nil {
		s.counts.inline.Add(1)
	}
	return s.invoke(hctx, e, func(ctx context.Context) error { return s.handler(ctx, e) })
}

// invoke runs user code once, with all that options ask for; what goes wrong is
// counted and reported.
func (s *Subscription) invoke(ctx context.Context, e Event, f func(context.Context) error) error {
	if s.opts.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.opts.Timeout)
		defer cancel()
	}
	start := monotonic()
	err := protect(func() error { return f(ctx) })
	took := time.Duration(monotonic() - start)
	s.counts.latency.add(took)
	if s.opts.Durable {
		s.pace.add(took)
	}
	if err != nil {
		s.failed(ctx, e, err)
	}
	return err
}

// failed counts and reports what a handler did with one event.
func (s *Subscription) failed(ctx context.Context, e Event, err error) {
	s.counts.failed.Add(1)
	if s.opts.Inline {
		s.counts.unhandled.Add(1)
		s.counts.gaveUp.Add(1)
		if s.bus.opts.Strict && !s.watcher {
			return // it is the publisher's
		}
	}
	var p *PanicError
	if errors.As(err, &p) {
		s.counts.panicked.Add(1)
	}
	s.bus.tell(ctx, &Error{Op: "handle", Topic: e.Topic(), Accepted: true,
		Err: fmt.Errorf("%s: event %s, attempt %d: %w", s, e.ID(), s.attempt(e), err)}, func() {
		level, msg := slog.LevelError, "tidings: a handler failed"
		if s.again(err, s.attempt(e)) {
			level, msg = slog.LevelWarn, "tidings: a handler failed; it will be called again"
		}
		attempt := strconv.Itoa(s.attempt(e))
		if n := s.opts.Retry.Attempts; n > 0 {
			attempt += " of " + strconv.Itoa(n)
		}
		s.bus.opts.Logger.Log(ctx, level, msg, append(s.logged(), "topic", e.Topic(), "id", e.ID(),
			"attempt", attempt, "subscribed_at", s.where(), "err", err)...)
	})
}

// again reports whether the handler will be called once more with an event that it
// has failed with.
func (s *Subscription) again(err error, attempt int) bool {
	var permanent *permanentError
	if errors.As(err, &permanent) {
		return false
	}
	return attempt < s.opts.Retry.Attempts
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

var laneSeed = maphash.MakeSeed()

// lane picks the queue of an event: by key if there is one.
func (s *Subscription) lane(e *Event) *queue {
	if len(s.lanes) == 1 {
		return s.lanes[0]
	}
	return s.keyLane(*e)
}

// onlyQueue is the queue of every event, if there is one that any event may be put
// into without more ado.
func (s *Subscription) onlyQueue() *queue {
	if len(s.lanes) == 1 && s.opts.Overflow != DropOldest {
		return s.lanes[0]
	}
	return nil
}

func (s *Subscription) keyLane(e Event) *queue {
	return s.lanes[maphash.String(laneSeed, s.keyOf(e))%uint64(len(s.lanes))]
}

// put hands an event to the queue. The error is for the publisher: the event was
// not accepted.
func (s *Subscription) put(q *queue, ctx context.Context, e *Event) error {
	if s.opts.Overflow != DropOldest {
		switch q.offer(ctx, e) {
		case putOK:
			return nil
		case putClosed:
			return s.putLate(*e)
		default:
			return s.putFull(q, ctx, *e)
		}
	}
	dropped, full, res := q.replaceOldest(ctx, e)
	if full {
		s.drop(q, dropped.event, "the queue is full: its oldest event is dropped")
	}
	if res == putClosed {
		return s.putLate(*e)
	}
	return nil
}

// putLate: it has ended since the publisher looked; it is no subscriber any more.
func (s *Subscription) putLate(e Event) error {
	switch {
	case e.r.settle != nil:
		s.counts.aside.Add(1)
		s.handBack(e, 0)
	case s.bus.state.Load() != stateOpen:
		e.answered(ErrDraining)
		return ErrDraining
	}
	e.answered(ErrClosed)
	return nil
}

func (s *Subscription) putFull(q *queue, ctx context.Context, e Event) error {
	if s.opts.Overflow == Block {
		// Give the worker a chance before finding out who is asking.
		if runtime.Gosched(); q.offer(ctx, &e) == putOK {
			return nil
		}
		if !s.insideOwnHandler() { // waiting for oneself helps nobody
			switch q.putWait(ctx, &e, s.opts.BlockTimeout) {
			case putOK:
				return nil
			case putClosed:
				return s.putLate(e)
			}
		}
	}
	s.counts.aside.Add(1)
	s.drop(q, e, "the queue is full: the new event is dropped")
	if s.opts.Overflow == DropNewest {
		return nil
	}
	return fmt.Errorf("%w: the queue of %s holds %d events, its SubscribeOptions.Queue", ErrOverflow, s, s.opts.Queue)
}

func (s *Subscription) insideOwnHandler() bool {
	me, ok := s.bus.workers.Load(goid.ID())
	return ok && me == s
}

// drop gives an event up, and logs the first of a burst; the burst is over once
// the queue has been empty.
func (s *Subscription) drop(q *queue, e Event, why string) {
	s.lose(e, why)
	if e.r.settle == nil && q.bursted.CompareAndSwap(false, true) {
		s.warn(why, "topic", e.Topic())
	}
}

// lose hands an event back to its store, or counts it.
func (s *Subscription) lose(e Event, why string) {
	e.answered(fmt.Errorf("%w: %s", ErrOverflow, why))
	if e.r.settle != nil {
		s.handBack(e, 0)
		return
	}
	s.counts.dropped.Add(1)
	s.bus.dropped.Add(1)
}

func (s *Subscription) warn(why string, args ...any) {
	s.bus.inside(func() {
		s.bus.opts.Logger.Warn("tidings: "+why, append(append(s.logged(), args...),
			"queue", s.opts.Queue, "dropped_so_far", s.counts.dropped.Load())...)
	})
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
