package tidings

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// Handler handles one event. An error is reported, retried as [Retry] says, and
// never reaches the publisher; a panic counts as an error. The handler may call
// every method of the bus.
type Handler func(ctx context.Context, e Event) error

// Event is one published or instrumented thing: a small value, the same for all
// who get it. Its methods may be called concurrently, and at any time later.
type Event struct {
	// In as many words as a call passes in registers, next to a context and a typed
	// payload: handing one to a handler allocates nothing and leaves nothing to
	// recycle.
	r       *record // nil: the zero Event. Most events share the one of their topic
	payload any
	start   int64 // when, on the monotonic clock; 0: nobody asked for it
	dur     time.Duration
	num     uint64 // number of the event in its topic, then attemptBits
}

const (
	attemptBits = 16 // of which the first is instrumented, and the rest counts attempts
	// A bit of its own, since neither start nor dur tells: published events may have
	// a start, blocks may take 0 ns, and a Start sees its block before it has either.
	instrumented = 1 << (attemptBits - 1)
	attemptMask  = instrumented - 1
)

// record is what an event has besides: its topic, and what few events have.
type record struct {
	bus    *Bus             // nil: a ready-made event
	entry  *entry           // of events that were published here
	number uint64           // the middle part of their ids
	topic  string           // of events without an entry
	msg    *adapter.Message // of a remote event, or one that was encoded
	id     string           // of a ready-made event, as are the next two
	source string
	time   time.Time
	err    error
	tags   map[string]any
	times  *timing // nil: of most
	req    *request

	// Of a durable event.
	settle   adapter.Settler
	seq      uint64 // its place in the stream
	failures int    // of the handler, before this delivery
	begun    bool   // its handler was called here; the worker's own
}

// EventFields are what [NewEvent] makes an event of; all but Topic may be left
// out.
type EventFields struct {
	ID       string // default: random
	Topic    string
	Source   string // default: none
	Time     time.Time
	Duration time.Duration
	Err      error
	Payload  any
	Tags     map[string]any
	// Instrumented makes it the event of a block, which one with a Duration or an Err
	// is anyway.
	Instrumented bool
	// NotBefore delays the event: it reaches everybody, the subscribers of this
	// process too, at that time and not before. Expires is when it becomes of no use:
	// what a durable group has not handled by then it does not get any more. Both
	// are for [Bus.PublishEvent] to topics with a durable route, where the broker
	// keeps the event. See [Bus.CancelEvent] to take a delayed one back.
	NotBefore, Expires time.Time
}

// NewEvent makes an event that was not published here: to import history with
// [Bus.PublishEvent], or to call a handler in a test. It checks nothing.
func NewEvent(f EventFields) Event {
	if f.ID == "" {
		f.ID = nonce()
	}
	r := &record{id: f.ID, topic: f.Topic, source: f.Source, time: f.Time, err: f.Err, tags: f.Tags}
	if t := (timing{f.NotBefore.Round(0), f.Expires.Round(0)}); t != (timing{}) {
		r.times = &t
	}
	e := Event{payload: f.Payload, dur: f.Duration, r: r}
	if f.Instrumented || f.Duration != 0 || f.Err != nil {
		e.num |= instrumented
	}
	return e
}

// epoch is what monotonic times count from.
var epoch = time.Now()

// monotonic is the cheapest clock the standard library has: half of time.Now.
func monotonic() int64 { return int64(time.Since(epoch)) }

// ID is unique over all processes; duplicates are known by it. It is made when
// it is asked for.
func (e Event) ID() string {
	switch r := e.r; {
	case r == nil:
		return ""
	case r.msg != nil:
		return r.msg.ID
	case r.entry != nil:
		// The bus's own random part, then counters: unique without a system call for
		// each. Options.Instance has no part in it: it may be the same after a restart.
		b := append(make([]byte, 0, 64), r.bus.idPrefix...)
		b = append(strconv.AppendUint(b, r.number, 36), '-')
		return string(strconv.AppendUint(b, e.num>>attemptBits, 36))
	default:
		return r.id
	}
}

// Topic is what it was published as.
func (e Event) Topic() string {
	switch r := e.r; {
	case r == nil:
		return ""
	case r.entry != nil:
		return r.entry.topic
	default:
		return r.topic
	}
}

// Source is //app/instance of the publisher, a URI reference as CloudEvents asks
// for.
func (e Event) Source() string {
	switch r := e.r; {
	case r == nil:
		return ""
	case r.msg != nil:
		return r.msg.Source
	case r.entry != nil:
		return r.bus.source
	default:
		return r.source
	}
}

