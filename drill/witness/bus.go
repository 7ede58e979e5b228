package witness

import (
	"context"
	"errors"

	"github.com/tidings-go/tidings"
)

// Published records the answer of Publish.
func (w *Witness) Published(topic, id string, err error) {
	var e *tidings.Error
	switch {
	case w == nil:
	case err == nil:
		w.Accept(topic, id)
	case errors.Is(err, tidings.ErrInDoubt), errors.As(err, &e) && e.Accepted:
		w.Doubt(topic, id, err)
	default:
		w.Refuse(topic, id, err)
	}
}

// errPanicked is what the journal has of a handler that has not returned.
var errPanicked = errors.New("panicked")

// Handle records a handler's begin and end around fn, and returns what fn returns;
// a panic goes on. pattern and group are those of the subscription.
func (w *Witness) Handle(e tidings.Event, pattern, group, id string, fn func() error) error {
	w.Begin(e.Topic(), id, pattern, group, e.Attempt())
	err := errPanicked
	defer func() { w.End(e.Topic(), id, pattern, group, err) }()
	err = fn()
	return err
}

// Receipt records what a drain has left behind, as its error says.
func (w *Witness) Receipt(err error, id func(tidings.Event) string) {
	var left *tidings.LeftError
	if w == nil || !errors.As(err, &left) {
		return
	}
	for what, events := range map[string][]tidings.Event{LeftBack: left.HandedBack, LeftUnsure: left.Unconfirmed} {
		for _, e := range events {
			w.Left(e.Topic(), id(e), what)
		}
	}
}

// Settlements records every acknowledgement that the broker confirms to this
// process, until the bus is drained. id reads the drill's id out of an event.
func (w *Witness) Settlements(ctx context.Context, bus *tidings.Bus, id func(tidings.Event) string) error {
	if w == nil {
		return nil
	}
	_, err := bus.Subscribe(ctx, "tidings.settled", func(_ context.Context, e tidings.Event) error {
		s, ok := e.Payload().(tidings.Settled)
		if ok {
			w.Ack(s.Event.Topic(), id(s.Event), s.Pattern, s.Group, s.Err)
		}
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	return err
}
