package tidings_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/topic"
)

// listener is a subscriber of a scenario.
type listener struct {
	r          *replay
	id, kind   string
	pattern    op
	spec       op
	ran        int
	order      int // of subscribing; negative if prepended
	silenced   map[string]bool
	excluded   map[string]bool
	regexp     *regexp.Regexp
	sub        *tidings.Subscription
	bus        *tidings.Bus
	silencable bool
}

func badName(name string) bool { return topic.Check(name) != nil }

// named reports whether the listener is one of exactly that name.
func (l *listener) named(name string) bool {
	return l.pattern.str("kind") == "string" && l.pattern.str("str") == name
}

func (l *listener) live() bool {
	select {
	case <-l.sub.Done():
		return false
	default:
		return true
	}
}

// wants is the listener's Filter.
func (l *listener) wants(name string) bool {
	switch l.pattern.str("kind") {
	case "string":
		if !l.named(name) {
			return false
		}
	case "regexp":
		if !l.regexp.MatchString(name) {
			return false
		}
	}
	return !l.silenced[name] && !l.excluded[name]
}

// rank orders the listeners of a name: names before patterns, what is prepended
// first, then as they were subscribed.
func rank(a, b *listener) int {
	wild := func(l *listener) int {
		if l.pattern.str("kind") == "string" {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(wild(a), wild(b)), cmp.Compare(a.order, b.order))
}

// listenersOf is who is to get an event of the name, in order: worked out here,
// not asked of the bus.
func (r *replay) listenersOf(name string) (out []*listener) {
	for _, l := range r.all {
		if l.bus == r.bus && l.live() && l.wants(name) && !badName(name) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, rank)
	return out
}

func (r *replay) newListener(o op) (*listener, error) {
	l := &listener{r: r, id: o.str("id"), kind: o.str("listener"), spec: o, bus: r.bus, pattern: o.hash("pattern"),
		silenced: map[string]bool{}, excluded: map[string]bool{}, silencable: o.yes("silenceable"), order: r.next()}
	if l.kind == "" {
		l.kind = "timed"
	}
	if o.yes("prepend") {
		l.order = -l.order
	}
	switch l.pattern.str("kind") {
	case "regexp":
		l.regexp = regexp.MustCompile(l.pattern.str("str"))
	case "string", "all", "":
	default:
		r.uses("pattern-types")
		return nil, errArgument
	}
	return l, nil
}

func (r *replay) subscribe(ctx context.Context, o op) error {
	l, err := r.newListener(o)
	if err != nil {
		return err
	}
	subject := ">"
	if name := l.pattern.str("str"); l.pattern.str("kind") == "string" && !badName(name) {
		subject = name
	}
	so := &tidings.SubscribeOptions{Inline: true, Prepend: o.yes("prepend")}
	if subject == ">" && l.pattern.str("kind") != "all" || l.silencable {
		so.Filter = l.wants
	}
	if strings.HasPrefix(l.kind, "evented") {
		so.Start = l.start
	}
	if l.sub, err = r.bus.Subscribe(ctx, subject, l.handle, so); err != nil {
		return err
	}
	if o.yes("prepend") && l.pattern.str("kind") != "string" {
		r.uses("prepend-anywhere")
		l.sub.Stop()
		return errArgument
	}
	r.subs[l.id] = l
	r.all = append(r.all, l)
	return nil
}

func (r *replay) unsubscribe(o op) {
	if id := o.str("id"); id != "" {
		if l := r.subs[id]; l != nil {
			l.sub.Stop()
		}
		return
	}
	r.uses("unsubscribe-by-name")
	name := o.str("name")
	for _, l := range r.all {
		switch {
		case l.bus != r.bus:
		case l.named(name):
			l.sub.Stop()
		case l.regexp != nil && l.regexp.MatchString(name):
			l.excluded[name] = true
		}
	}
}

// subscribed is Subscribe, and a deferred Stop.
func (r *replay) subscribed(ctx context.Context, o op) error {
	o1 := op(maps.Clone(o))
	delete(o1, "do") // that is the block's
	if err := r.subscribe(ctx, o1); err != nil {
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

// begunKey finds, for each listener, the event that its start was told of: what
// is published inside a block has the block's context, and is another event.
type begunKey struct{ l *listener }

// start is what the bus calls before a block; it has no error to return.
func (l *listener) start(ctx context.Context, e tidings.Event) context.Context {
	if err := l.event(ctx, e, "start"); err != nil {
		panic(err)
	}
	return context.WithValue(ctx, begunKey{l}, e.ID())
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
	switch {
	case l.kind == "event", l.kind == "event_object":
		return l.event(ctx, e, "event")
	case l.kind == "timed", l.kind == "monotonic", l.kind == "splat":
		return l.event(ctx, e, "call")
	case ctx.Value(begunKey{l}) != e.ID():
		l.r.t.Errorf("%s: %v ends and has not begun, or its id has changed", l.id, e)
	}
	return l.event(ctx, e, "finish")
}

// event writes an instrumented event and reacts.
func (l *listener) event(ctx context.Context, e tidings.Event, ev string) error {
	out := entry{"ev": ev, "sub": l.id, "name": e.Topic(), "tx": l.r.tx(e), "payload": shown(e)}
	clock := "float"
	if l.kind == "timed" || l.kind == "splat" {
		clock = "time"
	}
	switch {
	case ev == "start" && e.Duration() != 0, e.Time().IsZero():
		l.r.t.Errorf("%s: %v begins at %v and has taken %v", l.id, e, e.Time(), e.Duration())
	case l.kind == "splat":
		out = entry{"ev": "call", "sub": l.id, "args": []any{e.Topic(), "time", "time", l.r.tx(e), shown(e)}}
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
	if err := e.Err(); err != nil {
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
		l.r.uses("arguments")
		if len(args) != 4 {
			l.r.failures++
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
	case "event", "event_object":
		l.r.note(l.published(e.Topic(), args).with("tx", l.r.tx(e)))
		return l.react(ctx, "call")
	}
	return nil // what has not begun does not end
}

// published is what an event listener writes of a publish.
func (l *listener) published(name string, args []any) entry {
	return entry{"ev": "event", "sub": l.id, "name": name, "time": []any{"float", "float"}, "duration_ge0": true, "payload": args}
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
	err := l.r.run(ctx, l.spec.ops("do"))
	if err == nil {
		err = raised(l.spec["raises"])
	}
	if err != nil {
		l.r.failures++
	}
	return err
}

// tx is the event's id, which theirs calls the transaction's.
func (r *replay) tx(e tidings.Event) string {
	if e.ID() == "" {
		r.t.Errorf("%v has no id", e)
	}
	return ownID + e.ID()
}

// ownID marks ids that the scenario has not given.
const ownID = "own id "
