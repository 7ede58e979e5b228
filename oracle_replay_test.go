package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"

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

// replay is the state of one scenario. Scenarios have threads, but only one of
// them runs at a time.
type replay struct {
	t          *testing.T
	strict     bool
	bus        *tidings.Bus
	others     []*tidings.Bus // notifiers that were swapped out
	subs       map[string]*listener
	all        []*listener // in the order of subscribing
	places     int         // given to subscriptions
	handles    map[string]*handle
	classes    map[string]*class
	attached   []*attachment
	logger     *slog.Logger
	level      *logLevel
	er         *eventReporter
	ready      map[string]bool // ids of ready-made events
	reported   int             // errors that went to OnError, and the last of them
	lastReport error
	failures   int             // errors of listeners
	used       map[string]bool // ids of differences
	catching   int             // catch operations that are open
	trace      []entry

	// What is to be known of ours to rewrite theirs.
	published    []publication
	notified     []notification
	both         failure         // of the instrumented operation that was the last to fail
	failed       []failure       // all of them, where there is something to lose
	raised       []failure       // for each error of an instrumented operation that was written
	thrown       map[string]bool // names of events whose block was left by throw
	asked        []bool          // for each subscribed_to: whether the listener was silenced
	renamed      []renaming
	everAttached []*attachment
}

func newReplay(t *testing.T, strict bool) *replay {
	r := &replay{t: t, strict: strict, subs: map[string]*listener{}, handles: map[string]*handle{}, classes: map[string]*class{},
		ready: map[string]bool{}, used: map[string]bool{}, thrown: map[string]bool{}, level: &logLevel{level: slog.LevelDebug}}
	r.logger = slog.New(r.level)
	r.level.r = r
	r.bus = r.newBus()
	return r
}

func (r *replay) newBus() *tidings.Bus {
	return newBus(r.t, tidings.Options{Strict: r.strict, OnError: func(_ context.Context, err error) {
		r.reported++
		r.lastReport = err
	}})
}

// reports fails the test unless f makes the bus report so many errors.
func (r *replay) reports(n int, what string, f func()) {
	r.t.Helper()
	before := r.reported
	f()
	if r.reported-before < n {
		r.t.Errorf("%s: %d errors reported, want %d at least", what, r.reported-before, n)
	}
}

// uses notes that an operation was said in other words than there.
func (r *replay) uses(id string) { r.used[id] = true }

func (r *replay) note(e entry) { r.trace = append(r.trace, e) }

// top runs a scenario: what an operation raises is written, and the next one runs.
func (r *replay) top(ops []op) {
	ctx := newThread(withReports(context.Background()))
	for _, o := range ops {
		if err := r.exec(ctx, o); err != nil {
			r.noteRaise(o, err)
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
	if o.str("op") == "instrument" {
		r.raised = append(r.raised, r.both)
		r.both = failure{}
	}
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
	if own, ok := err.(*tidings.Error); ok {
		if own.Op == "publish" && badName(own.Topic) {
			return []error{own} // whose cause has causes of its own
		}
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
	if errors.Is(err, tidings.ErrTopic) {
		return entry{"class": "ArgumentError", "message": ""}
	}
	var ruby *rubyError
	if errors.As(err, &ruby) {
		return entry{"class": ruby.class, "message": ruby.message}
	}
	return entry{"class": fmt.Sprintf("%T", err), "message": err.Error()}
}

func (r *replay) exec(ctx context.Context, o op) error {
	switch o.str("op") {
	case "subscribe":
		return r.subscribe(ctx, o)
	case "unsubscribe":
		r.unsubscribe(o)
	case "subscribed":
		return r.subscribed(ctx, o)
	case "listening":
		r.note(entry{"ev": "listening", "name": o.str("name"), "value": r.bus.Listening(o.str("name"))})
	case "subscribed_to":
		l := r.subs[o.str("id")]
		if l == nil {
			return errArgument
		}
		r.asked = append(r.asked, l.silenced[o.str("name")])
		r.note(entry{"ev": "subscribed_to", "sub": l.id, "name": o.str("name"), "value": l.sub.Matches(o.str("name"))})
	case "silence", "unsilence":
		if l := r.subs[o.str("id")]; l != nil {
			l.silenced[o.str("name")] = o.str("op") == "silence"
		}
	case "instrument", "null_instrument", "publish", "publish_event", "event_record",
		"build_handle", "handle_start", "handle_finish", "start", "finish":
		return r.eventOp(ctx, o)
	case "raise":
		return &rubyError{o.str("class"), o.message()}
	case "note":
		r.note(entry{"ev": "note", "text": o.str("text")})
	case "catch":
		return r.catch(ctx, o)
	case "in_thread", "in_fiber":
		return r.elsewhere(ctx, o)
	case "new_notifier":
		r.others, r.bus = append(r.others, r.bus), r.newBus()
	case "old_notifier":
		if n := len(r.others); n > 0 {
			r.bus, r.others = r.others[n-1], r.others[:n-1]
		}
	case "patterns":
		r.note(entry{"ev": "inspect"})
		r.inspect()
	case "instrumenter_id":
		// There is none: see the difference "ids".
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

// inspect holds the Debugger to what the scenario has subscribed.
func (r *replay) inspect() {
	want := 0
	for _, l := range r.all {
		if l.bus == r.bus && l.live() {
			want++
		}
	}
	for _, a := range r.attached {
		for _, to := range a.to {
			want += len(to.Subscriptions())
		}
	}
	if got := len(r.bus.Debugger().Snapshot().Subscriptions); got != want {
		r.t.Errorf("the snapshot has %d subscriptions, want %d", got, want)
	}
}

// thrown is how a block is left by throw: a panic that is caught further out.
type thrown struct{}

// catching runs f, and reports whether it was left by throw.
func catching(f func() error) (left bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(thrown); !ok {
				panic(p)
			}
			left = true
		}
	}()
	return false, f()
}

// catch ends what is thrown inside, and what is raised.
func (r *replay) catch(ctx context.Context, o op) error {
	r.catching++
	left, err := catching(func() error { return r.run(ctx, o.ops("do")) })
	r.catching--
	switch {
	case left:
		r.note(entry{"ev": "caught"})
	case err != nil:
		r.note(describe(err).with("ev", "caught"))
	}
	return nil
}

// elsewhere is a thread or a fiber: a goroutine, which has what its context has.
func (r *replay) elsewhere(ctx context.Context, o op) (err error) {
	inner := inherit(ctx)
	if o.str("op") == "in_thread" {
		inner = newThread(inner)
	}
	left, done := false, make(chan struct{})
	go func() {
		defer close(done)
		left, err = catching(func() error { return r.run(inner, o.ops("do")) })
	}()
	<-done
	if left {
		panic(thrown{})
	}
	return err
}

// next is the place of one more subscription.
func (r *replay) next() int { r.places++; return r.places }
