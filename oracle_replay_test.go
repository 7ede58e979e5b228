package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// op is one operation of a scenario; testdata/oracle/README.md is the language.
type op map[string]any

func (o op) str(key string) string { s, _ := o[key].(string); return s }

func (o op) yes(key string) bool { b, _ := o[key].(bool); return b }

func (o op) hash(key string) map[string]any {
	m, _ := o[key].(map[string]any)
	return maps.Clone(m)
}

func (o op) ops(key string) (ops []op) {
	list, _ := o[key].([]any)
	for _, v := range list {
		m, _ := v.(map[string]any)
		ops = append(ops, op(m))
	}
	return ops
}

// rubyError is an error of a scenario.
type rubyError struct{ class, message string }

func (e *rubyError) Error() string { return e.class + ": " + e.message }

// raised is what a field "raises" asks for; nil if it is not there.
func raised(v any) error {
	switch v := v.(type) {
	case string:
		return &rubyError{v, "msg"}
	case map[string]any:
		return &rubyError{op(v).str("class"), op(v).message()}
	}
	return nil
}

func (o op) message() string {
	if m, ok := o["message"].(string); ok {
		return m
	}
	return "msg"
}

// errArgument stands for what the compiler, or a type, would not let through here.
var errArgument = &rubyError{"ArgumentError", ""}

// replay is the state of one scenario.
type replay struct {
	t           *testing.T
	bus         *tidings.Bus
	others      []*tidings.Bus // notifiers that were swapped out
	subs        map[string]*listener
	handles     map[string]*handle
	classes     map[string]*class
	attached    []*attachment
	logger      *slog.Logger
	level       *logLevel
	log         bool // there are log subscribers
	er          *eventReporter
	ready       map[string]bool // ids of ready-made events
	kinds       map[string]bool // of the listeners, as they are grouped there
	differences map[string]bool
	declined    string

	mu    sync.Mutex // scenarios have threads, one at a time
	trace []entry
}

func newReplay(t *testing.T) *replay {
	r := &replay{t: t, subs: map[string]*listener{}, handles: map[string]*handle{}, classes: map[string]*class{},
		ready: map[string]bool{}, kinds: map[string]bool{}, differences: map[string]bool{}, level: &logLevel{}}
	r.logger = slog.New(r.level)
	r.level.r = r
	r.bus = r.newBus()
	return r
}

// newBus is strict: what subscribers fail with is the publisher's, as there.
func (r *replay) newBus() *tidings.Bus { return newBus(r.t, tidings.Options{Strict: true}) }

func (r *replay) note(e entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trace = append(r.trace, e)
}

// top runs a scenario: what an operation raises is written, and the next one runs.
func (r *replay) top(ops []op) {
	ctx := withReports(context.Background())
	for _, o := range ops {
		if err := r.exec(ctx, o); err != nil {
			r.noteRaise(o, err)
		}
		if r.declined != "" {
			return
		}
	}
}

// run is a nested list: what an operation raises goes to what contains it.
func (r *replay) run(ctx context.Context, ops []op) error {
	for _, o := range ops {
		if err := r.exec(ctx, o); err != nil {
			if !o.yes("catch") {
				return err
			}
			r.noteRaise(o, err)
		}
	}
	return nil
}

func (r *replay) noteRaise(o op, err error) {
	e := describe(err)
	e["ev"], e["op"] = "raise", o.str("op")
	r.note(e)
}

// collected flattens what a strict bus returns.
func collected(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, collected(e)...)
		}
		return all
	}
	var own *tidings.Error
	if errors.As(err, &own) && err == error(own) {
		return collected(own.Err)
	}
	if p, ok := err.(*tidings.PanicError); ok && p.Unwrap() != nil {
		return collected(p.Unwrap())
	}
	return []error{err}
}

