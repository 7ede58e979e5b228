package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"runtime"

	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

func TestRow28PublishCarriesOnePayload(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	type moved struct{ from, to string }
	var e tidings.Event
	listen(t, b, "a", func(_ context.Context, got tidings.Event) error { e = got; return nil })
	if err := b.Publish(ctx, "a", moved{"x", "y"}); err != nil {
		t.Error(err)
	}
	if e.Payload() != any(moved{"x", "y"}) || e.Topic() != "a" || e.ID() == "" || e.Time().IsZero() || e.Duration() != 0 || e.Err() != nil {
		t.Errorf("got %v, %v at %v, %v, %v", e, e.Payload(), e.Time(), e.Duration(), e.Err())
	}
}

func TestRow29PayloadOfAnotherType(t *testing.T) {
	var reported errs
	b := typedRowBus(t, tidings.Options{OnError: reported.add})
	placed := tidings.NewTopic[order]("row29.placed").On(b)
	if _, err := placed.Subscribe(ctx, func(context.Context, tidings.Event, order) error {
		t.Error("called with what is no order")
		return nil
	}, &tidings.SubscribeOptions{Inline: true}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, placed.Name(), "no order"); err != nil {
		t.Errorf("the publisher was told: %v", err)
	}
	if got := reported.list(); len(got) != 1 || !strings.Contains(got[0].Error(), "was published as string") {
		t.Errorf("reported %v", got)
	}
}

func TestRow30ReadyMadeEvent(t *testing.T) {
	b := kit(t, tidings.Options{})
	var e tidings.Event
	listen(t, b, "sql", func(_ context.Context, got tidings.Event) error { e = got; return nil })
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, f := range []tidings.EventFields{
		{Topic: "sql", ID: "42", Source: "//import", Time: at, Duration: time.Second, Err: errBoom, Payload: 7},
		{Topic: "sql"},
	} {
		if err := b.PublishEvent(ctx, tidings.NewEvent(f)); err != nil {
			t.Error(err)
		}
		if (f.ID != "" && e.ID() != f.ID) || e.ID() == "" || e.Source() != f.Source || !e.Time().Equal(f.Time) || e.Duration() != f.Duration ||
			e.Err() != f.Err || e.Payload() != f.Payload {
			t.Errorf("%+v became %v of %v, %v, %v, %v, %v", f, e, e.Source(), e.Time(), e.Duration(), e.Err(), e.Payload())
		}
	}
}

func TestRow31StopOne(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	gone := listen(t, b, "a", all.as("gone"))
	listen(t, b, "a", all.as("stays"))
	gone.Stop()
	gone.Stop()
	announce(t, b, "a")
	all.want(t, "stays a")
}

// exclusions are what a Filter can do in place of unsubscribing by name.
type exclusions struct{ names sync.Map }

func (x *exclusions) exclude(topic string) { x.names.Store(topic, true) }
func (x *exclusions) allow(topic string) bool {
	_, excluded := x.names.Load(topic)
	return !excluded
}

func TestRow32ExcludeAName(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	var x exclusions
	for _, pattern := range []string{"a", "*", ">"} {
		subscribe(t, b, pattern, all.as(pattern), &tidings.SubscribeOptions{Inline: true, Filter: x.allow})
	}
	x.exclude("a")
	announce(t, b, "a", "b")
	all.want(t, "* b", "> b")
}

func TestRow33ExclusionLasts(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	var x exclusions
	subscribe(t, b, ">", all.as("old"), &tidings.SubscribeOptions{Inline: true, Filter: x.allow})
	announce(t, b, "a")
	all.want(t, "old a")
	x.exclude("a") // though the bus knows the name
	announce(t, b, "a")
	all.want(t)
	listen(t, b, ">", all.as("new"))
	listen(t, b, "a", all.as("by name"))
	announce(t, b, "a")
	all.want(t, "by name a", "new a")
}

