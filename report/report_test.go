package report_test

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory"
	"github.com/tidings-go/tidings/redact"
	"github.com/tidings-go/tidings/report"
	"github.com/tidings-go/tidings/tidingstest"
)

var inline = &tidings.SubscribeOptions{Inline: true}

// newBus fails the test for whatever goes wrong on it.
func newBus(t testing.TB, o tidings.Options) *tidings.Bus {
	t.Helper()
	return tidingstest.New(t, tidingstest.Options{Bus: o, NoEncode: true}).Bus
}

// listen collects what is reported.
func listen(t testing.TB, b *tidings.Bus, pattern string) *[]report.Event {
	t.Helper()
	got := new([]report.Event)
	_, err := report.Subscribe(t.Context(), b, pattern, func(_ context.Context, e report.Event) error {
		*got = append(*got, e)
		return nil
	}, inline)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func strict(b *tidings.Bus) *report.Reporter { return report.New(b, report.Options{Strict: true}) }

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// here is the line of its caller.
func here() int {
	_, _, line, _ := runtime.Caller(1)
	return line
}

type user struct {
	Name     string
	Password string
}

type Box[T any] struct{ V T }

func TestNotify(t *testing.T) {
	b := newBus(t, tidings.Options{})
	got, r := listen(t, b, ">"), strict(b)
	before := time.Now()
	secret := map[string]any{"id": 7, "nested": map[string]any{"token": "x"}}
	noError(t, r.Notify(t.Context(), "user.created", secret))
	noError(t, r.Notify(t.Context(), "user.none", nil))
	noError(t, r.Notify(t.Context(), "user.open", report.Unfiltered(secret)))
	noError(t, r.NotifyObject(t.Context(), &user{"Ada", "x"}))
	noError(t, r.NotifyObject(t.Context(), report.Unfiltered(user{"Ada", "x"})))
	noError(t, r.NotifyObject(t.Context(), Box[user]{user{"Ada", "x"}}))
	for i, want := range []struct {
		name    string
		payload any
	}{
		{"user.created", map[string]any{"id": 7, "nested": map[string]any{"token": redact.Filtered}}},
		{"user.none", nil},
		{"user.open", secret},
		{"report_test.user", &user{"Ada", redact.Filtered}},
		{"report_test.user", user{"Ada", "x"}},
		{"report_test.box", Box[user]{user{"Ada", redact.Filtered}}},
	} {
		e := (*got)[i]
		if e.Name != want.name || !reflect.DeepEqual(e.Payload, want.payload) || e.Tags != nil || e.Context != nil {
			t.Errorf("%+v, want %+v", e, want)
		}
		if e.Raw.Topic() != e.Name || e.Raw.ID() == "" || e.Timestamp.Before(before) || e.Timestamp.After(time.Now()) {
			t.Errorf("event %v at %v", e.Raw, e.Timestamp)
		}
	}
	if secret["nested"].(map[string]any)["token"] != "x" {
		t.Error("the payload given was changed")
	}
}

func TestFilterOption(t *testing.T) {
	b := newBus(t, tidings.Options{})
	got := listen(t, b, ">")
	r := report.New(b, report.Options{Strict: true, Filter: redact.New("name")})
	noError(t, r.Notify(t.Context(), "a", user{"Ada", "x"}))
	if want := (user{redact.Filtered, "x"}); (*got)[0].Payload != want {
		t.Errorf("%+v, want %+v", (*got)[0].Payload, want)
	}
}

func TestErrors(t *testing.T) {
	b := newBus(t, tidings.Options{Strict: true})
	failed := errors.New("failed")
	_, err := report.Subscribe(t.Context(), b, "fails", func(context.Context, report.Event) error { return failed }, inline)
	noError(t, err)
	if _, err := report.Subscribe(t.Context(), b, "nil", nil, nil); err == nil {
		t.Error("a nil handler was subscribed")
	}
	var reported []error
	loud := strict(b)
	quiet := report.New(b, report.Options{OnError: func(_ context.Context, err error) { reported = append(reported, err) }})
	calls := map[string]func(*report.Reporter) error{
		"white space":    func(r *report.Reporter) error { return r.Notify(t.Context(), "user created", nil) },
		"empty":          func(r *report.Reporter) error { return r.Notify(t.Context(), "", nil) },
		"trailing dot":   func(r *report.Reporter) error { return r.Notify(t.Context(), "a.", nil) },
		"double dot":     func(r *report.Reporter) error { return r.Notify(t.Context(), "a..b", nil) },
		"leading dot":    func(r *report.Reporter) error { return r.Notify(t.Context(), ".a", nil) },
		"wildcard":       func(r *report.Reporter) error { return r.Notify(t.Context(), "a.*", nil) },
		"too long":       func(r *report.Reporter) error { return r.Notify(t.Context(), strings.Repeat("a", 2000), nil) },
		"the bus's own":  func(r *report.Reporter) error { return r.Notify(t.Context(), "tidings.settled", nil) },
		"NATS' own":      func(r *report.Reporter) error { return r.Notify(t.Context(), "_INBOX.a", nil) },
		"debug":          func(r *report.Reporter) error { return r.Debug(t.Context(), "a b", func() any { return nil }) },
		"nil object":     func(r *report.Reporter) error { return r.NotifyObject(t.Context(), nil) },
		"nameless":       func(r *report.Reporter) error { return r.NotifyObject(t.Context(), struct{}{}) },
		"string":         func(r *report.Reporter) error { return r.NotifyObject(t.Context(), "a") },
		"the subscriber": func(r *report.Reporter) error { return r.Notify(t.Context(), "fails", nil) },
	}
	for what, call := range calls {
		reported = nil
		if err := call(loud); err == nil {
			t.Errorf("%s: a strict reporter returns no error", what)
		}
		if err := call(quiet); err != nil || len(reported) != 1 {
			t.Errorf("%s: returned %v, reported %v", what, err, reported)
		}
	}
	if err := calls["the subscriber"](loud); !errors.Is(err, failed) {
		t.Error(err)
	}
	if err := calls["white space"](loud); !errors.Is(err, tidings.ErrTopic) {
		t.Error(err)
	}
}

func TestErrorsAreLoggedByDefault(t *testing.T) {
	var log strings.Builder
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	noError(t, report.New(newBus(t, tidings.Options{}), report.Options{}).Notify(t.Context(), "a b", nil))
	if !strings.Contains(log.String(), "bad topic") {
		t.Errorf("logged: %q", log.String())
	}
}

func TestDebug(t *testing.T) {
	b := newBus(t, tidings.Options{})
	got, ctx := listen(t, b, "heard"), t.Context()
	on, off := strict(b), report.New(b, report.Options{Strict: true, NoDebug: true})
	if !on.DebugMode(ctx) || off.DebugMode(ctx) || !off.DebugMode(report.WithDebug(ctx)) {
		t.Error("debug mode is on by default, and off with NoDebug but in WithDebug")
	}
	ran := 0
	payload := func() any { ran++; return user{"Ada", "x"} }
	noError(t, on.Debug(ctx, "heard", payload))
	noError(t, on.Debug(ctx, "unheard", payload))
	noError(t, off.Debug(ctx, "heard", payload))
	noError(t, off.Debug(report.WithDebug(ctx), "heard", payload))
	if ran != 2 || len(*got) != 2 || (*got)[0].Payload != (user{"Ada", redact.Filtered}) {
		t.Errorf("ran %d times, got %v", ran, *got)
	}
}

func wrapper(ctx context.Context, r *report.Reporter) error { return r.Notify(ctx, "a", nil) }

func TestLocation(t *testing.T) {
	b := newBus(t, tidings.Options{})
	got, r, ctx := listen(t, b, ">"), strict(b), t.Context()
	line := here()
	noError(t, r.Notify(ctx, "a", nil))
	noError(t, r.NotifyObject(ctx, user{}))
	noError(t, r.Debug(ctx, "a", func() any { return nil }))
	noError(t, wrapper(ctx, report.New(b, report.Options{Strict: true, CallerDepth: 1})))
	for i, e := range *got {
		if l := e.Location; path.Base(l.File) != "report_test.go" || l.Line != line+1+i || !strings.HasSuffix(l.Function, "report_test.TestLocation") {
			t.Errorf("%d: %+v, want line %d", i, l, line+1+i)
		}
	}
	noError(t, report.New(b, report.Options{Strict: true, CallerDepth: 1000}).Notify(ctx, "a", nil))
	noError(t, b.Publish(ctx, "a", nil))
	for _, e := range (*got)[4:] {
		if e.Location != (report.Location{}) {
			t.Errorf("%+v", e.Location)
		}
	}
}

type tenant string

func TestTagsAndContext(t *testing.T) {
	b := newBus(t, tidings.Options{})
	got, r := listen(t, b, ">"), strict(b)
	step := func(ctx context.Context, tags, values map[string]any) {
		t.Helper()
		noError(t, r.Notify(ctx, "a", nil))
		e := (*got)[len(*got)-1]
		if !reflect.DeepEqual(e.Tags, tags) || !reflect.DeepEqual(e.Context, values) || !reflect.DeepEqual(report.Context(ctx), values) {
			t.Errorf("tags %v, context %v; want %v, %v", e.Tags, e.Context, tags, values)
		}
	}
	type m = map[string]any
	outer := report.Tagged(t.Context(), "web", m{"a": 1, "context": m{"x": 1}, "source_location": 3}, nil, struct{}{}, 7)
	step(outer, m{"web": true, "a": 1}, nil)
	inner := report.Tagged(outer, tenant("acme"), m{"a": 2}, map[tenant]int{"b": 3}, &user{Name: "Ada"})
	step(inner, m{"web": true, "a": 2, "b": 3, "report_test.tenant": tenant("acme"), "report_test.user": &user{Name: "Ada"}}, nil)
	step(outer, m{"web": true, "a": 1}, nil)

	given := m{"request": 1, "x": 1}
	one := report.WithContext(outer, given)
	given["request"] = 9
	step(one, m{"web": true, "a": 1}, m{"request": 1, "x": 1})
	two := report.WithContext(one, m{"x": 2})
	step(two, m{"web": true, "a": 1}, m{"request": 1, "x": 2})
	step(one, m{"web": true, "a": 1}, m{"request": 1, "x": 1})
	step(report.ClearContext(two), m{"web": true, "a": 1}, nil)
	step(report.WithContext(report.ClearContext(two), m{"y": 1}), m{"web": true, "a": 1}, m{"y": 1})
	if report.ClearContext(outer) != outer {
		t.Error("clearing nothing makes a context")
	}
}

// What is reported in one process is the same in another, but for Go's types.
func TestOverTheWire(t *testing.T) {
	url := "mem:" + t.Name()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	bus := func(app string) *tidings.Bus {
		b := newBus(t, tidings.Options{App: app})
		noError(t, b.Attach(ctx, url))
		return b
	}
	here1, there := bus("a"), bus("b")
	got := make(chan report.Event, 1)
	var inside map[string]any
	_, err := report.Subscribe(ctx, there, "user.*", func(ctx context.Context, e report.Event) error {
		inside = report.Context(ctx)
		got <- e
		return nil
	}, nil)
	noError(t, err)
	line := here() + 2
	tagged := report.WithContext(report.Tagged(ctx, "web"), map[string]any{"request": "r1"})
	noError(t, strict(here1).Notify(tagged, "user.created", user{"Ada", "x"}))
	select {
	case e := <-got:
		values := map[string]any{"request": "r1"}
		if e.Name != "user.created" || !reflect.DeepEqual(e.Payload, map[string]any{"Name": "Ada", "Password": redact.Filtered}) ||
			!reflect.DeepEqual(e.Tags, map[string]any{"web": true}) || !reflect.DeepEqual(e.Context, values) || !reflect.DeepEqual(inside, values) {
			t.Errorf("%+v, context inside %v", e, inside)
		}
		if l := e.Location; path.Base(l.File) != "report_test.go" || l.Line != line || !strings.HasSuffix(l.Function, "TestOverTheWire") {
			t.Errorf("%+v, want line %d", l, line)
		}
		var u user
		if err := e.Raw.Decode(&u); err != nil || u != (user{"Ada", redact.Filtered}) {
			t.Errorf("%+v, %v", u, err)
		}
	case <-ctx.Done():
		t.Fatal("nothing came")
	}
}

// Depth first, and each event with its own location.
func TestNotifyInsideHandler(t *testing.T) {
	b := newBus(t, tidings.Options{})
	r, got := strict(b), (*[]report.Event)(nil)
	line := 0
	_, err := report.Subscribe(t.Context(), b, "outer", func(ctx context.Context, _ report.Event) error {
		line = here() + 1
		return r.Notify(ctx, "inner", nil)
	}, inline)
	noError(t, err)
	got = listen(t, b, ">")
	noError(t, r.Notify(report.Tagged(t.Context(), "web"), "outer", nil))
	if len(*got) != 2 || (*got)[0].Name != "inner" || (*got)[0].Location.Line != line || (*got)[0].Tags["web"] != true {
		t.Errorf("%+v", *got)
	}
}

// Filters that count, or let some through, must not be asked for nothing.
func TestFiltersAreAskedOnce(t *testing.T) {
	b := newBus(t, tidings.Options{})
	asked, yes := 0, false
	_, err := report.Subscribe(t.Context(), b, ">", func(context.Context, report.Event) error { return nil },
		&tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { asked++; return yes }})
	noError(t, err)
	r, ctx := strict(b), t.Context()
	for _, yes = range []bool{false, true} {
		built := 0
		for what, err := range map[string]error{
			"Notify":       r.Notify(ctx, "a", nil),
			"NotifyObject": r.NotifyObject(ctx, user{}),
			"Debug":        r.Debug(ctx, "a", func() any { built++; return nil }),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if asked != 3 || (built == 1) != yes {
			t.Errorf("the filter says %v: asked %d times for 3 events, built %d", yes, asked, built)
		}
		asked = 0
	}
}

func TestClosedBus(t *testing.T) {
	b := newBus(t, tidings.Options{Strict: true})
	_, err := report.Subscribe(t.Context(), b, "a", func(context.Context, report.Event) error { return tidings.ErrClosed }, inline)
	noError(t, err)
	if err := strict(b).Notify(t.Context(), "a", nil); !errors.Is(err, tidings.ErrClosed) {
		t.Errorf("a subscriber's error became %v", err)
	}
	noError(t, b.Close())
	noError(t, strict(b).Notify(t.Context(), "a", nil))
	noError(t, strict(b).Debug(t.Context(), "a", func() any { t.Error("built"); return nil }))
}

func TestNobodyListening(t *testing.T) {
	b := newBus(t, tidings.Options{})
	listen(t, b, "other.*")
	r, ctx := strict(b), t.Context()
	payload, object := any(map[string]any{"token": "x"}), func() any { t.Error("built"); return nil }
	if n := testing.AllocsPerRun(100, func() {
		noError(t, r.Notify(ctx, "user.created", payload))
		noError(t, r.Debug(ctx, "user.created", object))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNotify(b *testing.B) {
	for _, heard := range []bool{false, true} {
		b.Run(map[bool]string{false: "nobody", true: "one"}[heard], func(b *testing.B) {
			bus, err := tidings.New(tidings.Options{}) // with nothing around the handler
			noError(b, err)
			if heard {
				_, err := report.Subscribe(b.Context(), bus, "user.*", func(context.Context, report.Event) error { return nil }, inline)
				noError(b, err)
			}
			r, payload := strict(bus), any(map[string]any{"id": 7})
			b.ReportAllocs()
			for b.Loop() {
				_ = r.Notify(b.Context(), "user.created", payload)
			}
		})
	}
}
