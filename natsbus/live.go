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
)

// Bounds of what nats.go keeps for a live subscription whose Deliver blocks.
// Beyond them the newest events are dropped, counted and reported.
const (
	liveMaxMsgs  = 512 << 10
	liveMaxBytes = 64 << 20
)

// live is a subscription of core NATS. Deliver runs on the goroutine that
// nats.go gives to each subscription.
type live struct {
	c       *conn
	spec    adapter.Spec
	subject string
	sub     *nats.Subscription
	holes   *holes
	aside   []*nats.Subscription // to marks and tallies
	drained ending
	stopped atomic.Bool
	busy    atomic.Bool
	since   time.Time // when the server had it; set before Subscribe returns

	bursted atomic.Bool // its buffer was full, and was not empty since

	mu      sync.Mutex
	there   bool // the server has had it
	leaving bool // what it has is finished, and no more is wanted
	seen    int  // how many of the dropped ones were reported
}

// queueName makes the name of a queue group. The pattern is part of it: the
// server chooses one member among all subscriptions with one queue name, also
// when their subjects differ.
func queueName(group, pattern string) string {
	if group == "" {
		return ""
	}
	return escape(group+"|"+pattern, &inValues)
}

func (c *conn) subscribeLive(ctx context.Context, s adapter.Spec) (adapter.Subscription, error) {
	l := &live{c: c, spec: s, subject: c.subject(s.Pattern)}
	l.holes = c.newHoles(s.Group, s.Pattern)
	if err := c.join(l); err != nil {
		return nil, err
	}
	if broken(mutantNoFlush) {
		time.AfterFunc(mutantSubDelay, func() { _ = l.open() })
		return l, nil
	}
	err := l.confirm(ctx)
	if err != nil {
		c.leave(l)
		sub := l.goes()
		l.leaveHoles()
		if sub != nil {
			err = errors.Join(err, ignoreClosed(sub.Unsubscribe()))
		}
		return nil, err
	}
	return l, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrBadSubscription) {
		return nil
	}
	return err
}

func (l *live) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for subject, heard := range l.holes.subjects(l.pending) { // first, so that a refusal of the subscription itself is the last error
		aside, err := l.c.nc.Subscribe(subject, heard)
		if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("natsbus: subscribe to %q: %w", subject, err)
		}
		l.aside = append(l.aside, aside)
	}
	return l.subscribe()
}

// subscribe makes the subscription proper. mu is held.
func (l *live) subscribe() error {
	sub, err := l.c.nc.QueueSubscribe(l.subject, queueName(l.spec.Group, l.spec.Pattern), l.receive)
	if err != nil {
		if errors.Is(err, nats.ErrConnectionClosed) {
			return errClosed
		}
		return fmt.Errorf("natsbus: subscribe to %q: %w", l.subject, err)
	}
	l.sub, l.seen = sub, 0
	return sub.SetPendingLimits(liveMaxMsgs, liveMaxBytes)
}

// pending is how many messages are there to take, with the one that is being taken.
func (l *live) pending() int {
	l.mu.Lock()
	sub := l.sub
	l.mu.Unlock()
	if sub == nil {
		return 0
	}
	n, _, _ := sub.Pending() // 0 when it has ended
	return n
}

// leaveHoles says to the group what was got, and listens no more.
func (l *live) leaveHoles() {
	l.mu.Lock()
	aside := l.aside
	l.aside = nil
	l.mu.Unlock()
	for _, sub := range aside {
		_ = sub.Unsubscribe() // it may have gone with the connection
	}
	l.holes.leave()
}

// Missing implements [adapter.MissCounter].
func (l *live) Missing() uint64 { return l.holes.missing() }

