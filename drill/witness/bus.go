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

// Handle records a handler's begin and end around fn, and returns what fn returns.
// pattern and group are those of the subscription.
func (w *Witness) Handle(e tidings.Event, pattern, group, id string, fn func() error) error {
	w.Begin(e.Topic(), id, pattern, group, e.Attempt())
	err := fn()
	w.End(e.Topic(), id, pattern, group, err)
	return err
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
