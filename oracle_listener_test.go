package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/subscriber"
)

// listener is a subscriber of a scenario.
type listener struct {
	r        *replay
	id, kind string
	string   string // its pattern, if that is a name
	spec     op
	ran      int
	silenced map[string]bool
	excluded map[string]bool
	regexp   *regexp.Regexp
	sub      *tidings.Subscription
	bus      *tidings.Bus
}

// kindGroups are the kinds whose listeners are called together there.
var kindGroups = map[string]string{"timed": "timed", "splat": "timed", "monotonic": "monotonic", "event": "event",
	"event_object": "event", "evented": "evented", "evented_publish": "evented", "evented_publish_event": "evented", "evented_call": "evented"}

func (l *listener) silence(name string, yes bool) { l.silenced[name] = yes }

func (r *replay) subscribe(ctx context.Context, o op) error {
	l := &listener{r: r, id: o.str("id"), kind: o.str("listener"), spec: o, bus: r.bus,
		silenced: map[string]bool{}, excluded: map[string]bool{}}
	if l.kind == "" {
		l.kind = "timed"
	}
	so := &tidings.SubscribeOptions{Inline: true, Prepend: o.yes("prepend"), Filter: l.wants}
	pattern := op(o.hash("pattern"))
	subject := ">"
	switch pattern.str("kind") {
	case "string":
		l.string = pattern.str("str")
		subject = l.string
	case "regexp":
		l.regexp = regexp.MustCompile(pattern.str("str"))
	case "all", "":
	default:
		r.differ("pattern-types") // the compiler's business
		return errArgument
	}
	if so.Prepend && l.string == "" {
		r.differ("prepend-anywhere") // allowed here, but what follows in the scenario was observed without it
		return errArgument
	}
	r.kinds[kindGroups[l.kind]] = true
	if o.yes("silenceable") {
		r.kinds["silenceable"] = true
	}
	if l.evented() {
		so.Start = func(ctx context.Context, e tidings.Event) context.Context {
			if err := l.event(ctx, e, "start"); err != nil {
				panic(err)
			}
			return ctx
		}
	}
	sub, err := r.bus.Subscribe(ctx, subject, l.handle, so)
	if errors.Is(err, tidings.ErrTopic) {
		r.differ("grammar")
		return nil
	}
	if err != nil {
		return err
	}
	l.sub, r.subs[l.id] = sub, l
	return nil
}

func (l *listener) wants(name string) bool {
	return !l.silenced[name] && !l.excluded[name] && (l.regexp == nil || l.regexp.MatchString(name))
}

func (l *listener) evented() bool {
	return slices.Contains([]string{"evented", "evented_publish", "evented_publish_event", "evented_call"}, l.kind)
}

func (r *replay) unsubscribe(o op) {
	if id := o.str("id"); id != "" {
		if l := r.subs[id]; l != nil {
			l.sub.Stop()
		}
		return
	}
	for _, l := range r.subs {
		switch {
		case l.bus != r.bus:
		case l.string == o.str("name") && l.string != "":
			l.sub.Stop()
		case l.regexp != nil && l.regexp.MatchString(o.str("name")):
			l.excluded[o.str("name")] = true
			r.differ("unsubscribe-by-name")
		}
	}
}

// subscribed is Subscribe, and a deferred Stop.
func (r *replay) subscribed(ctx context.Context, o op) error {
	listener := op(maps.Clone(o))
	delete(listener, "do") // that is the block's
	if err := r.subscribe(ctx, listener); err != nil {
		return err
	}
	defer r.subs[o.str("id")].sub.Stop()
	r.note(entry{"ev": "in", "op": "subscribed"})
	if err := r.run(ctx, o.ops("do")); err != nil {
		return err
	}
	if err := raised(o["raises_in_block"]); err != nil {
		return err
	}
	r.note(entry{"ev": "return", "op": "subscribed", "value": o["returns"]})
	return nil
}

// handle is what the bus calls; it shows an event the way the listener's kind is
// shown one there.
func (l *listener) handle(ctx context.Context, e tidings.Event) error {
	if args, ok := e.Payload().(rawArgs); ok {
		return l.raw(ctx, e, args)
	}
	if l.r.ready[e.ID()] {
		return l.readyMade(ctx, e)
	}
	switch l.kind {
	case "event", "event_object":
		return l.event(ctx, e, "event")
	case "timed", "monotonic", "splat":
		return l.event(ctx, e, "call")
	}
	return l.event(ctx, e, "finish")
}

