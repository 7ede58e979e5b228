package tidings_test

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/tidings-go/tidings"
)

func (r *replay) eventOp(ctx context.Context, o op) error {
	switch o.str("op") {
	case "instrument":
		return r.instrument(ctx, o)
	case "null_instrument":
		return r.nullInstrument(ctx, o)
	case "publish":
		return r.publish(ctx, o)
	case "publish_event":
		return r.publishEvent(ctx, o)
	case "event_record":
		return r.record(ctx, o)
	case "start", "finish":
		return r.stack(ctx, o)
	}
	return r.handle(ctx, o)
}

// block is the block of an instrumented operation; what it fails with is kept.
func (r *replay) block(o op, payload map[string]any, own *error) func(context.Context) error {
	if o.yes("no_block") {
		return nil
	}
	return func(ctx context.Context) error {
		r.note(entry{"ev": "block", "name": o.str("name")})
		maps.Copy(payload, o.hash("set"))
		if *own = r.run(ctx, o.ops("do")); *own != nil {
			return *own
		}
		if o.throws() {
			panic(thrown{})
		}
		*own = raised(o["raises"])
		return *own
	}
}

func (o op) throws() bool { return o["throws"] != nil && o["throws"] != false }

// payload is the hash of the operation; the caller keeps it.
func (o op) payload() map[string]any {
	if p := o.hash("payload"); p != nil {
		return p
	}
	return map[string]any{}
}

func (r *replay) instrument(ctx context.Context, o op) error {
	name, payload := o.str("name"), o.payload()
	var err, own error
	run := func() error {
		left := true
		defer func() {
			if left {
				r.thrown[name] = true
			}
		}()
		err = r.bus.Instrument(ctx, name, payload, r.block(o, payload, &own))
		left = false
		return err
	}
	if o.yes("show_payload") {
		// Where an error is to be written, it is written after this.
		defer func() {
			if err != nil {
				r.note(entry{"ev": "caller_payload", "payload": maps.Clone(payload)})
			}
		}()
	}
	if o.throws() && r.catching == 0 {
		// Nobody catches it further out, so the operation does.
		left, _ := catching(run)
		if left {
			r.note(entry{"ev": "return", "op": "instrument", "name": name, "value": nil})
			return nil
		}
	} else if badName(name) {
		r.reports(1, "instrument "+name, func() { _ = run() })
	} else {
		_ = run()
	}
	r.both.hidden = nil
	if err != nil {
		r.instrumented(err, own)
		return err
	}
	e := entry{"ev": "return", "op": "instrument", "name": name, "value": o["returns"]}
	if o.yes("no_block") {
		e["value"] = nil
	}
	r.note(e)
	if o.yes("show_payload") {
		r.note(entry{"ev": "caller_payload", "payload": maps.Clone(payload)})
	}
	return nil
}

// failure is how an instrumented operation has failed, here and there.
type failure struct{ ours, theirs, hidden entry }

// instrumented keeps what there is lost when subscribers fail besides the block.
func (r *replay) instrumented(err, own error) {
	all := collected(err)
	if own == nil || err == own {
		return
	}
	r.both = failure{describe(err), describe(errors.Join(all[:len(all)-len(collected(own))]...)), describe(own)}
	r.failed = append(r.failed, r.both)
}

// nullInstrument: a bus without subscribers runs blocks and sends nothing.
func (r *replay) nullInstrument(ctx context.Context, o op) error {
	payload := o.payload()
	if err := r.newBus().Instrument(ctx, o.str("name"), payload, r.block(o, payload, new(error))); err != nil {
		return err
	}
	r.note(entry{"ev": "return", "op": "null_instrument", "value": o["returns"]})
	return nil
}