// describe is how the oracle writes an error.
func describe(err error) entry {
	all := collected(err)
	if len(all) == 1 {
		return describeOne(all[0])
	}
	var classes []string
	var exceptions []any
	for _, err := range all {
		e := describeOne(err)
		classes = append(classes, e["class"].(string))
		exceptions = append(exceptions, []any{e["class"], e["message"]})
	}
	return entry{"class": "ActiveSupport::Notifications::InstrumentationSubscriberError",
		"message":    "Exception(s) occurred within instrumentation subscribers: " + strings.Join(classes, ", "),
		"exceptions": exceptions, "cause": classes[0]}
}

func describeOne(err error) entry {
	var ruby *rubyError
	if errors.As(err, &ruby) {
		return entry{"class": ruby.class, "message": ruby.message}
	}
	return entry{"class": fmt.Sprintf("%T", err), "message": err.Error()}
}

// thrown is how a block is left by throw.
type thrown struct{}

func (r *replay) exec(ctx context.Context, o op) error {
	switch o.str("op") {
	case "subscribe":
		return r.subscribe(ctx, o)
	case "unsubscribe":
		r.unsubscribe(o)
	case "subscribed":
		return r.subscribed(ctx, o)
	case "instrument":
		return r.instrument(ctx, o, r.bus)
	case "null_instrument":
		r.note(entry{"ev": "block", "name": o.str("name")})
		r.note(entry{"ev": "return", "op": "null_instrument", "value": o["returns"]})
		return r.newBus().Instrument(ctx, o.str("name"), o.hash("payload"), nil)
	case "publish":
		args, _ := o["args"].([]any)
		if err := r.published(r.bus.Publish(ctx, o.str("name"), rawArgs(args))); err != nil {
			return err
		}
		r.note(entry{"ev": "return", "op": "publish", "name": o.str("name")})
	case "publish_event":
		return r.publishEvent(ctx, o)
	case "build_handle", "handle_start", "handle_finish":
		return r.handle(ctx, o)
	case "listening":
		r.note(entry{"ev": "listening", "name": o.str("name"), "value": r.bus.Listening(o.str("name"))})
	case "subscribed_to":
		r.note(entry{"ev": "subscribed_to", "sub": o.str("id"), "name": o.str("name"), "value": r.subs[o.str("id")].sub.Matches(o.str("name"))})
	case "silence", "unsilence":
		r.subs[o.str("id")].silence(o.str("name"), o.str("op") == "silence")
	case "catch":
		if err := r.run(ctx, o.ops("do")); err != nil {
			e := describe(err)
			e["ev"] = "caught"
			r.note(e)
		}
	case "raise":
		return &rubyError{o.str("class"), o.message()}
	case "note":
		r.note(entry{"ev": "note", "text": o.str("text")})
	case "in_thread", "in_fiber":
		return r.elsewhere(ctx, o)
	case "new_notifier":
		r.others, r.bus = append(r.others, r.bus), r.newBus()
	case "old_notifier":
		if n := len(r.others); n > 0 {
			r.bus, r.others = r.others[n-1], r.others[:n-1]
		}
	case "patterns", "instrumenter_id":
		// Neither has anything to compare with: see allowEntry.
	case "start", "finish":
		r.declined = "stack"
	case "event_record":
		r.declined = "record"
	case "class", "add_method", "attach", "detach", "logger":
		return r.subscriberOp(ctx, o)
	default:
		if strings.HasPrefix(o.str("op"), "er_") {
			return r.reportOp(ctx, o)
		}
		r.t.Errorf("unknown op %v", o)
	}
	return nil
}

// published takes out what is a mistake of the name here and was none there.
func (r *replay) published(err error) error {
	if errors.Is(err, tidings.ErrTopic) {
		r.differ("grammar")
		return nil
	}
	return err
}

// elsewhere is a thread or a fiber: a goroutine, which has what its context has.
func (r *replay) elsewhere(ctx context.Context, o op) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = r.run(inherit(ctx), o.ops("do"))
	}()
	<-done
	return err
}

