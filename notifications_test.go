package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// A test for each row of docs/notifications.md: what
// ActiveSupport::Notifications does there, and what is done here instead.
// TestNotificationsDocIsComplete holds the two together.

func TestRow01Subscribe(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	s := listen(t, b, "order.placed", all.as("a"))
	announce(t, b, "order.placed")
	all.want(t, "a order.placed")
	s.Stop()
	announce(t, b, "order.placed")
	all.want(t)
}

func TestRow02Patterns(t *testing.T) {
	regex := func(s string) func(string) bool { return regexp.MustCompile(s).MatchString }
	topics := []string{"sql.order", "order.sql", "order.sql.slow", "Order.sql"}
	for _, c := range []struct {
		pattern string
		filter  func(string) bool
		want    []string
	}{
		{"order.sql", nil, []string{"order.sql"}},
		{"order.*", nil, []string{"order.sql"}},
		{"order.>", nil, []string{"order.sql", "order.sql.slow"}},
		{">", nil, topics},
		{">", regex(`sql`), topics},
		{">", regex(`^sql|sql$`), []string{"sql.order", "order.sql", "Order.sql"}},
		{"order.>", regex(`w$`), []string{"order.sql.slow"}},
	} {
		b := newBus(t, tidings.Options{})
		var got []string
		subscribe(t, b, c.pattern, func(_ context.Context, e tidings.Event) error { got = append(got, e.Topic()); return nil },
			&tidings.SubscribeOptions{Inline: true, Filter: c.filter})
		announce(t, b, topics...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.pattern, got, c.want)
		}
	}
	if err := newBus(t, tidings.Options{}).Publish(ctx, "", nil); !errors.Is(err, tidings.ErrTopic) {
		t.Errorf("the empty topic: %v", err)
	}
}

func TestRow03BadPattern(t *testing.T) {
	b := newBus(t, tidings.Options{})
	for _, pattern := range []string{"", "order.", "ord*", "order.>.x", "a b"} {
		if s, err := b.Subscribe(ctx, pattern, failWith(nil), nil); s != nil || !errors.Is(err, tidings.ErrTopic) {
			t.Errorf("Subscribe(%q): %v, %v", pattern, s, err)
		}
	}
	if subs := b.Debugger().Snapshot().Subscriptions; len(subs) != 0 {
		t.Errorf("subscribed: %v", subs)
	}
}

func TestRow04Prepend(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	first := &tidings.SubscribeOptions{Inline: true, Prepend: true}
	listen(t, b, "a", all.as("1"))
	subscribe(t, b, "a", all.as("2"), first)
	subscribe(t, b, "a", all.as("3"), first)
	listen(t, b, "*", all.as("4"))
	subscribe(t, b, "*", all.as("5"), first)
	announce(t, b, "a")
	all.want(t, "3 a", "2 a", "1 a", "5 a", "4 a")
	if _, err := b.Subscribe(ctx, "a", failWith(nil), &tidings.SubscribeOptions{Prepend: true}); err == nil || !strings.Contains(err.Error(), "Inline") {
		t.Errorf("prepending to a queue: %v", err)
	}
}

func TestRow05SameHandlerTwice(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	h := all.as("h")
	one := listen(t, b, "a", h)
	listen(t, b, "a", h)
	announce(t, b, "a")
	all.want(t, "h a", "h a")
	one.Stop()
	announce(t, b, "a")
	all.want(t, "h a")
}

// Whatever becomes an event comes to the same handler; there is nothing for its
// signature to choose.
func TestRow06OneKindOfHandler(t *testing.T) {
	b, all := typedRowBus(t, tidings.Options{}), told{}
	topic := tidings.NewTopic[int]("row06.n").On(b)
	listen(t, b, "row06.n", all.as("by name"))
	if _, err := topic.Subscribe(ctx, func(_ context.Context, _ tidings.Event, n int) error {
		all.note("typed", fmt.Sprint(n))
		return nil
	}, &tidings.SubscribeOptions{Inline: true}); err != nil {
		t.Fatal(err)
	}
	both := func(err error, n string) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		all.want(t, "by name row06.n", "typed "+n)
	}
	both(topic.Publish(ctx, 1), "1")
	both(topic.Instrument(ctx, 2, nil), "2")
	both(b.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "row06.n", Payload: 3})), "3")
	if _, err := b.Subscribe(ctx, "row06.n", nil, nil); err == nil || !strings.Contains(err.Error(), "handler is nil") {
		t.Errorf("no handler: %v", err)
	}
	if _, err := topic.Subscribe(ctx, nil, nil); err == nil || !strings.Contains(err.Error(), "handler is nil") {
		t.Errorf("no typed handler: %v", err)
	}
}

