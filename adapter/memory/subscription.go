package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// defaultInFlight bounds unsettled deliveries where the caller does not.
const defaultInFlight = 256

// A subscription has a queue and a goroutine that calls Deliver.
type subscription struct {
	c       *conn
	spec    adapter.Spec
	subject string
	max     int
	run     *loop.Loop
	drained sync.Once
	mark    chan struct{} // closed once all that came before the first Drain is delivered

	group *group             // of a durable one
	taken map[*task]*settler // not settled; guarded by the hub's mu

	mu     sync.Mutex
	queue  []handed
	recall bool // what is in the queue is not delivered any more
	kept   int  // durable deliveries that were in it
	wake   chan struct{}
}

// handed is a delivery, or a channel to close once all before it is delivered.
type handed struct {
	d    adapter.Delivery
	mark chan struct{}
}

func newSubscription(c *conn, spec adapter.Spec) *subscription {
	s := &subscription{
		c: c, spec: spec, subject: c.subject(spec.Pattern), max: spec.MaxInFlight,
		taken: map[*task]*settler{}, wake: make(chan struct{}, 1), mark: make(chan struct{}),
	}
	if s.max <= 0 {
		s.max = defaultInFlight
	}
	return s
}

// limit is how many unsettled deliveries it may have. mu of the hub is held:
// Prefetch is the bus's, and quick.
func (s *subscription) limit() int {
	if s.spec.Prefetch == nil {
		return s.max
	}
	return min(max(s.spec.Prefetch(), 1), s.max)
}

func (s *subscription) start() { s.run = loop.Go(s.deliver) }

// put queues h; false when limit (0: none) is reached.
func (s *subscription) put(h handed, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > 0 && len(s.queue) >= limit {
		return false
	}
	s.queue = append(s.queue, h)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

func (s *subscription) next() (h handed, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recall || len(s.queue) == 0 {
		return h, false
	}
	h = s.queue[0]
	s.queue = s.queue[1:]
	return h, true
}

func (s *subscription) deliver(ctx context.Context) {
	for {
		for h, ok := s.next(); ok; h, ok = s.next() {
			if h.mark != nil {
				close(h.mark)
			} else {
				s.spec.Deliver(h.d)
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// Ready implements [adapter.Subscription].
func (s *subscription) Ready(context.Context) error { return nil }

// Refill implements [adapter.Subscription].
func (s *subscription) Refill() {
	s.c.hub.mu.Lock()
	defer s.c.hub.mu.Unlock()
	if s.group != nil {
		s.group.dispatch()
	}
}

// Lag implements [adapter.Lagger].
func (s *subscription) Lag() (waiting uint64, known bool) {
	if s.group == nil {
		return 0, false
	}
	s.c.hub.mu.Lock()
	defer s.c.hub.mu.Unlock()
	return uint64(len(s.group.queue)), true
}

// Drain implements [adapter.Subscription]. Each caller waits as long as its own
// ctx allows.
func (s *subscription) Drain(ctx context.Context) error {
	s.drained.Do(func() {
		s.c.hub.leave(s)
		s.put(handed{mark: s.mark}, 0)
	})
	select {
	case <-s.mark:
		return nil
	case <-s.run.Done():
		return nil
	case <-ctx.Done():
	}
	n := s.recallQueue()
	return fmt.Errorf("memory: drain of %q: %d events were taken and not delivered: %w", s.spec.Pattern, n, context.Cause(ctx))
}

// recallQueue drops what is not delivered yet and hands durable events back.
func (s *subscription) recallQueue() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, h := range s.queue {
		switch {
		case h.mark != nil:
			continue
		case h.d.Settle != nil: // not settled: cut hands it back
			s.kept++
		default:
			s.c.dropped.Add(1)
		}
		n++
	}
	s.queue, s.recall = nil, true
	return n
}

// Close implements [adapter.Subscription].
func (s *subscription) Close(ctx context.Context) error {
	err := s.Drain(ctx)
	s.forgetBegun()
	left := s.cut()
	s.c.mu.Lock()
	delete(s.c.subs, s)
	s.c.mu.Unlock()
	s.mu.Lock()
	kept := s.kept
	s.mu.Unlock()
	if werr := s.run.Wait(ctx); err == nil {
		err = werr
	}
	if len(left) > 0 {
		return &adapter.LeftError{HandedBack: left, Undelivered: kept, Err: err}
	}
	return err
}

// forgetBegun: what Close hands back has killed nobody.
func (s *subscription) forgetBegun() {
	s.c.hub.mu.Lock()
	defer s.c.hub.mu.Unlock()
	for t := range s.taken {
		t.begun = 0
	}
}

// cut lets go at once, hands back what is not settled and returns it. It may be
// called from inside Deliver.
func (s *subscription) cut() (left []adapter.Message) {
	s.c.hub.leave(s)
	s.recallQueue()
	s.run.Stop()
	h := s.c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range slices.SortedFunc(maps.Keys(s.taken), func(a, b *task) int { return cmp.Compare(a.seq, b.seq) }) {
		delete(s.taken, t)
		s.group.again(t)
		m := t.msg
		m.Topic = s.c.topic(t.subject)
		left = append(left, m)
	}
	return left
}

// A settler settles one task.
type settler struct {
	s *subscription
	t *task
}

// settle ends the subscription's hold on the task; false when it has none.
func (x *settler) settle(then func()) bool {
	h := x.s.c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if x.s.taken[x.t] != x {
		return false
	}
	delete(x.s.taken, x.t)
	x.t.begun = 0
	then()
	x.s.group.dispatch()
	return true
}

// Ack implements [adapter.Settler].
func (x *settler) Ack(confirmed func(error)) {
	var err error
	if !x.settle(x.done) {
		err = fmt.Errorf("memory: event %d was handed back before it was acknowledged: %w", x.t.seq, adapter.ErrClosed)
	}
	if confirmed != nil {
		confirmed(err)
	}
}

// Nak implements [adapter.Settler].
func (x *settler) Nak(delay time.Duration) { x.settle(func() { x.after(delay) }) }

// letterAgain is how long an event waits of which no dead letter could be kept.
const letterAgain = 5 * time.Second

// after puts the task back after a while. It is called with the hub's mu held.
func (x *settler) after(delay time.Duration) {
	h, g := x.s.c.hub, x.s.group
	if delay <= 0 {
		g.again(x.t)
		return
	}
	time.AfterFunc(delay, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		g.again(x.t)
	})
}

// Term implements [adapter.Settler].
func (x *settler) Term(string) { x.settle(x.done) }

// done: the group never gets it again. It is called with the hub's mu held.
func (x *settler) done() { delete(x.s.group.open, x.t.seq) }
