package tidings

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// timing is when an event is due and until when it is worth handling; zero times
// are no limit.
type timing struct{ notBefore, expires time.Time }

// NotBefore is when the event was to be delivered, if it was delayed; else zero.
// Its Time is that of publishing.
func (e Event) NotBefore() time.Time { return e.timing().notBefore }

// Expires is when the event becomes of no use; zero: never.
func (e Event) Expires() time.Time { return e.timing().expires }

func (e Event) timing() timing {
	switch r := e.r; {
	case r == nil:
		return timing{}
	case r.msg != nil:
		return timing{r.msg.NotBefore, r.msg.Expires}
	case r.times != nil:
		return *r.times
	}
	return timing{}
}

// check reports whether the event has to wait. Only the broker can keep one that
// does, and one that expires is kept for groups that are away.
func (t timing) check(v *view, now time.Time) (delayed bool, err error) {
	if delayed = t.notBefore.After(now); !delayed {
		t.notBefore = now
	}
	if !delayed && t.expires.IsZero() {
		return false, nil
	}
	if v == nil || v.publish < adapter.Durable {
		return false, fmt.Errorf("an event with NotBefore or Expires is kept by the broker: %w: give the topic one in Options.Routes or TIDINGS_ROUTES, and attach a transport", ErrNotDurable)
	}
	if !t.expires.IsZero() && !t.expires.After(t.notBefore) {
		return false, fmt.Errorf("the event expires at %v, no later than it is to be delivered (%v): nobody would get it", t.expires, t.notBefore)
	}
	return delayed, nil
}

// sendLater gives an event to the transport alone. Subscribers of this process
// get it from there when it is due, as all others do.
func (e *entry) sendLater(ctx context.Context, ev Event) error {
	b := e.bus
	if err := b.admit(); err != nil {
		return err
	}
	if b.opts.Redact != nil {
		if err := b.redact(&ev); err != nil {
			return err
		}
	}
	m, err := ev.wire(ctx, b)
	if err != nil {
		return err
	}
	a := b.transport()
	if !a.Caps().Delay {
		return errors.New("this transport cannot hold an event back until it is due (nats-server can, from 2.12 on): publish it when it is")
	}
	m.NotBefore = ev.NotBefore()
	return a.Publish(ctx, m, adapter.Durable)
}

// CancelEvent takes back an event that was published with EventFields.NotBefore
// and is not due yet, and reports whether there was one. An event that is due at
// this moment may be delivered although it was taken back.
func (b *Bus) CancelEvent(ctx context.Context, topic, id string) (bool, error) {
	fail := func(err error) (bool, error) { return false, &Error{Op: "cancel", Topic: topic, Err: err} }
	if _, err := b.entry(topic); err != nil {
		return fail(err)
	}
	if err := b.admit(); err != nil {
		return fail(err)
	}
	c, ok := b.transport().(adapter.Canceler)
	if !ok {
		return false, nil // nothing can have been delayed
	}
	found, err := c.Cancel(ctx, topic, id)
	if err != nil {
		return fail(err)
	}
	return found, nil
}

// overdue reports whether the event came too late; then it is settled, counted
// and logged.
func (s *Subscription) overdue(e Event) bool {
	end := e.Expires()
	if end.IsZero() || time.Now().Before(end) {
		return false
	}
	if e.r.settle != nil {
		e.r.settle.Term("expired at " + end.UTC().Format(time.RFC3339Nano))
	}
	s.expired(e, end)
	return true
}

// missed is overdue for an event that has come to a worker.
func (s *Subscription) missed(e Event) bool {
	if !s.overdue(e) {
		return false
	}
	s.counts.unhandled.Add(1)
	if e.r.settle != nil {
		s.bus.tries.forget(s.tryKey(e))
	}
	return true
}

// overdue is that of all subscriptions of the feed: an event is settled once.
func (f *feed) overdue(subs []*Subscription, e Event) bool {
	if !subs[0].overdue(e) {
		return false
	}
	subs[0].tookAside(&e)
	for _, s := range subs[1:] {
		s.tookAside(&e)
		s.expired(e, e.Expires())
	}
	return true
}

// expiredSay is how often expired events are logged, for each subscription.
const expiredSay = time.Second

func (s *Subscription) expired(e Event, end time.Time) {
	n := s.counts.expired.Add(1)
	last, now := s.counts.expiredSaid.Load(), monotonic()
	if (last != 0 && now-last < int64(expiredSay)) || !s.counts.expiredSaid.CompareAndSwap(last, now) {
		return
	}
	s.bus.inside(func() {
		s.bus.opts.Logger.Warn("tidings: an event expired before it was handled, and is not", "topic", e.Topic(), "id", e.ID(),
			"expired_at", end, "pattern", s.pattern, "group", s.opts.Group, "expired_so_far", n)
	})
}