func TestRow07Times(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := rowBus(t, tidings.Options{})
		var e tidings.Event
		listen(t, b, "a", func(_ context.Context, got tidings.Event) error { e = got; return nil })
		begun := time.Now()
		run(t, b, "a", func(context.Context) { time.Sleep(1500 * time.Millisecond) })
		time.Sleep(time.Hour) // asked late, the time is still that of the block
		if !e.Time().Equal(begun) || e.Duration() != 1500*time.Millisecond {
			t.Errorf("began %v, not %v; took %v", e.Time(), begun, e.Duration())
		}
	})
	// Simulated time has no monotonic reading to look for.
	b := rowBus(t, tidings.Options{})
	listen(t, b, "a", func(_ context.Context, e tidings.Event) error {
		if !strings.Contains(e.Time().String(), " m=") {
			t.Errorf("no monotonic reading: %v", e.Time())
		}
		return nil
	})
	announce(t, b, "a")
	run(t, b, "a", func(context.Context) {})
}

func TestRow08StartAndFinish(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	var id string
	subscribe(t, b, "a", func(_ context.Context, e tidings.Event) error {
		all.note("finish", fmt.Sprint(e.Payload()))
		if e.ID() != id {
			t.Error("finish is not of the event that start saw")
		}
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, e tidings.Event) context.Context {
		all.note("start", fmt.Sprint(e.Payload()))
		id = e.ID()
		return ctx
	}})
	_ = b.Instrument(ctx, "a", 7, func(context.Context) error { all.note("block"); return nil })
	all.want(t, "start 7", "block", "finish 7")
}

func TestRow09EventIsShared(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	var got []tidings.Event
	for range 2 {
		listen(t, b, "a", func(_ context.Context, e tidings.Event) error { got = append(got, e); return nil })
	}
	for range 2 {
		_ = b.Instrument(ctx, "a", &order{1}, nil)
	}
	if got[0] != got[1] || got[0].ID() != got[1].ID() || got[2].ID() == got[0].ID() {
		t.Errorf("events %v", got)
	}
}

func TestRow10Order(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	for i, pattern := range []string{">", "a.*", "a.b", "*.b", "a.b"} {
		listen(t, b, pattern, all.as(fmt.Sprint(i)))
	}
	announce(t, b, "a.b")
	all.want(t, "2 a.b", "4 a.b", "0 a.b", "1 a.b", "3 a.b")
}

// A subscription keeps its place whether it wants to see the beginning or not.
func TestRow11KindsDoNotReorder(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	for _, name := range []string{"1", "2", "3"} {
		o := &tidings.SubscribeOptions{Inline: true}
		if name != "2" {
			o.Start = func(ctx context.Context, e tidings.Event) context.Context { all.note("start", name); return ctx }
		}
		subscribe(t, b, "a", all.as(name), o)
	}
	run(t, b, "a", func(context.Context) {})
	all.want(t, "start 1", "start 3", "1 a", "2 a", "3 a")
}

func TestRow12FilterDoesNotReorder(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	subscribe(t, b, "a", all.as("filtered"), &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return true }})
	listen(t, b, "a", all.as("plain"))
	announce(t, b, "a")
	run(t, b, "a", func(context.Context) {})
	all.want(t, "filtered a", "plain a", "filtered a", "plain a")
}