// record is Event#record: a bus of its own has the event and nobody else.
func (r *replay) record(ctx context.Context, o op) error {
	r.uses("record")
	var out entry
	own := r.newBus()
	s := subscribe(r.t, own, ">", func(_ context.Context, e tidings.Event) error {
		out = entry{"ev": "recorded", "name": e.Topic(), "time": []any{"float", "float"}, "ordered": e.Duration() >= 0,
			"duration_ge0": e.Duration() >= 0, "payload": shown(e), "value": o["returns"]}
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	defer s.Stop()
	payload := o.payload()
	err := own.Instrument(ctx, o.str("name"), payload, func(ctx context.Context) error {
		maps.Copy(payload, o.hash("set"))
		if err := r.run(ctx, o.ops("do")); err != nil {
			return err
		}
		return raised(o["raises"])
	})
	r.note(out)
	return err
}

// rawArgs is what publish was called with: one payload here.
type rawArgs []any

// publication is a publish of ours that has written how it ended.
type publication struct {
	name      string
	args      []any
	listeners []*listener
}

func (r *replay) publish(ctx context.Context, o op) error {
	args, _ := o["args"].([]any)
	to := r.listenersOf(o.str("name"))
	err := r.bus.Publish(ctx, o.str("name"), rawArgs(args))
	r.published = append(r.published, publication{o.str("name"), args, to})
	if err != nil {
		return err
	}
	r.note(entry{"ev": "return", "op": "publish", "name": o.str("name")})
	return nil
}

func (r *replay) publishEvent(ctx context.Context, o op) error {
	f := tidings.EventFields{ID: o.str("tx"), Topic: o.str("name"), Payload: o.payload()}
	if !o.yes("nil_times") {
		f.Time, f.Duration = time.Unix(10, 0), 2500*time.Millisecond
	}
	e := tidings.NewEvent(f)
	r.ready[e.ID()] = true
	if o.yes("show") {
		begin, end := secondsOf(e)
		r.note(entry{"ev": "event_new", "time": begin, "end": end, "duration": float64(e.Duration()) / float64(time.Millisecond)})
	}
	err := r.bus.PublishEvent(ctx, e)
	if errors.Is(err, tidings.ErrTopic) {
		r.uses("grammar") // nobody can tell from theirs which of them it is
		err = nil
	}
	if err != nil {
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
	name    string
	payload map[string]any
	ctx     context.Context
	null    bool
	span    *tidings.Span
	started bool
	ended   bool
}

func (r *replay) handle(ctx context.Context, o op) error {
	h := r.handles[o.str("handle")]
	switch o.str("op") {
	case "build_handle":
		h = &handle{name: o.str("name"), payload: o.payload(), ctx: ctx, null: !r.bus.Listening(o.str("name"))}
		r.handles[o.str("handle")] = h
		r.note(entry{"ev": "handle", "null": h.null})
	case "handle_start":
		switch {
		case h.null: // as the nil Span, which is that of nobody
		case h.started:
			r.uses("handle")
			return errArgument
		default:
			_, h.span = r.bus.Begin(h.ctx, h.name, h.payload)
			h.started = true
		}
	case "handle_finish":
		switch {
		case h.null:
			h.span.End(nil)
		case !h.started:
			r.uses("handle")
			return errArgument
		case h.ended:
			r.uses("handle")
			r.reports(1, "a span that is ended twice", func() { h.span.End(nil) })
			return errArgument
		default:
			h.ended = true
			return r.end(h.span)
		}
	}
	return nil
}

// end ends a span. What subscribers fail with then is reported, since End has no
// error to return.
func (r *replay) end(s *tidings.Span) error {
	before := r.reported
	s.End(nil)
	if r.reported == before {
		return nil
	}
	r.uses("handle")
	return r.lastReport
}

// thread is what a scenario's thread has of its own: the spans that start began.
type thread struct{ open []open }

type open struct {
	name    string
	span    *tidings.Span
	payload map[string]any
}

// renaming is a span that was to end under another name.
type renaming struct{ began, ended string }

type threadKey struct{}

func newThread(ctx context.Context) context.Context {
	return context.WithValue(ctx, threadKey{}, &thread{})
}

// stack keeps the spans of start until finish ends them. A span's payload is a
// map, which can be filled until it ends; its name cannot be changed.
func (r *replay) stack(ctx context.Context, o op) error {
	r.uses("stack")
	own := ctx.Value(threadKey{}).(*thread)
	if o.str("op") == "start" {
		payload := o.payload()
		_, span := r.bus.Begin(ctx, o.str("name"), payload)
		own.open = append(own.open, open{o.str("name"), span, payload})
		return nil
	}
	n := len(own.open)
	if n == 0 {
		return errArgument // there is no span to end
	}
	last := own.open[n-1]
	own.open = own.open[:n-1]
	clear(last.payload)
	maps.Copy(last.payload, o.payload())
	if last.name != o.str("name") {
		r.renamed = append(r.renamed, renaming{last.name, o.str("name")})
	}
	return r.end(last.span)
}