func TestRow34MatchesAndListening(t *testing.T) {
	b := kit(t, tidings.Options{})
	var x exclusions
	s := subscribe(t, b, "a.*", failWith(nil), &tidings.SubscribeOptions{Inline: true, Filter: x.allow})
	for _, c := range []struct {
		topic string
		want  bool
	}{{"a.b", true}, {"a.c", true}, {"a", false}, {"a.b.c", false}, {"", false}} {
		if s.Matches(c.topic) != c.want || b.Listening(c.topic) != c.want {
			t.Errorf("%q: Matches %v, Listening %v", c.topic, s.Matches(c.topic), b.Listening(c.topic))
		}
	}
	x.exclude("a.b")
	if s.Matches("a.b") || b.Listening("a.b") || !s.Matches("a.c") || !b.Listening("a.c") {
		t.Error("the filter is not asked")
	}
	s.Stop()
	if b.Listening("a.c") {
		t.Error("somebody listens after Stop")
	}
}

// A subscription for the length of a call is what defer is for.
func TestRow35TemporarySubscription(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	during := func(do func()) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = p.(error)
			}
		}()
		s, err := b.Subscribe(ctx, "a", all.as("during"), &tidings.SubscribeOptions{Inline: true})
		if err != nil {
			return err
		}
		defer s.Stop()
		do()
		return nil
	}
	if err := during(func() { announce(t, b, "a") }); err != nil {
		t.Error(err)
	}
	if err := during(func() { announce(t, b, "a"); panic(errBoom) }); err != errBoom {
		t.Error(err)
	}
	// It is the bus's, not the goroutine's.
	if err := during(func() {
		var wg sync.WaitGroup
		wg.Go(func() { announce(t, b, "a") })
		wg.Wait()
	}); err != nil {
		t.Error(err)
	}
	all.want(t, "during a", "during a", "during a")
	announce(t, b, "a")
	all.want(t)
	if b.Listening("a") {
		t.Error("it is still there")
	}
}

func TestRow36SilencedAtEachEvent(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	var silent atomic.Bool
	subscribe(t, b, "a", all.as("h"), &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return !silent.Load() }})
	run(t, b, "a", func(context.Context) { silent.Store(true) })
	all.want(t, "h a")
	announce(t, b, "a")
	run(t, b, "a", func(context.Context) { silent.Store(false) })
	all.want(t)
	announce(t, b, "a")
	all.want(t, "h a")
}

func TestRow37Spans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := rowBus(t, tidings.Options{}), told{}
		b.ExpectErrorMatching("ended before", func(err error) bool { return strings.Contains(err.Error(), "ended before") })
		s := listen(t, b, ">", func(_ context.Context, e tidings.Event) error {
			all.note(e.Topic(), e.Duration().String(), fmt.Sprint(e.Err()))
			return nil
		})
		_, one := b.Begin(ctx, "one", nil)
		time.Sleep(time.Second)
		_, two := b.Begin(ctx, "two", nil)
		time.Sleep(time.Second)
		s.Stop() // too late for both
		one.End(nil)
		two.End(errBoom)
		all.want(t, "one 2s <nil>", "two 1s boom")
		one.End(nil)
		if got := b.Errors(); len(got) != 1 {
			t.Errorf("reported %v", got)
		}
		all.want(t)
	})
}

func TestRow38SpanOfNobody(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	_, span := b.Begin(ctx, "a", nil)
	listen(t, b, "a", all.as("late"))
	span.End(nil)
	span.End(errBoom)
	all.want(t)
}

// A span is a value that one holds, so it may end in any order and on any
// goroutine; there is no stack to pop the wrong one from.
func TestRow39SpansEndInAnyOrder(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	listen(t, b, ">", all.as("h"))
	_, outer := b.Begin(ctx, "outer", nil)
	_, inner := b.Begin(ctx, "inner", nil)
	outer.End(nil)
	var wg sync.WaitGroup
	wg.Go(func() { inner.End(nil) })
	wg.Wait()
	all.want(t, "h outer", "h inner")
}

func TestRow40IDs(t *testing.T) {
	b, other := kit(t, tidings.Options{App: "shop", Instance: "1"}), kit(t, tidings.Options{App: "shop", Instance: "1"})
	ids, sources := map[string]int{}, map[string]int{}
	for _, bus := range []either{b, other} {
		listen(t, bus, ">", func(_ context.Context, e tidings.Event) error { ids[e.ID()]++; sources[e.Source()]++; return nil })
		announce(t, bus, "a", "a", "b")
		run(t, bus, "a", func(context.Context) {})
	}
	if len(ids) != 8 || len(sources) != 1 || sources["//shop/1"] != 8 {
		t.Errorf("ids %v, sources %v", ids, sources)
	}
}