// event writes an instrumented event and reacts.
func (l *listener) event(ctx context.Context, e tidings.Event, ev string) error {
	out := entry{"ev": ev, "sub": l.id, "name": e.Topic(), "tx": "tx", "payload": shown(e)}
	l.r.differ("ids")
	clock := "float"
	if l.kind == "timed" || l.kind == "splat" {
		clock = "time"
	}
	switch {
	case ev == "start" && e.Duration() != 0, e.Time().IsZero():
		l.r.t.Errorf("%s: %v begins at %v and has taken %v", l.id, e, e.Time(), e.Duration())
	case l.kind == "splat":
		out = entry{"ev": "call", "sub": l.id, "args": []any{e.Topic(), "time", "time", "tx", shown(e)}}
	case ev == "call":
		out["time"], out["ordered"] = []any{clock, clock}, e.Duration() >= 0
	case ev == "event":
		out["time"], out["duration_ge0"] = []any{clock, clock}, e.Duration() >= 0
	}
	l.r.note(out)
	phase := ev
	if ev == "event" {
		phase = "call"
	}
	return l.react(ctx, phase)
}

// shown is the payload with the keys that an error adds there.
func shown(e tidings.Event) map[string]any {
	m, _ := e.Payload().(map[string]any)
	out := maps.Clone(m)
	if out == nil {
		out = map[string]any{}
	}
	var p *tidings.PanicError
	if err := e.Err(); err != nil && (!errors.As(err, &p) || p.Value != any(thrown{})) {
		d := describe(err)
		out["exception"] = []any{d["class"], d["message"]}
		out["exception_object"] = map[string]any{"$exc": out["exception"]}
	}
	return out
}

// raw is what a listener does with publish(name, *args).
func (l *listener) raw(ctx context.Context, e tidings.Event, args rawArgs) error {
	all := append([]any{e.Topic()}, args...)
	switch l.kind {
	case "splat":
		l.r.note(entry{"ev": "call", "sub": l.id, "args": all})
		return l.react(ctx, "call")
	case "timed", "monotonic":
		if len(args) != 4 {
			l.r.differ("arguments")
			return errArgument
		}
		begin, end := kindOf(args[0]), kindOf(args[1])
		var ordered any
		if b, ok := args[0].(float64); ok {
			if e, ok := args[1].(float64); ok {
				ordered = b <= e
			}
		}
		l.r.note(entry{"ev": "call", "sub": l.id, "name": e.Topic(), "time": []any{begin, end}, "ordered": ordered, "tx": args[2], "payload": args[3]})
		return l.react(ctx, "call")
	case "evented_publish":
		l.r.note(entry{"ev": "publish", "sub": l.id, "args": all})
		return l.react(ctx, "publish")
	}
	l.r.differ("arguments") // it gets the event here
	return nil
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "nil"
	case float64:
		return "float"
	}
	return fmt.Sprintf("%T", v)
}

// readyMade is what a listener does with publish_event.
func (l *listener) readyMade(ctx context.Context, e tidings.Event) error {
	begin, end := secondsOf(e)
	out := entry{"sub": l.id, "name": e.Topic(), "payload": e.Payload()}
	switch l.kind {
	case "event", "event_object":
		out["ev"], out["tx"], out["time"], out["duration_ge0"] = "event", e.ID(), []any{kindOf(begin), kindOf(end)}, e.Duration() >= 0
		if begin == nil {
			out["duration_ge0"] = nil
		}
	case "timed", "monotonic", "splat":
		var ordered any
		if begin != nil {
			ordered = e.Duration() >= 0
		}
		out["ev"], out["tx"], out["time"], out["ordered"] = "call", e.ID(), []any{kindOf(begin), kindOf(end)}, ordered
		if l.kind == "splat" {
			out = entry{"ev": "call", "sub": l.id, "args": []any{e.Topic(), begin, end, e.ID(), e.Payload()}}
		}
	case "evented_publish_event":
		out["ev"] = "publish_event"
		l.r.note(out)
		return l.react(ctx, "publish")
	case "evented_publish":
		l.r.note(entry{"ev": "publish", "sub": l.id, "args": []any{e.Topic(), begin, end, e.ID(), e.Payload()}})
		return l.react(ctx, "publish")
	default:
		return nil
	}
	l.r.note(out)
	return l.react(ctx, "call")
}

