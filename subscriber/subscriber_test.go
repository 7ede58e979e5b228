package subscriber_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/subscriber"
	"github.com/tidings-go/tidings/tidingstest"
)

var inline = &tidings.SubscribeOptions{Inline: true}

func newBus(t *testing.T) *tidingstest.Bus {
	t.Helper()
	return tidingstest.New(t, tidingstest.Options{NoEncode: true})
}

func attach(t *testing.T, b *tidingstest.Bus, namespace string, v any, o *subscriber.Options) *subscriber.Attached {
	t.Helper()
	a, err := subscriber.Attach(t.Context(), b.Bus, namespace, v, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func publish(t *testing.T, b *tidingstest.Bus, topic string, payload any) {
	t.Helper()
	if err := b.Publish(t.Context(), topic, payload); err != nil {
		t.Fatal(err)
	}
}

type base struct{ got []string }

func (b *base) note(s string) error { b.got = append(b.got, s); return nil }

func (b *base) Inherited(_ context.Context, e tidings.Event) error { return b.note(e.Topic()) }

type shop struct{ base }

func (s *shop) Start(_ context.Context, e tidings.Event) error         { return s.note(e.Topic()) }
func (s *shop) Finish(_ context.Context, e tidings.Event) error        { return s.note(e.Topic()) }
func (s *shop) HTTPRequestV2(_ context.Context, e tidings.Event) error { return s.note(e.Topic()) }
func (s *shop) OrderID(_ context.Context, e tidings.Event, n int) error {
	return s.note(e.Topic() + " " + strings.Repeat("i", n))
}
func (s *shop) Variadic(context.Context, tidings.Event, ...int) error    { return s.note("variadic") }
func (s *shop) NoError(context.Context, tidings.Event)                   { _ = s.note("no error") }
func (s *shop) Four(context.Context, tidings.Event, int, int) error      { return s.note("four") }
func (s *shop) OtherError(context.Context, tidings.Event) *tidings.Error { return nil }
func (s *shop) private(context.Context, tidings.Event) error             { return s.note("private") }

func topics(a *subscriber.Attached, names ...string) (got []string) {
	for _, n := range names {
		if slices.ContainsFunc(a.Subscriptions(), func(s *tidings.Subscription) bool { return s.Matches(n) }) {
			got = append(got, n)
		}
	}
	return got
}

func TestMethodsAreTopics(t *testing.T) {
	b, s := newBus(t), &shop{}
	_ = s.private
	a := attach(t, b, "shop", s, &subscriber.Options{Subscribe: inline})
	if n := len(a.Subscriptions()); n != 5 {
		t.Errorf("%d subscriptions: %v", n, a.Subscriptions())
	}
	if s := b.Debugger().Snapshot().Subscriptions[0]; s.Name != "subscriber_test.shop.Finish" {
		t.Errorf("called %q", s.Name)
	}
	named := attach(t, b, "other", table{"a": func(context.Context, tidings.Event) error { return nil }}, &subscriber.Options{Subscribe: &tidings.SubscribeOptions{Name: "mine"}})
	if got := named.Subscriptions()[0].String(); !strings.HasPrefix(got, `subscription "mine.a":`) {
		t.Errorf("called %s", got)
	}
	all := []string{"start", "finish", "http_request_v2", "order_id", "inherited", "variadic", "no_error", "four", "other_error", "private"}
	for _, n := range all {
		publish(t, b, "shop."+n, 3)
	}
	want := []string{"shop.start", "shop.finish", "shop.http_request_v2", "shop.order_id iii", "shop.inherited"}
	if !slices.Equal(s.got, want) {
		t.Errorf("got %q, want %q", s.got, want)
	}
}

func TestTopicAndExcept(t *testing.T) {
	b, s := newBus(t), &shop{}
	a := attach(t, b, "shop", s, &subscriber.Options{
		Topic:  func(namespace, event string) string { return event + "." + namespace },
		Except: []string{"Start", "Finish", "Inherited", "Start"},
	})
	if got := topics(a, "start.shop", "inherited.shop", "order_id.shop", "http_request_v2.shop", "shop.order_id"); !slices.Equal(got, []string{"order_id.shop", "http_request_v2.shop"}) {
		t.Errorf("%q", got)
	}
	if a := attach(t, b, "", s, nil); len(topics(a, "order_id")) != 1 {
		t.Errorf("without a namespace: %v", a.Subscriptions())
	}
}

type table map[string]tidings.Handler

func (h table) Handlers() map[string]tidings.Handler { return h }
func (h table) Method(context.Context, tidings.Event) error {
	return errors.New("a table is used alone")
}

func TestTable(t *testing.T) {
	b, called := newBus(t), 0
	h := func(context.Context, tidings.Event) error { called++; return nil }
	v := table{"OrderPlaced": h, "order_sent": h, "left_out": h}
	attach(t, b, "shop", v, &subscriber.Options{Subscribe: inline, Except: []string{"left_out"}})
	for _, n := range []string{"order_placed", "order_sent", "left_out", "method"} {
		publish(t, b, "shop."+n, nil)
	}
	if called != 2 || len(v) != 3 {
		t.Errorf("called %d times, table %v", called, v)
	}
}

type byValue struct{}

func (byValue) One(context.Context, tidings.Event) error  { return nil }
func (*byValue) Two(context.Context, tidings.Event) error { return nil }

func TestErrorsLeaveNothing(t *testing.T) {
	h := func(context.Context, tidings.Event) error { return nil }
	for _, c := range []struct {
		what string
		v    any
		o    *subscriber.Options
		want string
	}{
		{"nil", nil, nil, "no value"},
		{"no handlers", struct{}{}, nil, "func(context.Context, tidings.Event, T) error"},
		{"empty table", table{}, nil, "Handlers() map[string]tidings.Handler"},
		{"all left out", table{"a": h}, &subscriber.Options{Except: []string{"a"}}, "nothing to subscribe"},
		{"pointer receiver", byValue{}, nil, "Two has a pointer receiver"},
		{"unknown exception", &shop{}, &subscriber.Options{Except: []string{"Sart"}}, `"Sart"`},
		{"level alone", &shop{}, &subscriber.Options{Level: func(string) slog.Level { return 0 }}, "set Logger"},
		{"the second is nil", table{"a": h, "b": nil}, nil, "b: tidings: subscribe n.b: the handler is nil"},
		{"the second is nil and logs", table{"a": h, "b": nil}, &subscriber.Options{Logger: slog.Default()}, "the handler is nil"},
		{"bad topic", table{"a": h, "b c": h}, nil, "bad topic"},
		{"bad option", &shop{}, &subscriber.Options{Subscribe: &tidings.SubscribeOptions{Queue: -1}}, "Queue is negative"},
	} {
		b := newBus(t)
		a, err := subscriber.Attach(t.Context(), b.Bus, "n", c.v, c.o)
		if a != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
		if s := b.Debugger().Snapshot().Subscriptions; len(s) != 0 {
			t.Errorf("%s leaves %v", c.what, s)
		}
	}
	if _, err := subscriber.Attach(t.Context(), newBus(t).Bus, "n.>", table{"a": h}, nil); !errors.Is(err, tidings.ErrTopic) {
		t.Errorf("%v is no ErrTopic", err)
	}
}

func TestAttachedTwiceBothLive(t *testing.T) {
	b, s := newBus(t), &shop{}
	one := attach(t, b, "shop", s, &subscriber.Options{Subscribe: inline})
	two := attach(t, b, "shop", s, &subscriber.Options{Subscribe: inline})
	publish(t, b, "shop.start", nil)
	one.Detach()
	one.Detach()
	publish(t, b, "shop.start", nil)
	if err := two.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	publish(t, b, "shop.start", nil)
	if len(s.got) != 3 {
		t.Errorf("got %q", s.got)
	}
}

type slow struct{ begun, end chan struct{} }

func (s slow) One(ctx context.Context, _ tidings.Event) error {
	s.begun <- struct{}{}
	select {
	case <-s.end:
	case <-ctx.Done():
	}
	return nil
}

func TestDrainWaitsAndSaysWhatItCut(t *testing.T) {
	for _, cut := range []bool{false, true} {
		b, s := newBus(t), slow{make(chan struct{}), make(chan struct{})}
		a := attach(t, b, "n", s, nil)
		publish(t, b, "n.one", nil)
		<-s.begun
		ctx, cancel := context.WithCancel(t.Context())
		drained := make(chan error)
		go func() { drained <- a.Drain(ctx) }()
		if !cut {
			close(s.end)
		} else {
			cancel()
		}
		if err := <-drained; errors.Is(err, context.Canceled) != cut {
			t.Errorf("cut %v: %v", cut, err)
		}
		cancel()
	}
}

type typed struct{ got chan order }

type order struct{ ID int }

func (v typed) Placed(_ context.Context, _ tidings.Event, o order) error { v.got <- o; return nil }

func TestTypedPayloads(t *testing.T) {
	for _, encode := range []bool{false, true} {
		b, v := tidingstest.New(t, tidingstest.Options{NoEncode: !encode}), typed{make(chan order, 9)}
		b.ExpectErrorMatching("the payload that is no order", func(err error) bool { return strings.Contains(err.Error(), "cannot decode n.placed from //") })
		a := attach(t, b, "n", v, &subscriber.Options{Subscribe: &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 3, Backoff: time.Hour}}})
		for _, payload := range []any{order{1}, &order{2}, map[string]int{"ID": 3}, "no order"} {
			publish(t, b, "n.placed", payload)
		}
		for want := range 3 {
			if got := <-v.got; got.ID != want+1 {
				t.Errorf("%+v, want %d", got, want+1)
			}
		}
		// It would wait an hour to be tried again.
		if err := a.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if errs := b.Errors(); len(errs) != 1 {
			t.Errorf("reported: %v", errs)
		}
	}
}