func TestRow41BusesAreApart(t *testing.T) {
	one, two, all := newBus(t, tidings.Options{}), newBus(t, tidings.Options{}), told{}
	onOne := tidings.NewTopic[int]("row41.n").On(one)
	listen(t, one, ">", all.as("one"))
	listen(t, two, ">", all.as("two"))
	announce(t, two, "row41.n")
	all.want(t, "two row41.n")
	_ = onOne.Publish(ctx, 1)
	all.want(t, "one row41.n")
	_ = onOne.On(two).Publish(ctx, 1)
	all.want(t, "two row41.n")
	if first := tidings.Default(); tidings.Default() != first {
		t.Error("the Default bus was replaced")
	}
}

func TestRow42BusOfNobody(t *testing.T) {
	b, all := kit(t, tidings.Options{}), told{}
	run(t, b, "a", func(context.Context) { all.note("block") })
	announce(t, b, "a")
	_, span := b.Begin(ctx, "a", nil)
	span.End(nil)
	all.want(t, "block")
	if got := b.Debugger().Snapshot().Topics; len(got) != 1 || got[0].Events != 0 {
		t.Errorf("made events: %+v", got)
	}
}

func TestRow43Shown(t *testing.T) {
	b := newBus(t, tidings.Options{App: "shop"})
	s, err := b.Subscribe(ctx, "a.*", failWith(nil), &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		t.Fatal(err)
	}
	announce(t, b, "a.b", "a.c", "a.b")
	if got := s.String(); got != `subscription a.* of group "shop"` {
		t.Error(got)
	}
	snap := b.Debugger().Snapshot()
	if len(snap.Subscriptions) != 1 || snap.Subscriptions[0].Handled != 3 || !strings.Contains(snap.Subscriptions[0].Place, "notifications_rows_test.go:") ||
		len(snap.Topics) != 2 || snap.Topics[0].Events != 2 {
		t.Errorf("%+v", snap)
	}
	for i := range 10_000 { // names made of ids
		announce(t, b, "user."+strconv.Itoa(i))
	}
	if n := len(b.Debugger().Snapshot().Topics); n > 5000 {
		t.Errorf("%d names are remembered", n)
	}
}

// The race detector is the judge of this one, too.
func TestRow44ConcurrentUse(t *testing.T) {
	b := kit(t, tidings.Options{})
	var constant atomic.Int64
	subscribe(t, b, "a", func(context.Context, tidings.Event) error { constant.Add(1); return nil }, &tidings.SubscribeOptions{Inline: true})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				s := subscribe(t, b, ">", func(ctx context.Context, e tidings.Event) error {
					if e.Topic() == "a" {
						return b.Publish(ctx, "b", nil)
					}
					return nil
				}, &tidings.SubscribeOptions{Inline: true})
				announce(t, b, "a")
				s.Stop()
			}
		})
	}
	wg.Wait()
	if n := constant.Load(); n != 800 {
		t.Errorf("handled %d of 800", n)
	}
}

func TestRow45Event(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := rowBus(t, tidings.Options{App: "shop", Instance: "1"})
		payload, begun := &order{7}, time.Now()
		var e tidings.Event
		listen(t, b, "a", func(_ context.Context, got tidings.Event) error { e = got.Keep(); return nil })
		_ = b.Instrument(ctx, "a", payload, func(context.Context) error { time.Sleep(time.Second); return errBoom })
		if e.Topic() != "a" || e.Source() != "//shop/1" || e.Payload() != any(payload) || !e.Time().Equal(begun) ||
			e.Duration() != time.Second || e.Err() != errBoom || e.Attempt() != 1 || e.String() != "a "+e.ID() {
			t.Errorf("%v of %v: %v, %v, %v, %v, attempt %d", e, e.Source(), e.Payload(), e.Time(), e.Duration(), e.Err(), e.Attempt())
		}
	})
	var zero tidings.Event
	if zero.Topic() != "" || zero.ID() != "" || !zero.Time().IsZero() || zero.Duration() != 0 || zero.Decode(new(int)) == nil {
		t.Errorf("the zero event: %v", zero)
	}
}

