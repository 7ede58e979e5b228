package tidings

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// topicDead is published once for each durable event that a handler of this
// process has given up.
const topicDead = "tidings.dead"

// DeadLettered is the payload of "tidings.dead", an event that the bus makes about
// itself: a durable event was given up and is a dead letter now or, with Err, is
// none yet and will be delivered again for that. Package deadletter looks at dead
// letters, redrives and drops them; so does "tidings dlq".
type DeadLettered struct {
	Event          Event
	Pattern, Group string
	Letter         string // its id
	Reason         string // the text of the last error
	Attempts       int    // failures of the handler in this process
	Err            error
}

// handOver notes how often a durable event has failed here, and gives up what must
// not reach the handler. It reports whether that was so. It is called by the
// transport.
func (f *feed) handOver(e *Event, d *adapter.Delivery, subs []*Subscription) (over bool) {
	if d.Settle == nil || len(subs) == 0 {
		return false
	}
	s := subs[0] // the only one: a second of one group and pattern is refused
	t := f.bus.tries.find(s.tryKey(*e))
	e.r.failures = t.failures
	var why error
	switch {
	case t.letter != nil:
		s.tookAside(e)
		f.bus.inside(func() { s.bury(*e, t.letter) })
		return true
	case d.Broken != "":
		why = fmt.Errorf("an event from %q cannot be decoded: %s", d.Source, d.Broken)
	default:
		return false
	}
	f.bus.inside(func() {
		if over = s.wants(e.Topic()); over {
			s.tookAside(e)
			s.giveUp(*e, why, t)
		}
	})
	return over
}

// suspicious is how many deliveries that no failure known here explains make an
// event suspicious: it may be what its processes die of.
const suspicious = 5

// turnPatience is how long a suspicious event waits for another one's handler. One
// that hangs must not hold up the rest for ever.
const turnPatience = time.Minute

// begin is asked before a handler gets a durable event; false: it must not. Of a
// suspicious one the store is told first, so that it is known when nothing comes of
// it. Of those only one at a time is handled in the process: that none else is
// blamed for what kills it.
func (s *Subscription) begin(w *worker, it item) bool {
	e := it.event
	if e.r.settle == nil || e.Attempt()-1-e.r.failures < suspicious {
		return true
	}
	w.paused.Store(true) // nothing hangs
	if !w.takeTurn() {
		w.paused.Store(false)
		s.counts.unhandled.Add(1)
		s.handBack(e, 0)
		e.r.settle = nil // settled, whatever becomes of the rest of its batch
		return false
	}
	type answer struct {
		deaths int
		err    error
	}
	ch := make(chan answer, 1)
	e.r.settle.Begin(func(n int, err error) { ch <- answer{n, err} })
	a := <-ch
	w.paused.Store(false)
	if a.err == nil && a.deaths < s.opts.Retry.Deaths {
		return true
	}
	settle := e.r.settle
	defer func() { e.r.settle = nil }() // settled, whatever becomes of the rest of its batch
	s.counts.unhandled.Add(1)
	if a.err != nil {
		s.bus.report(it.ctx, &Error{Op: "handle", Topic: e.Topic(), Accepted: true, Err: a.err})
		s.counts.returned.Add(1)
		settle.Nak(s.opts.Retry.delay(suspicious))
		return false
	}
	s.giveUp(e, fmt.Errorf("its handler began %d times and came to no outcome: each process died, or was cut off (Retry.Deaths is %d)", a.deaths, s.opts.Retry.Deaths), s.bus.tries.find(s.tryKey(e)))
	return false
}

// takeTurn waits for the turn of suspicious events, which is kept until endTurn;
// false when the subscription has ended.
func (w *worker) takeTurn() bool {
	if w.turn {
		return true // for another event of its batch
	}
	late := time.NewTimer(turnPatience)
	defer late.Stop()
	select {
	case w.sub.bus.suspects <- struct{}{}:
		w.turn = true
	case <-late.C:
	case <-w.sub.handlers.Done():
		return false
	}
	return true
}

func (w *worker) endTurn() {
	if w.turn {
		w.turn = false
		<-w.sub.bus.suspects
	}
}

// attempt is which call of the handler this is. Of a durable event the broker
// counts deliveries, and we failures.
func (s *Subscription) attempt(e Event) int {
	if e.r != nil && e.r.settle != nil {
		return e.r.failures + 1
	}
	return e.Attempt()
}

// settleDurable tells the store what became of the event.
func (s *Subscription) settleDurable(it item, err error) {
	e := it.event
	if err == nil {
		s.bus.tries.forget(s.tryKey(e))
		e.r.settle.Ack(s.settled(it))
		return
	}
	t := s.bus.tries.failed(s.tryKey(e))
	if s.again(err, t.failures) {
		s.counts.returned.Add(1)
		e.r.settle.Nak(s.retryDelay(err, t.failures))
		return
	}
	s.giveUp(e, err, t)
}

// giveUp makes a dead letter of a durable event.
func (s *Subscription) giveUp(e Event, why error, t try) {
	if t.first.IsZero() {
		t.first = time.Now() // no handler has failed
		t.last = t.first
	}
	l := &adapter.DeadLetter{Group: s.opts.Group, Pattern: s.pattern, Reason: why.Error(),
		Attempts: t.failures, First: t.first, Last: t.last, Instance: s.bus.source}
	if p, ok := errors.AsType[*PanicError](why); ok {
		l.Stack = string(p.Stack)
	}
	// Until it is stored the event comes again, and its handler must not see it.
	s.bus.tries.giveUp(s.tryKey(e), l)
	s.bury(e, l)
}

// bury hands the letter to the store. A copy: the store writes to it.
func (s *Subscription) bury(e Event, l *adapter.DeadLetter) {
	l2 := *l
	e.r.settle.Dead(&l2, func(err error) {
		if err == nil {
			s.counts.dead.Add(1)
			s.bus.tries.forget(s.tryKey(e))
		} else {
			s.counts.undead.Add(1)
			s.counts.returned.Add(1)
		}
		s.bus.background(func() { s.tellDead(e, &l2, err) }) // the transport must not wait for user code
	})
}

func (s *Subscription) tellDead(e Event, l *adapter.DeadLetter, err error) {
	args := []any{"topic", e.Topic(), "id", e.ID(), "source", e.Source(), "group", s.opts.Group, "pattern", s.pattern,
		"attempts", l.Attempts, "deliveries", e.Attempt(), "reason", l.Reason}
	say := fmt.Errorf("%s: event %s from %s was given up after %d attempts and is dead letter %s: %s", s, e.ID(), e.Source(), l.Attempts, l.ID, l.Reason)
	if err != nil {
		say = fmt.Errorf("%s: event %s from %s was given up, but cannot become a dead letter; it stays in its stream and is tried again later: %w", s, e.ID(), e.Source(), err)
	}
	s.bus.tell(context.Background(), &Error{Op: "give up", Topic: e.Topic(), Accepted: true, Err: say}, func() {
		if err != nil {
			s.bus.opts.Logger.Error("tidings: an event was given up, and its dead letter cannot be stored: it stays in its stream and is tried again later", append(args, "err", err)...)
			return
		}
		s.bus.opts.Logger.Error("tidings: an event was given up: it is a dead letter now; \"tidings dlq\" shows and redrives it", append(args, "letter", l.ID)...)
	})
	s.bus.announce(topicDead, DeadLettered{Event: e, Pattern: s.pattern, Group: s.opts.Group, Letter: l.ID, Reason: l.Reason, Attempts: l.Attempts, Err: err})
}