// One pair of clock readings serves all: a slow subscriber does not lengthen what
// the next one is told.
func TestRow13OneMeasurementForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := rowBus(t, tidings.Options{})
		var took []time.Duration
		var began []time.Time
		for range 2 {
			listen(t, b, "a", func(_ context.Context, e tidings.Event) error {
				took, began = append(took, e.Duration()), append(began, e.Time())
				time.Sleep(time.Minute)
				return nil
			})
		}
		run(t, b, "a", func(context.Context) { time.Sleep(time.Second) })
		if took[0] != time.Second || took[1] != time.Second || !began[0].Equal(began[1]) {
			t.Errorf("took %v, began %v", took, began)
		}
	})
}

func TestRow14InlineIsSynchronous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := rowBus(t, tidings.Options{}), told{}
		release := make(chan struct{})
		handled := false
		subscribe(t, b, "a", func(context.Context, tidings.Event) error { <-release; handled = true; return nil }, nil)
		listen(t, b, "a", all.as("inline"))
		announce(t, b, "a") // does not wait for the queued one
		all.want(t, "inline a")
		close(release)
		drain(t, b) // this is what waits
		if !handled {
			t.Error("Drain did not wait for the queued one")
		}
	})
}

func TestRow15InstrumentReturnsWhatTheBlockDoes(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	listen(t, b, "a", all.as("h"))
	n := 0
	if err := b.Instrument(ctx, "a", nil, func(context.Context) error { n = 42; return errBoom }); err != errBoom || n != 42 {
		t.Errorf("%d, %v", n, err)
	}
	all.want(t, "h a")
	if err := b.Instrument(ctx, "a", nil, nil); err != nil {
		t.Errorf("without a block: %v", err)
	}
	all.want(t, "h a")
}

func TestRow16BlockFillsInThePayload(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	seen := 0
	listen(t, b, "a", func(_ context.Context, e tidings.Event) error {
		var o order
		if err := e.Decode(&o); err != nil {
			return err
		}
		seen = o.ID
		return nil
	})
	o := &order{}
	_ = b.Instrument(ctx, "a", o, func(context.Context) error { o.ID = 7; return nil })
	if seen != 7 {
		t.Errorf("the handler saw %d", seen)
	}
}

