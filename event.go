package tidings

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// Handler handles one event. An error is reported, retried as [Retry] says, and
// never reaches the publisher; a panic counts as an error. The handler may call
// every method of the bus.
type Handler func(ctx context.Context, e Event) error

// Event is one published or instrumented thing: a small value, the same for all
// who get it. Its methods may be called concurrently.
type Event struct {
	r       *record
	attempt int
}

// record is what all subscribers of one event in this process share.
type record struct {
	bus      *Bus
	topic    string
	payload  any              // of a local event; nil when msg is set
	msg      *adapter.Message // of a remote event, or one that was encoded
	time     time.Time
	duration time.Duration
	err      error
	id       atomic.Pointer[string]
}

// ID is unique over all processes; duplicates are known by it.
func (e Event) ID() string {
	if e.r == nil {
		return ""
	}
	return e.r.eventID()
}

func (r *record) eventID() string {
	if r.msg != nil {
		return r.msg.ID
	}
	if id := r.id.Load(); id != nil {
		return *id
	}
	id := r.bus.newID()
	if r.id.CompareAndSwap(nil, &id) {
		return id
	}
	return *r.id.Load()
}

// newID is the bus's own random part and a counter: unique without a system
// call for each. It does not use Options.Instance, which may be the same again
// after a restart.
func (b *Bus) newID() string {
	return b.idPrefix + strconv.FormatUint(b.idCounter.Add(1), 36)
}

// Topic is what it was published as.
func (e Event) Topic() string {
	if e.r == nil {
		return ""
	}
	return e.r.topic
}

// Source is //app/instance of the publisher, a URI reference as CloudEvents asks
// for.
func (e Event) Source() string {
	switch {
	case e.r == nil:
		return ""
	case e.r.msg != nil:
		return e.r.msg.Source
	default:
		return e.r.bus.source
	}
}

// Time is when the event was published, or when the instrumented block began.
func (e Event) Time() time.Time {
	if e.r == nil {
		return time.Time{}
	}
	return e.r.time
}

// Duration is how long the instrumented block ran; 0 for a published event.
func (e Event) Duration() time.Duration {
	if e.r == nil {
		return 0
	}
	return e.r.duration
}

// Err is what the instrumented block returned, or a *[PanicError]; of a remote
// event only its text.
func (e Event) Err() error {
	if e.r == nil {
		return nil
	}
	return e.r.err
}

// Payload is the very value that was published, shared by all subscribers of the
// publisher's process and not to be changed; of a remote event, the decoded
// generic form (nil if it cannot be decoded). [Event.Decode] gives the same in
// both cases.
func (e Event) Payload() any {
	switch {
	case e.r == nil:
		return nil
	case e.r.msg == nil:
		return e.r.payload
	}
	var v any
	if err := e.Decode(&v); err != nil {
		return nil
	}
	return v
}

// Header is a header of the event that came with it from another process, by its
// lower-case name; empty if there is none.
func (e Event) Header(name string) string {
	if e.r == nil || e.r.msg == nil {
		return ""
	}
	return e.r.msg.Header[name]
}

// Attempt is 1 when the handler sees the event for the first time, 2 at the first
// retry, and so on. For durable events it counts the broker's deliveries too.
func (e Event) Attempt() int { return max(e.attempt, 1) }

// Decode fills what v points to: by assignment when the payload is local and of
// that type, else through the codec. The same code works for both.
func (e Event) Decode(v any) error {
	if e.r == nil {
		return errors.New("tidings: the zero Event has no payload")
	}
	if e.r.msg != nil {
		return e.r.bus.opts.Codec.Decode(e.r.msg.Data, e.r.msg.ContentType, v)
	}
	dst := reflect.ValueOf(v)
	if dst.Kind() != reflect.Pointer || dst.IsNil() {
		return fmt.Errorf("tidings: Decode needs a non-nil pointer, not %T", v)
	}
	dst = dst.Elem()
	src := reflect.ValueOf(e.r.payload)
	if !src.IsValid() {
		dst.SetZero()
		return nil
	}
	if src.Type().AssignableTo(dst.Type()) {
		dst.Set(src)
		return nil
	}
	if src.Kind() == reflect.Pointer && !src.IsNil() && src.Type().Elem().AssignableTo(dst.Type()) {
		dst.Set(src.Elem())
		return nil
	}
	data, contentType, err := e.r.bus.opts.Codec.Encode(e.r.payload)
	if err != nil {
		return err
	}
	return e.r.bus.opts.Codec.Decode(data, contentType, v)
}

// Keep returns an event that may be held after the handler has returned.
func (e Event) Keep() Event { return e }

// String is for logs: topic and id, never the payload.
func (e Event) String() string { return e.Topic() + " " + e.ID() }

// message is the event as it goes over the wire.
func (r *record) message() (*adapter.Message, error) {
	data, contentType, err := r.bus.opts.Codec.Encode(r.payload)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the payload %T: %w", r.payload, err)
	}
	m := &adapter.Message{ID: r.eventID(), Topic: r.topic, Source: r.bus.source, Time: r.time,
		ContentType: contentType, Data: data, Duration: r.duration}
	if r.err != nil {
		m.Err = r.err.Error()
	}
	return m, nil
}

// received is an event from another process, or from the store.
func (b *Bus) received(m *adapter.Message) *record {
	r := &record{bus: b, topic: m.Topic, msg: m, time: m.Time, duration: m.Duration}
	if m.Err != "" {
		r.err = errors.New(m.Err)
	}
	return r
}