type failing struct{}

func (failing) Fails(context.Context, tidings.Event) error                         { return errors.New("oh") }
func (failing) Panics(context.Context, tidings.Event) error                        { panic("ah") }
func (failing) Decodes(context.Context, tidings.Event, struct{ A chan int }) error { return nil }

func TestFailures(t *testing.T) {
	var log bytes.Buffer
	for _, logs := range []bool{false, true} {
		b, o := newBus(t), &subscriber.Options{Subscribe: inline}
		b.AllowErrors(nil)
		if logs {
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		}
		attach(t, b, "n", failing{}, o)
		for _, n := range []string{"fails", "panics", "decodes"} {
			publish(t, b, "n."+n, "x")
		}
		if want := map[bool]int{false: 3, true: 0}[logs]; len(b.Errors()) != want {
			t.Errorf("log subscriber %v: reported %v", logs, b.Errors())
		}
	}
	lines := strings.SplitAfter(log.String(), "\n")
	for i, want := range [][]string{
		{`level=ERROR msg="could not log \"n.fails\" event" class=*errors.errorString message=oh`},
		{`could not log \"n.panics\" event" class=string message="panic: ah" stack=`, "failing.Panics"},
		{`could not log \"n.decodes\" event`, "cannot decode n.decodes"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("%s lacks %s", lines[i], w)
			}
		}
	}
}