func TestRow17NobodyListens(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	subscribe(t, b, "silenced", all.as("h"), &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return false },
		Start: func(ctx context.Context, _ tidings.Event) context.Context { all.note("start"); return ctx }})
	type key struct{}
	outer := context.WithValue(ctx, key{}, 1)
	for _, topic := range []string{"silenced", "unheard"} {
		if err := b.Instrument(outer, topic, nil, func(inner context.Context) error {
			if inner != outer {
				t.Error("the block has another context")
			}
			all.note("block")
			return errBoom
		}); err != errBoom {
			t.Error(err)
		}
		if inner, span := b.Begin(outer, topic, nil); inner != outer || span != nil {
			t.Errorf("Begin made %v", span)
		}
		all.want(t, "block")
	}
	block := func(context.Context) error { return nil }
	if n := testing.AllocsPerRun(100, func() { _ = b.Instrument(ctx, "unheard", nil, block) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRow18ErrorAndPanicOfTheBlock(t *testing.T) {
	for _, start := range []func(context.Context, tidings.Event) context.Context{
		nil, // the short way through Instrument, and the long one
		func(ctx context.Context, _ tidings.Event) context.Context { return ctx },
	} {
		b := rowBus(t, tidings.Options{})
		var e tidings.Event
		subscribe(t, b, "a", func(_ context.Context, got tidings.Event) error { e = got; return nil },
			&tidings.SubscribeOptions{Inline: true, Start: start})
		testErrorAndPanicOfTheBlock(t, b, &e)
	}
}

func testErrorAndPanicOfTheBlock(t *testing.T, b either, e *tidings.Event) {
	t.Helper()
	payload := map[string]int{"id": 1}
	if err := b.Instrument(ctx, "a", payload, func(context.Context) error { return errBoom }); err != errBoom || e.Err() != errBoom {
		t.Errorf("returned %v, told %v", err, e.Err())
	}
	func() {
		defer func() {
			if p := recover(); p != any(errBang) {
				t.Errorf("panicked again with %v", p)
			}
		}()
		_ = b.Instrument(ctx, "a", payload, func(context.Context) error { panic(errBang) })
	}()
	var p *tidings.PanicError
	if !errors.As(e.Err(), &p) || p.Value != any(errBang) || !strings.Contains(string(p.Stack), "notifications_test.go") {
		t.Errorf("told %v", e.Err())
	}
	if len(payload) != 1 {
		t.Errorf("the payload was changed: %v", payload)
	}
}

// Go has no throw. What leaves a block without returning is runtime.Goexit, and
// the event says so.
func TestRow19GoexitIsFinished(t *testing.T) {
	b := rowBus(t, tidings.Options{})
	var e tidings.Event
	listen(t, b, "a", func(_ context.Context, got tidings.Event) error { e = got; return nil })
	var wg sync.WaitGroup
	wg.Go(func() { run(t, b, "a", func(context.Context) { runtime.Goexit() }) })
	wg.Wait()
	if e.Err() == nil || !strings.Contains(e.Err().Error(), "Goexit") {
		t.Errorf("told %v", e.Err())
	}
}

func TestRow20Nested(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	listen(t, b, ">", func(_ context.Context, e tidings.Event) error {
		all.note(e.Topic(), fmt.Sprint(e.Payload()), fmt.Sprint(e.Err()))
		return nil
	})
	for _, rescued := range []bool{false, true} {
		err := b.Instrument(ctx, "outer", 1, func(ctx context.Context) error {
			err := b.Instrument(ctx, "inner", 2, func(context.Context) error { return errBoom })
			if rescued {
				return nil
			}
			return err
		})
		if rescued {
			all.want(t, "inner 2 boom", "outer 1 <nil>")
		} else {
			all.want(t, "inner 2 boom", "outer 1 boom")
		}
		if (err == nil) != rescued {
			t.Error(err)
		}
	}
}

func TestRow21ListenersAreFixedAtTheBeginning(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	gone := listen(t, b, "a", all.as("gone"))
	queued := subscribe(t, b, "a", func(context.Context, tidings.Event) error { t.Error("a stopped queue took an event"); return nil }, nil)
	run(t, b, "a", func(context.Context) {
		listen(t, b, "a", all.as("new"))
		gone.Stop()
		queued.Stop()
	})
	all.want(t, "gone a")
	announce(t, b, "a")
	all.want(t, "new a")

	var last *tidings.Subscription
	listen(t, b, "b", func(context.Context, tidings.Event) error {
		last.Stop()
		listen(t, b, "b", all.as("newer"))
		return nil
	})
	last = listen(t, b, "b", all.as("last"))
	announce(t, b, "b")
	all.want(t, "last b")
	announce(t, b, "b")
	all.want(t, "newer b")
}

func TestRow22HandlersMayUseTheBus(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	listen(t, b, "a", func(ctx context.Context, e tidings.Event) error {
		all.note("begin", fmt.Sprint(e.Payload()))
		if n := e.Payload().(int); n > 0 {
			_ = b.Publish(ctx, "a", n-1)
			_ = b.Instrument(ctx, "b", nil, nil)
		}
		all.note("end", fmt.Sprint(e.Payload()))
		return nil
	})
	listen(t, b, "b", func(context.Context, tidings.Event) error {
		all.note("b")
		s := listen(t, b, "c", failWith(nil))
		s.Stop()
		return nil
	})
	if err := b.Publish(ctx, "a", 1); err != nil {
		t.Error(err)
	}
	all.want(t, "begin 1", "begin 0", "end 0", "b", "end 1")
}

func TestRow23StartFails(t *testing.T) {
	for _, strict := range []bool{false, true} {
		b, all := rowBus(t, tidings.Options{Strict: strict}), told{}
		started := func(name string, p any) *tidings.SubscribeOptions {
			return &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context {
				all.note("start", name)
				if p != nil {
					panic(p)
				}
				return ctx
			}}
		}
		subscribe(t, b, "a", all.as("1"), started("1", nil))
		subscribe(t, b, "a", all.as("2"), started("2", errBoom))
		err := b.Instrument(ctx, "a", nil, func(context.Context) error { all.note("block"); return nil })
		if strict {
			all.want(t, "start 1", "start 2")
		} else {
			all.want(t, "start 1", "start 2", "block", "1 a", "2 a")
			b.ExpectError(errBoom)
		}
		if errors.Is(err, errBoom) != strict {
			t.Errorf("strict %v: returned %v", strict, err)
		}
	}
}

func TestRow24HandlerFailsAfterTheBlock(t *testing.T) {
	for _, strict := range []bool{false, true} {
		b := rowBus(t, tidings.Options{Strict: strict})
		listen(t, b, "a", failWith(errBoom))
		for _, ofBlock := range []error{nil, errBang} {
			err := b.Instrument(ctx, "a", nil, func(context.Context) error { return ofBlock })
			if !strict && err != ofBlock {
				t.Errorf("a handler changed %v into %v", ofBlock, err)
			}
			if strict && (!errors.Is(err, errBoom) || errors.Is(err, errBang) != (ofBlock != nil)) {
				t.Errorf("strict: %v became %v", ofBlock, err)
			}
		}
		if !strict {
			b.ExpectError(errBoom)
		}
		if want := map[bool]int{false: 2, true: 0}[strict]; len(b.Errors()) != want {
			t.Errorf("strict %v: reported %v", strict, b.Errors())
		}
	}
}

func TestRow25AllRunThoughOneFails(t *testing.T) {
	b, strict, all := rowBus(t, tidings.Options{}), rowBus(t, tidings.Options{Strict: true}), told{}
	for _, bus := range []either{b, strict} {
		listen(t, bus, "a", failWith(errBoom))
		listen(t, bus, "a", all.as("sound"))
	}
	b.ExpectError(errBoom)
	if err := b.Publish(ctx, "a", nil); err != nil || len(b.Errors()) != 1 {
		t.Errorf("returned %v, reported %v", err, b.Errors())
	}
	if err := strict.Publish(ctx, "a", nil); !errors.Is(err, errBoom) {
		t.Errorf("strict: returned %v", err)
	}
	all.want(t, "sound a", "sound a")
}

func TestRow26ErrorsAreJoinedInOrder(t *testing.T) {
	b := rowBus(t, tidings.Options{Strict: true})
	listen(t, b, "a", failWith(errBoom))
	listen(t, b, "a", func(ctx context.Context, _ tidings.Event) error { return b.Publish(ctx, "inner", nil) })
	listen(t, b, "inner", failWith(errBang))
	listen(t, b, "inner", failWith(errBoom))
	err := b.Publish(ctx, "a", nil)
	var e *tidings.Error
	if !errors.As(err, &e) || e.Op != "publish" || e.Topic != "a" || !e.Accepted {
		t.Fatalf("%#v", err)
	}
	joined, ok := e.Err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 2 || joined.Unwrap()[0] != errBoom || !errors.Is(joined.Unwrap()[1], errBang) {
		t.Errorf("joined %v", e.Err)
	}
	if first, second := strings.Index(err.Error(), "boom"), strings.Index(err.Error(), "publish inner: bang\nboom"); first < 0 || second < first {
		t.Errorf("text %q", err)
	}
}

// Whatever delivers, and however a handler fails, the others run.
func TestRow27AnyFailureByAnyWay(t *testing.T) {
	b, all := rowBus(t, tidings.Options{}), told{}
	b.AllowErrors(nil)
	for _, fail := range []tidings.Handler{
		failWith(errBoom),
		func(context.Context, tidings.Event) error { panic(errBoom) },
		func(context.Context, tidings.Event) error { panic("not even an error") },
	} {
		listen(t, b, "a", fail)
	}
	listen(t, b, "a", all.as("sound"))
	ways := map[string]func() error{
		"Publish":      func() error { return b.Publish(ctx, "a", nil) },
		"PublishEvent": func() error { return b.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "a"})) },
		"Instrument":   func() error { return b.Instrument(ctx, "a", nil, nil) },
		"Begin":        func() error { _, span := b.Begin(ctx, "a", nil); span.End(nil); return nil },
	}
	for name, way := range ways {
		before := len(b.Errors())
		if err := way(); err != nil || len(b.Errors()) != before+3 {
			t.Errorf("%s: returned %v, reported %v", name, err, b.Errors()[before:])
		}
		all.want(t, "sound a")
	}
}