// confirm subscribes and waits until the server has answered, so that what is
// published from now on arrives. A refusal comes before the answer.
func (l *live) confirm(ctx context.Context) error {
	key := l.subject
	if q := queueName(l.spec.Group, l.spec.Pattern); q != "" {
		key += " " + q
	}
	l.c.mu.Lock()
	delete(l.c.denied, key)
	l.c.mu.Unlock()
	before := l.c.nc.LastError()
	if err := l.open(); err != nil {
		return err
	}
	if err := l.c.flush(ctx); err != nil {
		return fmt.Errorf("natsbus: subscribe to %q: %w", l.subject, err)
	}
	l.since = time.Now()
	// The error handler runs later, on a goroutine of nats.go; the last error is
	// there before the answer is, but another may have replaced it.
	after := l.c.nc.LastError()
	l.c.mu.Lock()
	err := l.c.denied[key]
	l.c.mu.Unlock()
	if err == nil && deniedKey(after) == key && (deniedKey(before) != key || before != after) {
		err = after
	}
	if err != nil {
		return fmt.Errorf("natsbus: no permission to subscribe to %q: allow it for this user on the server: %w", l.subject, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.there = true
	return nil
}

func (l *live) receive(m *nats.Msg) {
	l.busy.Store(true)
	defer l.busy.Store(false)
	if l.stopped.Load() || ownSubject(m.Subject) {
		return // without a prefix the pattern ">" matches what is no event, too
	}
	d := adapter.Delivery{Attempt: 1}
	if err := decodeInto(&d.Message, l.c.topic(m.Subject), m.Header, m.Data); err != nil {
		l.c.drop(1, fmt.Errorf("natsbus: %s: an event from %q cannot be decoded: %w", m.Subject, d.Source, err))
		return
	}
	if m.Reply != "" {
		d.Reply = l.c.replier(m)
	}
	l.holes.took(d.ID, d.Topic)
	l.spec.Deliver(d)
	l.holes.caughtUp(l.pending)
	l.afterBurst(m.Sub)
}

// liveSettle is how long a new member of a group is there before it is ready. An
// event that the server has matched with the members of before may be delivered
// late, when its goroutine runs again; if the only other one has left by then it
// is lost. Of 32 runs of eight hand-overs on a busy machine 6 lost an event without
// this, of 48 with it none.
const liveSettle = 20 * time.Millisecond

// Ready implements [adapter.Subscription]: the server has confirmed it.
func (l *live) Ready(ctx context.Context) error {
	if l.spec.Group == "" {
		return nil
	}
	select {
	case <-time.After(liveSettle - time.Since(l.since)):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("natsbus: subscription to %q: %w", l.subject, context.Cause(ctx))
	}
}

// Refill implements [adapter.Subscription]: live events are not asked for.
func (l *live) Refill() {}

// Drain implements [adapter.Subscription].
func (l *live) Drain(ctx context.Context) error {
	return l.drained.do(ctx, l.drain)
}

func (l *live) drain(ctx context.Context) error {
	defer l.stopped.Store(true)
	sub := l.goes()
	if sub == nil {
		return nil
	}
	if broken(mutantNotWaited) {
		return ignoreClosed(sub.Unsubscribe())
	}
	ctx, cancel := withLimit(ctx, drainTimeout)
	defer cancel()
	if err := l.c.quiet(ctx, sub); err != nil {
		l.stopped.Store(true)
		n := l.dropPending(sub)
		err = fmt.Errorf("natsbus: drain of %q: %d events were taken and not delivered: %w", l.subject, n, err)
		if n > 0 {
			l.c.drop(n, err)
		}
		l.leaveHoles()
		return errors.Join(err, ignoreClosed(sub.Unsubscribe()))
	}
	l.leaveHoles()
	return nil
}

// goes says that it is leaving, and returns the subscription that stays its last.
func (l *live) goes() *nats.Subscription {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaving = true
	return l.sub
}

func (l *live) dropPending(sub *nats.Subscription) int {
	n, _, err := sub.Pending()
	if err != nil {
		return 0
	}
	if n > 0 && l.busy.Load() {
		n-- // that one is being delivered
	}
	return n
}

// quiet stops a subscription without losing what the server has sent: UNSUB,
// an answer that comes after everything sent before, and then until the
// callback has taken it all. The waiting is our own because that of nats.go
// looks only every 100 ms.
func (c *conn) quiet(ctx context.Context, sub *nats.Subscription) error {
	if c.link.isUp() {
		if err := sub.Drain(); err != nil {
			return ignoreClosed(err)
		}
		if err := c.flushOnce(ctx); err != nil {
			return err
		}
	}
	// When the connection is down nothing more can come before it is back.
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		n, _, err := sub.Pending()
		if err != nil || n == 0 {
			// Once more, in case a reconnection has subscribed it again meanwhile.
			return ignoreClosed(sub.Unsubscribe())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// flushOnce waits for an answer of this connection; that it broke is as good.
func (c *conn) flushOnce(ctx context.Context) error {
	err := c.nc.FlushWithContext(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Close implements [adapter.Subscription].
func (l *live) Close(ctx context.Context) error {
	err := l.Drain(ctx)
	l.c.leave(l)
	return err
}

// linkUp: nats.go has subscribed again.
func (l *live) linkUp() {
	if broken(mutantNotResubscribed) {
		l.mu.Lock()
		defer l.mu.Unlock()
		_ = l.sub.Unsubscribe()
	}
}

func (l *live) cut() {
	sub := l.goes()
	if sub == nil || l.stopped.Swap(true) {
		return
	}
	if n := l.dropPending(sub); n > 0 {
		l.c.drop(n, fmt.Errorf("natsbus: closed with %d events of %q taken and not delivered", n, l.subject))
	}
}

func (l *live) slow(sub *nats.Subscription) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sub == nil || l.sub != sub {
		return 0
	}
	total, err := sub.Dropped()
	if err != nil {
		return 0
	}
	n := total - l.seen
	l.seen = total
	l.bursted.Store(true)
	return n
}

// afterBurst counts what was dropped after nats.go said that the buffer is full: it says
// so once, until there is room again.
func (l *live) afterBurst(sub *nats.Subscription) {
	if !l.bursted.Load() || l.pending() > 1 {
		return
	}
	n := l.slow(sub)
	l.bursted.Store(false)
	if n > 0 {
		l.c.dropSlow(sub, n)
	}
}