func TestSilencing(t *testing.T) {
	b, level := newBus(t), &slog.LevelVar{}
	open, s := true, &shop{}
	attach(t, b, "shop", s, &subscriber.Options{
		Subscribe: &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return open }},
		Logger:    slog.New(slog.NewTextHandler(&bytes.Buffer{}, &slog.HandlerOptions{Level: level})),
		Level: func(method string) slog.Level {
			if method == "Start" {
				return slog.LevelDebug
			}
			return slog.LevelWarn
		},
	})
	step := func(l slog.Level, want ...string) {
		t.Helper()
		level.Set(l)
		s.got = nil
		for _, n := range []string{"shop.start", "shop.finish"} {
			if b.Listening(n) != slices.Contains(want, n) {
				t.Errorf("level %v: listening to %s: %v", l, n, b.Listening(n))
			}
			publish(t, b, n, nil)
		}
		if !slices.Equal(s.got, want) {
			t.Errorf("level %v: got %q, want %q", l, s.got, want)
		}
	}
	step(slog.LevelInfo, "shop.finish")
	step(slog.LevelDebug, "shop.start", "shop.finish")
	step(slog.LevelError)
	open = false
	step(slog.LevelDebug)
}

func TestAttachInsideHandler(t *testing.T) {
	b, s := newBus(t), &shop{}
	attach(t, b, "outer", table{"go": func(ctx context.Context, e tidings.Event) error {
		a, err := subscriber.Attach(ctx, b.Bus, "shop", s, &subscriber.Options{Subscribe: inline})
		if err != nil {
			return err
		}
		defer a.Detach()
		return b.Publish(ctx, "shop.start", nil)
	}}, &subscriber.Options{Subscribe: inline})
	publish(t, b, "outer.go", nil)
	publish(t, b, "shop.start", nil)
	if len(s.got) != 1 {
		t.Errorf("got %q", s.got)
	}
}
