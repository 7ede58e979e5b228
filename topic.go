package tidings

import (
	"context"
	"fmt"

	"github.com/tidings-go/tidings/internal/topic"
)

// Topic is a topic whose payloads are all T, checked by the compiler. It is
// resolved once: publishing looks nothing up, and costs one atomic load when
// nobody listens. Copies are the same topic; the zero Topic is of no use.
type Topic[T any] struct{ e *entry }

// NewTopic makes a typed topic on the [Default] bus. It panics on a bad name, and
// on a name that is taken with another type: both are mistakes in the program. It
// is meant for package-level variables.
func NewTopic[T any](name string) Topic[T] { return newTopic[T](Default(), name) }

// On is the same topic on another bus. It panics if that bus has the name with
// another type.
func (t Topic[T]) On(b *Bus) Topic[T] { return newTopic[T](b, t.Name()) }

// Name is what it was made with.
func (t Topic[T]) Name() string { return t.e.topic }

func newTopic[T any](b *Bus, name string) Topic[T] {
	err := topic.Check(name)
	if err == nil && isOwn(name) {
		err = fmt.Errorf("%w %q: topics that begin with tidings. are the bus's own", ErrTopic, name)
	}
	if err != nil {
		panic(&Error{Op: "new topic", Topic: name, Err: err})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.makeEntry(name)
	e.pinned = true
	if e.typ == nil {
		e.typ = (*T)(nil)
	}
	if _, same := e.typ.(*T); !same {
		panic(&Error{Op: "new topic", Topic: name, Err: fmt.Errorf("it is taken with the type %T, not %T", e.typ, (*T)(nil))})
	}
	return Topic[T]{e}
}

// Publish is [Bus.Publish] with the payload's type checked. It inlines to one
// atomic load when nobody listens.
func (t Topic[T]) Publish(ctx context.Context, v T) error {
	if t.e.view.Load() == nil {
		return nil
	}
	return t.e.publish(ctx, v)
}

// Instrument is [Bus.Instrument] with the payload's type checked.
func (t Topic[T]) Instrument(ctx context.Context, v T, fn func(context.Context) error) error {
	if t.e.view.Load() == nil && fn != nil {
		return fn(ctx)
	}
	return t.e.instrument(ctx, v, fn)
}

// Subscribe is [Bus.Subscribe] to this topic. A remote payload that does not
// decode into T is a handler error that no retry can mend.
func (t Topic[T]) Subscribe(ctx context.Context, h func(context.Context, Event, T) error, o *SubscribeOptions) (*Subscription, error) {
	if h == nil {
		return t.e.bus.Subscribe(ctx, t.e.topic, nil, o) // says what is wrong
	}
	return t.e.bus.Subscribe(ctx, t.e.topic, func(ctx context.Context, e Event) error {
		if v, ok := e.payload.(T); ok && (e.r == nil || e.r.msg == nil) {
			return h(ctx, e, v)
		}
		return decoded(ctx, e, h)
	}, o)
}

// decoded is apart from the way of local events, which would allocate for what
// the decoder is given a pointer to.
func decoded[T any](ctx context.Context, e Event, h func(context.Context, Event, T) error) error {
	var v T
	if err := e.Decode(&v); err != nil {
		return Permanent(fmt.Errorf("cannot decode %s from %s into %T: %w", e.Topic(), e.Source(), v, err))
	}
	return h(ctx, e, v)
}
