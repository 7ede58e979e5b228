package memory

import (
	"context"
	"fmt"
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
	queue := s.queue
	s.queue, s.recall = nil, true
	s.mu.Unlock()
	n := 0
	for _, h := range queue {
		switch {
		case h.mark != nil:
			continue
		case h.d.Settle != nil:
			h.d.Settle.Nak(0)
		default:
			s.c.dropped.Add(1)
		}
		n++
	}
	return n
}

// Close implements [adapter.Subscription].
func (s *subscription) Close(ctx context.Context) error {
	err := s.Drain(ctx)
	s.cut()
	s.c.mu.Lock()
	delete(s.c.subs, s)
	s.c.mu.Unlock()
	if werr := s.run.Wait(ctx); err == nil {
		err = werr
	}
	return err
}

// cut lets go at once, and may be called from inside Deliver.
func (s *subscription) cut() {
	s.c.hub.leave(s)
	s.recallQueue()
	s.run.Stop()
	h := s.c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for t := range s.taken {
		delete(s.taken, t)
		s.group.again(t)
	}
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
	if then != nil {
		then()
	}
	x.s.group.dispatch()
	return true
}

// Ack implements [adapter.Settler].
func (x *settler) Ack(confirmed func(error)) {
	var err error
	if !x.settle(nil) {
		err = fmt.Errorf("memory: event %d was handed back before it was acknowledged: %w", x.t.seq, adapter.ErrClosed)
	}
	if confirmed != nil {
		confirmed(err)
	}
}

// Nak implements [adapter.Settler].
func (x *settler) Nak(delay time.Duration) {
	g := x.s.group
	x.settle(func() {
		if delay <= 0 {
			g.again(x.t)
			return
		}
		h := x.s.c.hub
		time.AfterFunc(delay, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			g.again(x.t)
		})
	})
}

// Term implements [adapter.Settler].
func (x *settler) Term(string) { x.settle(nil) }