// What else to measure is up to a subscription: Start reads it, the context
// carries it, the handler reads it again.
func TestRow46MeasureMore(t *testing.T) {
	b := kit(t, tidings.Options{})
	type key struct{}
	mallocs := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.Mallocs
	}
	var allocated uint64
	subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error {
		allocated = mallocs() - ctx.Value(key{}).(uint64)
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context {
		return context.WithValue(ctx, key{}, mallocs())
	}})
	var keep []*order
	run(t, b, "a", func(context.Context) {
		for i := range 10_000 {
			keep = append(keep, &order{i})
		}
	})
	if allocated < uint64(len(keep)) {
		t.Errorf("%d allocations were seen", allocated)
	}
}

func TestRow47NestedEventsKnowTheirParent(t *testing.T) {
	b := kit(t, tidings.Options{})
	ids, parents := map[string]string{}, map[string]string{}
	subscribe(t, b, ">", func(ctx context.Context, e tidings.Event) error {
		ids[e.Topic()], parents[e.Topic()] = e.ID(), tidings.Parent(ctx, e)
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context { return ctx }})
	_ = b.Instrument(ctx, "request", nil, func(ctx context.Context) error {
		inner, span := b.Begin(ctx, "render", nil)
		_ = b.Publish(inner, "cache.miss", nil)
		span.End(nil)
		return b.Instrument(ctx, "sql", nil, nil)
	})
	for child, parent := range map[string]string{"cache.miss": "render", "render": "request", "sql": "request"} {
		if parents[child] != ids[parent] || ids[parent] == "" {
			t.Errorf("the parent of %s is %q, want %s %q", child, parents[child], parent, ids[parent])
		}
	}
	if parents["request"] != "" {
		t.Errorf("the outermost has a parent: %q", parents["request"])
	}
}

// ledger is one struct that handles several topics.
type ledger struct{ told }

func (l *ledger) Placed(_ context.Context, _ tidings.Event, o order) error {
	l.note("placed", fmt.Sprint(o.ID))
	return nil
}

func (l *ledger) Query(_ context.Context, e tidings.Event) error {
	l.note("query", e.Topic())
	return nil
}

// Methods are handlers without more ado; package subscriber does the same for all
// methods of a struct.
func TestRow48MethodsAreHandlers(t *testing.T) {
	b, l := typedRowBus(t, tidings.Options{}), &ledger{}
	placed := tidings.NewTopic[order]("row48.placed").On(b)
	one, err := placed.Subscribe(ctx, l.Placed, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		t.Fatal(err)
	}
	two := listen(t, b, "sql.*", l.Query)
	_ = placed.Publish(ctx, order{7})
	announce(t, b, "sql.select")
	l.want(t, "placed 7", "query sql.select")
	one.Stop()
	two.Stop()
	_ = placed.Publish(ctx, order{8})
	announce(t, b, "sql.select")
	l.want(t)
}

// Who attaches twice has two, and each lets go of its own.
func TestRow51TwoObjects(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	one, two := &ledger{}, &ledger{}
	first := listen(t, b, "sql.*", one.Query)
	listen(t, b, "sql.*", two.Query)
	announce(t, b, "sql.select")
	one.want(t, "query sql.select")
	two.want(t, "query sql.select")
	first.Stop()
	announce(t, b, "sql.select")
	one.want(t)
	two.want(t, "query sql.select")
}

func TestRow52LevelIsAskedAtEachEvent(t *testing.T) {
	var log lines
	var level slog.LevelVar
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: &level}))
	b := kit(t, tidings.Options{})
	subscribe(t, b, "sql.*", func(ctx context.Context, e tidings.Event) error {
		logger.DebugContext(ctx, "query", "topic", e.Topic())
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return logger.Enabled(ctx, slog.LevelDebug) }})
	for _, l := range []slog.Level{slog.LevelInfo, slog.LevelDebug, slog.LevelError} {
		level.Set(l)
		if b.Listening("sql.query") != (l == slog.LevelDebug) {
			t.Errorf("at level %v listening: %v", l, b.Listening("sql.query"))
		}
		announce(t, b, "sql.query")
	}
	if got := log.with("topic=sql.query"); len(got) != 1 {
		t.Errorf("logged %q", got)
	}
}