func (r *replay) instrument(ctx context.Context, o op, bus *tidings.Bus) (err error) {
	name, payload := o.str("name"), o.hash("payload")
	if payload == nil {
		payload = map[string]any{}
	}
	var own error // the block's
	block := func(ctx context.Context) error {
		r.note(entry{"ev": "block", "name": name})
		maps.Copy(payload, o.hash("set"))
		if own = r.run(ctx, o.ops("do")); own != nil {
			return own
		}
		if o["throws"] != nil && o["throws"] != false {
			panic(thrown{})
		}
		own = raised(o["raises"])
		return own
	}
	if o.yes("no_block") {
		block = nil
	}
	func() {
		defer func() {
			if p := recover(); p != nil {
				if _, ok := p.(thrown); !ok {
					panic(p)
				}
				r.differ("throw")
			}
		}()
		err = bus.Instrument(ctx, name, payload, block)
	}()
	if err != nil {
		return r.withoutOwn(err, own)
	}
	e := entry{"ev": "return", "op": "instrument", "name": name, "value": o["returns"]}
	if o.yes("no_block") || o["throws"] != nil {
		e["value"] = nil
	}
	r.note(e)
	if o.yes("show_payload") {
		r.note(entry{"ev": "caller_payload", "payload": payload})
	}
	return nil
}

// withoutOwn is what is left of a strict bus's error without that of the block,
// which there is lost when a subscriber fails too.
func (r *replay) withoutOwn(err, own error) error {
	if own == nil || err == own {
		return err
	}
	var rest []error
	mine := collected(own)
	for _, e := range collected(err) {
		if !slices.Contains(mine, e) {
			rest = append(rest, e)
		}
	}
	r.differ("both-errors")
	return errors.Join(rest...)
}

// rawArgs is what publish was called with: one payload here.
type rawArgs []any

func (r *replay) publishEvent(ctx context.Context, o op) error {
	f := tidings.EventFields{ID: o.str("tx"), Topic: o.str("name"), Payload: o.hash("payload")}
	if !o.yes("nil_times") {
		f.Time, f.Duration = time.Unix(10, 0), 2500*time.Millisecond
	}
	r.ready[f.ID] = true
	e := tidings.NewEvent(f)
	if o.yes("show") {
		begin, end := secondsOf(e)
		r.note(entry{"ev": "event_new", "time": begin, "end": end, "duration": float64(e.Duration()) / float64(time.Millisecond)})
	}
	if err := r.published(r.bus.PublishEvent(ctx, e)); err != nil {
		return err
	}
	r.note(entry{"ev": "return", "op": "publish_event"})
	return nil
}

// secondsOf is the begin and end of a ready-made event, nil without.
func secondsOf(e tidings.Event) (begin, end any) {
	if e.Time().IsZero() {
		return nil, nil
	}
	seconds := func(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
	return seconds(e.Time()), seconds(e.Time().Add(e.Duration()))
}

// handle is a span, in the three steps of a handle.
type handle struct {
	name     string
	payload  map[string]any
	ctx      context.Context
	null     bool
	span     *tidings.Span
	started  bool
	finished bool
}

func (r *replay) handle(ctx context.Context, o op) error {
	h := r.handles[o.str("handle")]
	switch o.str("op") {
	case "build_handle":
		h = &handle{name: o.str("name"), payload: o.hash("payload"), ctx: ctx, null: !r.bus.Listening(o.str("name"))}
		r.handles[o.str("handle")] = h
		r.note(entry{"ev": "handle", "null": h.null})
	case "handle_start":
		r.differ("handle")
		switch {
		case h.null:
		case h.started:
			return errArgument // there is no way to begin what has begun
		default:
			_, h.span = r.bus.Begin(h.ctx, h.name, h.payload)
			h.started = true
		}
	case "handle_finish":
		switch {
		case h.null:
		case !h.started, h.finished:
			return errArgument // the first cannot be written, the second is reported
		default:
			h.span.End(nil)
			h.finished = true
		}
	}
	return nil
}