// react does what the scenario wants of the listener.
func (l *listener) react(ctx context.Context, phase string) error {
	if on := l.spec.str("on"); on != "" && on != phase {
		return nil
	}
	if times, limited := l.spec["times"].(float64); limited && l.ran >= int(times) {
		return nil
	}
	l.ran++
	if err := l.r.run(ctx, l.spec.ops("do")); err != nil {
		return err
	}
	return raised(l.spec["raises"])
}

// class is a Subscriber class of a scenario: a table of handlers here.
type class struct {
	id, parent string
	log        bool
	methods    []string
	levels     map[string]any
	raises     any
}

type attachment struct {
	class, namespace string
	methods          []string
	to               []*subscriber.Attached
}

func (r *replay) subscriberOp(ctx context.Context, o op) error {
	switch o.str("op") {
	case "class":
		r.classes[o.str("id")] = &class{id: o.str("id"), parent: o.str("parent"), log: o.yes("log"),
			methods: stringsOf(o["methods"]), levels: o.hash("levels"), raises: o["raises"]}
		r.log = r.log || o.yes("log")
	case "logger":
		return r.level.set(o.str("level"))
	case "attach":
		return r.attach(ctx, o)
	case "detach":
		r.detach(o)
	case "add_method":
		return r.addMethod(ctx, o)
	}
	return nil
}

func stringsOf(v any) (out []string) {
	list, _ := v.([]any)
	for _, s := range list {
		out = append(out, fmt.Sprint(s))
	}
	return out
}

// table has the handlers of a class; inherited ones only if asked for.
func (r *replay) table(self *class, inherit bool) handlers {
	out := handlers{}
	for c := self; c != nil; c = r.classes[c.parent] {
		for _, m := range c.methods {
			if _, overridden := out[m]; !overridden && m != "start" && m != "finish" {
				out[m] = r.method(self, c, m)
			}
		}
		if !inherit {
			break
		}
	}
	return out
}

type handlers map[string]tidings.Handler

// Handlers implements what package subscriber looks for.
func (h handlers) Handlers() map[string]tidings.Handler { return h }

func (r *replay) method(self, defined *class, name string) tidings.Handler {
	return func(_ context.Context, e tidings.Event) error {
		r.note(entry{"ev": "method", "sub": defined.id, "method": name, "name": e.Topic(), "payload": shown(e), "self_class": self.id})
		return raised(defined.raises)
	}
}

func (r *replay) attach(ctx context.Context, o op) error {
	c := r.classes[o.str("id")]
	table := r.table(c, o.yes("inherit_all"))
	a := &attachment{class: c.id, namespace: o.str("namespace"), methods: slices.Collect(maps.Keys(table))}
	r.attached = append(r.attached, a)
	if len(table) == 0 {
		return nil // an error here, since it is a mistake
	}
	return r.attachTable(ctx, a, c, table)
}

func (r *replay) attachTable(ctx context.Context, a *attachment, c *class, table handlers) error {
	so := &subscriber.Options{Subscribe: &tidings.SubscribeOptions{Inline: true},
		Topic: func(namespace, event string) string { return event + "." + namespace }}
	if r.isLog(c) {
		so.Logger, so.Level = r.logger, func(method string) slog.Level { return r.levelOf(c, method) }
	}
	to, err := subscriber.Attach(ctx, r.bus, a.namespace, table, so)
	if err == nil {
		a.to = append(a.to, to)
	}
	return err
}

func (r *replay) isLog(c *class) bool {
	for ; c != nil; c = r.classes[c.parent] {
		if c.log {
			return true
		}
	}
	return false
}

func (r *replay) detach(o op) {
	for i, a := range r.attached {
		if a.class == o.str("id") && a.namespace == o.str("namespace") {
			for _, to := range a.to {
				to.Detach()
			}
			r.attached = slices.Delete(r.attached, i, i+1)
			return
		}
	}
}

// addMethod attaches a table of the new method alone.
func (r *replay) addMethod(ctx context.Context, o op) error {
	c, name := r.classes[o.str("id")], o.str("method")
	r.differ("methods-later")
	known := slices.Contains(c.methods, name)
	c.methods = append(c.methods, name)
	for _, a := range r.attached {
		if a.class == c.id && !known && !slices.Contains(a.methods, name) && name != "start" && name != "finish" {
			if err := r.attachTable(ctx, a, c, handlers{name: r.method(c, c, name)}); err != nil {
				return err
			}
		}
	}
	return nil
}
