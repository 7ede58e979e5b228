package tidings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// LeftError is in the error of a Drain, for errors.As, when durable events were
// left unsettled: it names each of them. That of Bus.Drain has those of all its
// subscriptions. What a deadline cut of local and live events is counted in the
// text, in the log and by the Debugger.
type LeftError struct {
	// HandedBack went back to the store, which delivers them again: their handlers
	// had not returned, or not begun. A handler that goes on after its context was
	// cancelled is not believed any more.
	HandedBack []Event
	// Unconfirmed were handled, but the store did not confirm that in time: it may
	// deliver them again.
	Unconfirmed []Event
	// Err says why.
	Err error

	sum bool // of what Err says already
}

// namesInText bounds the ids in the text of an error; all are in its fields.
const namesInText = 10

// Error gives the reason and the ids of the first few.
func (e *LeftError) Error() string {
	s := e.Err.Error()
	if e.sum {
		return s
	}
	for _, l := range []struct {
		what   string
		events []Event
	}{{"handed back", e.HandedBack}, {"handled, but not confirmed", e.Unconfirmed}} {
		if len(l.events) == 0 {
			continue
		}
		var ids []string
		for _, ev := range l.events[:min(len(l.events), namesInText)] {
			ids = append(ids, ev.ID())
		}
		s += fmt.Sprintf("; %s: %d (%s", l.what, len(l.events), strings.Join(ids, ", "))
		if more := len(l.events) - len(ids); more > 0 {
			s += fmt.Sprintf(" and %d more", more)
		}
		s += ")"
	}
	return s
}

// Unwrap returns the reason.
func (e *LeftError) Unwrap() error { return e.Err }

// handBack gives one event back to the store, and keeps it for the receipt of a
// drain: first, so that a drain that ends meanwhile has it from here, or from the
// transport that was quicker.
func (s *Subscription) handBack(e Event, delay time.Duration) {
	if s.ending.Load() || s.bus.state.Load() != stateOpen {
		s.leftMu.Lock()
		s.handedBack = append(s.handedBack, e)
		s.leftMu.Unlock()
	} else {
		s.counts.returned.Add(1)
	}
	e.r.settle.Nak(delay)
}

// wasCut reports whether a handler failed because its subscription ended: then it
// has not failed, and its event goes back as it came.
func (s *Subscription) wasCut(it item, err error) bool {
	var permanent *permanentError
	return err != nil && it.event.r.settle != nil && s.handlers.Err() != nil && !errors.As(err, &permanent)
}

// handBackAll does so in order.
func (s *Subscription) handBackAll(items []item, delay time.Duration) {
	for _, it := range items {
		s.handBack(it.event, delay)
	}
}

// receipt makes the errors of a drain one that names what was left: what this side
// has handed back, and what the transport had to.
func (s *Subscription) receipt(ctx context.Context, errs []error) error {
	var at *adapter.LeftError
	for i, err := range errs {
		if errors.As(err, &at) {
			errs[i] = at.Err // the rest of it is told below
			break
		}
	}
	err := joinOnce(ctx, errs)
	s.leftMu.Lock()
	left := &LeftError{HandedBack: slices.Clone(s.handedBack), Err: err}
	s.leftMu.Unlock()
	if at != nil {
		s.counts.aside.Add(uint64(at.Undelivered))
		known := map[string]bool{}
		for _, e := range left.HandedBack {
			known[e.ID()] = true
		}
		for i := range at.HandedBack {
			if !known[at.HandedBack[i].ID] {
				left.HandedBack = append(left.HandedBack, s.bus.received(new(record), &at.HandedBack[i], 1))
			}
		}
		for i := range at.Unconfirmed {
			left.Unconfirmed = append(left.Unconfirmed, s.bus.received(new(record), &at.Unconfirmed[i], 1))
		}
	}
	if len(left.HandedBack)+len(left.Unconfirmed) == 0 {
		return err
	}
	switch {
	case left.Err != nil:
	case ctx.Err() != nil:
		left.Err = fmt.Errorf("%w: %s", context.Cause(ctx), s)
	case len(left.Unconfirmed) > 0:
		left.Err = fmt.Errorf("%s: the transport ended before all acknowledgements were confirmed", s)
	default:
		left.Err = fmt.Errorf("%s: events wait for retries that are further away than a drain waits for (%v)", s, drainRetry)
	}
	return left
}

// joinOnce joins the errors of a drain. A step that failed is heard of by all that
// wait for it, and a deadline by every step: each is told once, and that ctx is
// over by those who say what that has cut, if there are any.
func joinOnce(ctx context.Context, errs []error) error {
	over := context.Cause(ctx)
	isOver := func(err error) bool { return over != nil && errors.Is(err, over) }
	told := map[string]bool{}
	if slices.ContainsFunc(errs, func(err error) bool { return isOver(err) && err.Error() != over.Error() }) {
		told[over.Error()] = true
	}
	var once []error
	for _, err := range errs {
		if err != nil && !told[err.Error()] {
			told[err.Error()] = true
			once = append(once, err)
		}
	}
	return errors.Join(once...)
}

// leftOfAll makes the joined errors of several drains one receipt.
func leftOfAll(err error) error {
	sum := &LeftError{Err: err, sum: true}
	sum.add(err)
	if len(sum.HandedBack)+len(sum.Unconfirmed) == 0 {
		return err
	}
	return sum
}

func (e *LeftError) add(err error) {
	switch x := err.(type) {
	case *LeftError:
		e.HandedBack = append(e.HandedBack, x.HandedBack...)
		e.Unconfirmed = append(e.Unconfirmed, x.Unconfirmed...)
	case interface{ Unwrap() []error }:
		for _, err := range x.Unwrap() {
			e.add(err)
		}
	case interface{ Unwrap() error }:
		e.add(x.Unwrap())
	}
}