// Time is when the event was published, or when the instrumented block began. It
// has a monotonic reading if the event comes from this process: differences
// between two such times are exact whatever the wall clock did.
//
// Reading a clock for each event costs more than delivering it, so the bus stops
// doing so for a topic of which no handler has asked the time in 64 events. The
// first to ask after that is told the time of asking; from then on it is exact
// again, for good. Instrumented events are always exact.
func (e Event) Time() time.Time {
	at, known := e.when()
	if !known {
		return time.Now()
	}
	return at
}

// when is Time, if it is known; the next events will have theirs.
func (e Event) when() (at time.Time, known bool) {
	r := e.r
	if r == nil {
		return time.Time{}, true
	}
	if r.entry != nil && r.entry.stamp.Load() != stampAlways {
		r.entry.stamp.Store(stampAlways)
	}
	switch {
	case r.msg != nil:
		return r.msg.Time, true
	case e.start != 0:
		// From today's wall clock, not from the one at the start of the process: they
		// drift apart when the machine sleeps.
		now := time.Now()
		return now.Add(time.Duration(e.start) - now.Sub(epoch)), true
	}
	return r.time, r.entry == nil
}

// Duration is how long the instrumented block ran, by the monotonic clock; 0 for
// a published event.
func (e Event) Duration() time.Duration {
	if e.r != nil && e.r.msg != nil {
		return e.r.msg.Duration
	}
	return e.dur
}

// Instrumented tells the event of a block, by Instrument or Begin, from one that
// was published; also in another process, and in SubscribeOptions.Start.
func (e Event) Instrumented() bool { return e.num&instrumented != 0 }

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
	if e.r == nil || e.r.msg == nil {
		return e.payload
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
// retry, and so on. Of a durable event it is the broker's count of deliveries, also
// of those to processes that died; [Retry] counts failures of the handler.
func (e Event) Attempt() int { return max(int(e.num&attemptMask), 1) }

func (e Event) withAttempt(n int) Event {
	e.num = e.num&^attemptMask | uint64(min(n, attemptMask))
	return e
}

// Decode fills what v points to: by assignment when the payload is local and of
// that type, else through the codec. The same code works for both.
func (e Event) Decode(v any) error {
	if e.r == nil {
		return errors.New("tidings: the zero Event has no payload")
	}
	if e.r.msg != nil {
		return e.codec().Decode(e.r.msg.Data, e.r.msg.ContentType, v)
	}
	dst := reflect.ValueOf(v)
	if dst.Kind() != reflect.Pointer || dst.IsNil() {
		return fmt.Errorf("tidings: Decode needs a non-nil pointer, not %T", v)
	}
	dst = dst.Elem()
	src := reflect.ValueOf(e.payload)
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
	data, contentType, err := e.codec().Encode(e.payload)
	if err != nil {
		return err
	}
	return e.codec().Decode(data, contentType, v)
}

// Keep returns an event that may be held after the handler has returned. Any
// event may; handlers that call it stay right if that changes.
func (e Event) Keep() Event { return e }

// String is for logs: topic and id, never the payload.
func (e Event) String() string { return e.Topic() + " " + e.ID() }

func (e Event) codec() Codec {
	if e.r.bus == nil {
		return JSON
	}
	return e.r.bus.opts.Codec
}

// message is the event as it goes over the wire.
func (e Event) message(ctx context.Context, c Codec) (*adapter.Message, error) {
	data, contentType, err := c.Encode(e.payload)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the payload %T: %w", e.payload, err)
	}
	header, err := e.header(ctx)
	if err != nil {
		return nil, err
	}
	m := messages.Get().(*adapter.Message)
	*m = adapter.Message{ID: e.ID(), Topic: e.Topic(), Source: e.Source(), Time: e.Time(),
		ContentType: contentType, Data: data, Instrumented: e.Instrumented(), Duration: e.dur, Header: header, Expires: e.Expires(), Numbered: e.r.entry != nil}
	if err := e.Err(); err != nil {
		m.Err = err.Error()
	}
	return m, nil
}

// received is an event from another process, or from the store. Its record is r,
// which is empty.
func (b *Bus) received(r *record, m *adapter.Message, attempt int) Event {
	r.bus, r.topic, r.msg = b, m.Topic, m
	if m.Err != "" {
		r.err = errors.New(m.Err)
	}
	e := Event{r: r}.withAttempt(attempt)
	if m.Instrumented {
		e.num |= instrumented
	}
	return e
}
