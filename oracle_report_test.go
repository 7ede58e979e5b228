package tidings_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/redact"
	"github.com/tidings-go/tidings/report"
)

// logLevel is the logger of log subscribers: it writes what they failed with, the
// way it is written there.
type logLevel struct {
	r     *replay
	level slog.Level
	none  bool
}

// noLevel is that of methods that have none: they are silent only without a logger.
const noLevel = slog.Level(1000)

func levelNamed(name string) slog.Level {
	switch name {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	case "fatal", "unknown":
		return slog.LevelError + 4
	}
	return slog.LevelInfo
}

func (l *logLevel) set(name string) error {
	l.none, l.level = name == "none" || name == "", levelNamed(name)
	return nil
}

func (l *logLevel) Enabled(_ context.Context, level slog.Level) bool {
	return !l.none && level >= l.level
}

func (l *logLevel) Handle(_ context.Context, rec slog.Record) error {
	attrs := map[string]string{}
	rec.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	text := strings.ToUpper(rec.Message[:1]) + rec.Message[1:] + ". " + attrs["message"] // the message has the class
	l.r.note(entry{"ev": "log_error", "text": text})
	return nil
}

func (l *logLevel) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *logLevel) WithGroup(string) slog.Handler      { return l }

func (r *replay) levelOf(c *class, method string) slog.Level {
	for ; c != nil; c = r.classes[c.parent] {
		if level, ok := c.levels[method].(string); ok {
			return levelNamed(level)
		}
	}
	return noLevel
}

// eventReporter is Rails.event of a scenario.
type eventReporter struct {
	bus   *tidings.Bus
	rep   *report.Reporter
	raise bool
	subs  []*reportListener
}

// reportListener is one of its subscribers.
type reportListener struct {
	*listener
	prefix string
}

// notification is a report of ours that has ended.
type notification struct {
	op    string
	raise bool
	to    []*reportListener
}

// takers are those that want an event of the name.
func (er *eventReporter) takers(name string) (out []*reportListener) {
	for _, l := range er.subs {
		if strings.HasPrefix(name, l.prefix) && !badName(name) {
			out = append(out, l)
		}
	}
	return out
}

// reports is what Rails keeps per fiber and lets blocks change for good.
type reports struct{ context map[string]any }

type reportsKey struct{}

func withReports(ctx context.Context) context.Context {
	return context.WithValue(ctx, reportsKey{}, &reports{})
}

// inherit gives a new goroutine a copy.
func inherit(ctx context.Context) context.Context {
	ctx2 := withReports(ctx)
	reportsOf(ctx2).context = maps.Clone(reportsOf(ctx).context)
	return ctx2
}

func reportsOf(ctx context.Context) *reports { return ctx.Value(reportsKey{}).(*reports) }

// object is an instance of a Ruby class.
type object struct {
	Obj string `json:"$obj"`
}

func (r *replay) reportOp(ctx context.Context, o op) error {
	switch o.str("op") {
	case "er_new":
		r.newReporter(o)
	case "er_subscribe":
		return r.reportSubscribe(ctx, o)
	case "er_unsubscribe":
		r.er.subs = slices.DeleteFunc(r.er.subs, func(l *reportListener) bool {
			gone := l.id == o.str("id") || o.str("by") == "class" // all of them are of one class
			if gone {
				l.sub.Stop()
			}
			return gone
		})
	case "er_notify", "er_debug":
		return r.notify(ctx, o)
	case "er_tagged":
		return r.run(report.Tagged(ctx, r.tags(o)...), o.ops("do"))
	case "er_set_context":
		all := reportsOf(ctx)
		all.context = maps.Clone(all.context)
		if all.context == nil {
			all.context = map[string]any{}
		}
		maps.Copy(all.context, o.hash("context"))
		r.uses("context")
	case "er_clear_context":
		reportsOf(ctx).context = nil
	case "er_context":
		r.note(entry{"ev": "context", "value": orEmpty(report.Context(r.reportContext(ctx)))})
	case "er_with_debug":
		return r.run(report.WithDebug(ctx), o.ops("do"))
	case "er_debug_mode":
		r.note(entry{"ev": "debug_mode", "value": r.er.rep.DebugMode(ctx)})
	default:
		r.t.Errorf("unknown op %v", o)
	}
	return nil
}