func TestRow53FailureIsLoggedAndReported(t *testing.T) {
	var log lines
	b := rowBus(t, tidings.Options{Logger: log.logger()})
	b.ExpectError(errBoom)
	listen(t, b, "a", failWith(errBoom))
	announce(t, b, "a")
	got := log.with("boom")
	if len(got) != 1 || !strings.Contains(got[0], "topic=a") || !strings.Contains(got[0], "pattern=a") {
		t.Errorf("logged %q", got)
	}
	var e *tidings.Error
	if all := b.Errors(); len(all) != 1 || !errors.As(all[0], &e) || e.Op != "handle" || e.Topic != "a" || !errors.Is(e, errBoom) {
		t.Errorf("reported %v", all)
	}
}

func TestRow58FilterGetsTheTopicOnly(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	subscribe(t, b, ">", all.as("h"), &tidings.SubscribeOptions{Inline: true, Filter: func(topic string) bool {
		all.note("asked for", topic)
		return topic == "a"
	}})
	for _, topic := range []string{"a", "b"} {
		if b.Listening(topic) {
			all.note("build", topic)
			announce(t, b, topic)
		}
	}
	all.want(t, "asked for a", "build a", "asked for a", "h a", "asked for b")
}

// What is published is what arrives: no payload, a value, or an object as it is.
func TestRow60PayloadIsUntouched(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	var got any
	listen(t, b, "a", func(_ context.Context, e tidings.Event) error { got = e.Payload(); return nil })
	for _, payload := range []any{nil, 7, "text", order{7}, &order{7}} {
		if err := b.Publish(ctx, "a", payload); err != nil || got != payload {
			t.Errorf("%#v became %#v, %v", payload, got, err)
		}
	}
}

func TestRow64Tags(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error { return b.Publish(ctx, "b", nil) }, nil)
	subscribe(t, b, "b", func(ctx context.Context, _ tidings.Event) error {
		all.note(fmt.Sprint(tidings.Tags(ctx)))
		return nil
	}, nil)
	outer := tidings.WithTags(ctx, map[string]any{"request": 1, "user": "ann"})
	inner := tidings.WithTags(outer, map[string]any{"user": "bob"})
	_ = b.Publish(inner, "a", nil) // by a handler of a to one of b
	_ = b.Publish(outer, "a", nil)
	_ = b.Publish(ctx, "a", nil)
	drain(t, b)
	all.want(t, "map[request:1 user:bob]", "map[request:1 user:ann]", "map[]")
}

// The context of a publisher travels: its values, not its end, and nothing back.
func TestRow65ContextTravels(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	type key struct{}
	var value any
	var ended error
	subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error {
		value, ended = ctx.Value(key{}), ctx.Err()
		_ = tidings.WithTags(ctx, map[string]any{"set": "inside"})
		return nil
	}, nil)
	publisher, cancel := context.WithCancel(context.WithValue(ctx, key{}, "of the publisher"))
	announceErr := b.Publish(publisher, "a", nil)
	cancel()
	drain(t, b)
	if announceErr != nil || value != "of the publisher" || ended != nil || tidings.Tags(publisher) != nil {
		t.Errorf("published %v; the handler saw %v, %v; tags %v", announceErr, value, ended, tidings.Tags(publisher))
	}
}

// What publishing middleware does to a payload is done for everybody.
func TestRow66MiddlewareSeesPayloadsFirst(t *testing.T) {
	b := rowBus(t, tidings.Options{PublishMiddleware: []func(tidings.PublishFunc) tidings.PublishFunc{
		func(next tidings.PublishFunc) tidings.PublishFunc {
			return func(ctx context.Context, topic string, payload any) error {
				if m, ok := payload.(map[string]any); ok && m["password"] != nil {
					m = maps.Clone(m)
					m["password"] = "[FILTERED]"
					payload = m
				}
				return next(ctx, topic, payload)
			}
		}}})
	all := told{}
	for range 2 {
		listen(t, b, "a", func(_ context.Context, e tidings.Event) error { all.note(fmt.Sprint(e.Payload())); return nil })
	}
	mine := map[string]any{"user": "ann", "password": "x"}
	if err := b.Publish(ctx, "a", mine); err != nil || mine["password"] != "x" {
		t.Errorf("%v, the publisher's own is now %v", err, mine)
	}
	all.want(t, "map[password:[FILTERED] user:ann]", "map[password:[FILTERED] user:ann]")
}