func (r *replay) newReporter(o op) {
	er := &eventReporter{raise: o.yes("raise_on_error")}
	er.bus = newBus(r.t, tidings.Options{Strict: er.raise, OnError: func(_ context.Context, err error) {
		var ruby *rubyError
		if errors.As(err, &ruby) {
			r.note(entry{"ev": "error_report", "class": ruby.class, "message": ruby.message})
		}
	}})
	er.rep = report.New(er.bus, report.Options{Filter: &redact.Filter{}, NoDebug: o["debug_mode"] == false, Strict: true})
	if names := stringsOf(o["filter"]); len(names) > 0 {
		er.rep = report.New(er.bus, report.Options{Filter: redact.New(names...), NoDebug: o["debug_mode"] == false, Strict: true})
	}
	r.er = er
}

func (r *replay) reportSubscribe(ctx context.Context, o op) error {
	er, id := r.er, o.str("id")
	l := &reportListener{&listener{r: r, id: id, spec: o, bus: er.bus}, o.str("filter_prefix")}
	h := func(ctx context.Context, e report.Event) error {
		r.note(entry{"ev": "emit", "sub": id, "name": e.Name, "payload": e.Payload, "tags": orEmpty(e.Tags), "context": orEmpty(e.Context),
			"keys": []string{"name", "payload", "tags", "context", "timestamp", "source_location"}})
		if e.Timestamp.IsZero() || !strings.HasSuffix(e.Location.File, "oracle_report_test.go") || e.Location.Line == 0 {
			r.t.Errorf("%s at %v from %v", e.Name, e.Timestamp, e.Location)
		}
		return l.react(ctx, "emit")
	}
	so := &tidings.SubscribeOptions{Inline: true}
	if l.prefix != "" || o.yes("show_filter") {
		so.Filter = func(name string) bool {
			if o.yes("show_filter") {
				r.note(entry{"ev": "filter", "sub": id, "keys": []string{"name"}})
			}
			return strings.HasPrefix(name, l.prefix)
		}
	}
	if o.yes("invalid") {
		h = nil // the nearest to an object that cannot be told anything
	}
	var err error
	if l.sub, err = report.Subscribe(ctx, er.bus, ">", h, so); err != nil {
		return errArgument
	}
	er.subs = append(er.subs, l)
	return nil
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// reportContext is the context that an event is reported with.
func (r *replay) reportContext(ctx context.Context) context.Context {
	if c := reportsOf(ctx).context; len(c) > 0 {
		return report.WithContext(report.ClearContext(ctx), c)
	}
	return report.ClearContext(ctx)
}

func (r *replay) tags(o op) (args []any) {
	list, _ := o["args"].([]any)
	for _, a := range list {
		if s, ok := a.(string); ok && strings.HasPrefix(s, "@") {
			r.uses("objects")
			a = map[string]any{s[1:]: object{s[1:]}}
		}
		args = append(args, a)
	}
	if kw := o.hash("kwargs"); kw != nil {
		args = append(args, kw)
	}
	return args
}

func (r *replay) notify(ctx context.Context, o op) error {
	er, name := r.er, o.str("name")
	payload, err := r.reportPayload(o)
	if err != nil {
		return err
	}
	if class := o.str("object"); class != "" {
		r.uses("objects")
		name = class
	}
	to := er.takers(name)
	if at := r.reportContext(ctx); o.str("op") == "er_notify" {
		err = er.rep.Notify(at, name, payload)
	} else {
		err = er.rep.Debug(at, name, func() any {
			lazy := o.hash("block")
			if lazy == nil {
				return payload
			}
			r.note(entry{"ev": "debug_block"})
			all, _ := payload.(map[string]any)
			all = maps.Clone(orEmpty(all))
			maps.Copy(all, lazy)
			return all
		})
	}
	if errors.Is(err, tidings.ErrTopic) {
		r.uses("grammar")
		err = nil
	}
	r.notified = append(r.notified, notification{o.str("op"), er.raise, to})
	if err != nil {
		return err
	}
	r.note(entry{"ev": "return", "op": o.str("op"), "value": nil})
	return nil
}

// reportPayload is the one payload that there is here.
func (r *replay) reportPayload(o op) (payload any, err error) {
	given := 0
	if p := o["payload"]; p != nil {
		payload, given = p, given+1
	}
	if kw := o.hash("kwargs"); len(kw) > 0 {
		payload, given = kw, given+1
	}
	if class := o.str("object"); class != "" {
		payload, given = object{class}, given+1
	}
	if given > 1 && r.er.raise {
		r.uses("one-payload")
		return nil, errArgument
	}
	if o["filter_payload"] == false {
		payload = report.Unfiltered(payload)
	}
	return payload, nil
}
