package tidingstest_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory"
	"github.com/tidings-go/tidings/tidingstest"
)

type order struct {
	ID int
	At time.Time
}

// recording is outcome for a test with a recorder, in a bubble: what waits in
// vain waits no time.
func recording(t *testing.T, f func(t testing.TB, b *tidingstest.Bus, rec *tidingstest.Recorder)) (failure string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		failure = outcome(t, func(t testing.TB) {
			b := tidingstest.New(t)
			f(t, b, b.Record(">"))
		})
	})
	return failure
}

func topics(events []tidings.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, e.Topic())
	}
	return strings.Join(out, " ")
}

func TestExpect(t *testing.T) {
	at := time.Now()
	three := func(t testing.TB, b *tidingstest.Bus) {
		publish(t, b, "order.placed", order{1, at})
		publish(t, b, "order.placed", order{2, at})
		_ = b.Instrument(ctx, "order.charged", order{1, at}, nil)
	}
	type rec = *tidingstest.Recorder
	for name, c := range map[string]struct {
		expect func(rec)
		fails  []string // nil: it passes
	}{
		"any order": {func(r rec) { r.Expect("order.charged", "order.placed") }, nil},
		"payload": {func(r rec) {
			r.Expect(tidingstest.Event("order.*", order{2, at}), tidingstest.Event("order.charged", &order{1, at}))
		}, nil},
		"func":              {func(r rec) { r.Expect(func(e tidings.Event) bool { return tidingstest.Payload[order](e).ID == 2 }) }, nil},
		"overlap":           {func(r rec) { r.Expect("*.*", ">", tidingstest.Event("order.placed", order{1, at})) }, nil},
		"nothing":           {func(r rec) { r.Expect() }, nil},
		"missing":           {func(r rec) { r.Expect("order.placed", "order.shipped") }, []string{"missing:\n  order.shipped\n", "1. order.placed {\"ID\":1"}},
		"one too few":       {func(r rec) { r.Expect("order.placed", "order.placed", "order.placed") }, []string{"missing:\n  order.placed\n"}},
		"wrong payload":     {func(r rec) { r.Expect(tidingstest.Event("order.charged", order{3, at})) }, []string{"event 3 has another payload: order.charged {\"ID\":1"}},
		"wrong time":        {func(r rec) { r.Expect(tidingstest.Event("order.charged", order{1, at.Add(1)})) }, []string{"another payload"}},
		"wrong type":        {func(r rec) { r.Expect(tidingstest.Event("order.charged", "text")) }, []string{"order.charged \"text\""}},
		"func fails":        {func(r rec) { r.Expect(func(tidings.Event) bool { return false }) }, []string{"function 1"}},
		"in order":          {func(r rec) { r.ExpectInOrder("order.placed", "order.charged") }, nil},
		"wrong order":       {func(r rec) { r.ExpectInOrder("order.charged", "order.placed") }, []string{"in this order", "missing:\n  order.placed", "at another place"}},
		"exactly":           {func(r rec) { r.ExpectExactly("order.charged", "order.placed", "order.placed") }, nil},
		"extra":             {func(r rec) { r.ExpectExactly("order.placed", "order.placed") }, []string{"1 events came and were not wanted", "3. order.charged", "<- not wanted"}},
		"exactly, missing":  {func(r rec) { r.ExpectExactly("order.gone") }, []string{"missing:\n  order.gone"}},
		"exactly nothing":   {func(r rec) { r.ExpectExactly() }, []string{"3 events"}},
		"none":              {func(r rec) { r.ExpectNone("order.gone"); r.ExpectNone("order"); r.ExpectNone("order.placed.>") }, nil},
		"none, and came":    {func(r rec) { r.ExpectNone("order.*") }, []string{"order.* must not come", "<- not wanted"}},
		"wait":              {func(r rec) { r.Wait(3) }, nil},
		"wait for too many": {func(r rec) { r.Within(time.Minute).Wait(4) }, []string{"3 of 4 events have come within 1m0s"}},
		"bad matcher":       {func(r rec) { r.Expect(7) }, []string{"matcher 1 is a int"}},
		"bad pattern":       {func(r rec) { r.Expect("order.>.x") }, []string{"not a topic"}},
		"bad pattern, none": {func(r rec) { r.ExpectNone("") }, []string{"not a topic"}},
		"after Reset":       {func(r rec) { r.Reset(); r.ExpectExactly(); r.Expect("order.placed") }, []string{"came: nothing"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := recording(t, func(t testing.TB, b *tidingstest.Bus, r *tidingstest.Recorder) {
				three(t, b)
				c.expect(r)
			})
			if c.fails == nil {
				wantSuccess(t, got)
			} else {
				wantFailure(t, got, c.fails...)
			}
		})
	}
}

func TestExpectReturnsWhatMatched(t *testing.T) {
	wantSuccess(t, recording(t, func(t testing.TB, b *tidingstest.Bus, r *tidingstest.Recorder) {
		publish(t, b, "a", 1)
		publish(t, b, "b", "two")
		got := r.Expect("b", "a")
		if tidingstest.Payload[string](got[0]) != "two" || tidingstest.Payload[int](got[1]) != 1 {
			t.Errorf("got %v", got)
		}
		if all := topics(r.Wait(1)); all != "a b" {
			t.Errorf("Wait returned %s", all)
		}
	}))
}

// What is waited for comes from elsewhere, later; the wait ends with it.
func TestExpectWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, began := tidingstest.New(t), time.Now()
		r := b.Record("later.>")
		var publishing sync.WaitGroup
		defer publishing.Wait()
		publishing.Go(func() {
			time.Sleep(3 * time.Second)
			publish(t, b, "later.a", nil)
			publish(t, b, "other", nil)
		})
		r.Within(time.Minute).Expect("later.*")
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("waited %v, want 3s", d)
		}
		b.Settle()
		if got := topics(r.Events()); got != "later.a" {
			t.Errorf("recorded %s", got)
		}
	})
}

// An idle bus is waited for no longer than a goroutine needs that is about to
// publish, unless it cannot tell what is still to come.
func TestExpectDoesNotWaitForAnIdleBus(t *testing.T) {
	type bus = *tidingstest.Bus
	later := func(b bus, d time.Duration, topic string) {
		time.AfterFunc(d, func() { _ = b.Publish(ctx, topic, nil) })
	}
	slow := func(t testing.TB, b bus, o *tidings.SubscribeOptions) {
		subscribe(t, b, "work", func(ctx context.Context, _ tidings.Event) error {
			<-time.After(4 * time.Second) // in the bubble of recording
			return b.Publish(ctx, "done", nil)
		}, o)
	}
	expect := func(r *tidingstest.Recorder) { r.Expect("done") }
	for name, c := range map[string]struct {
		begin  func(t testing.TB, b bus)
		expect func(*tidingstest.Recorder)
		after  time.Duration
		fails  string
	}{
		"idle":         {func(testing.TB, bus) {}, expect, time.Second, "idle for 1s"},
		"idle, Wait":   {func(testing.TB, bus) {}, func(r *tidingstest.Recorder) { r.Wait(1) }, time.Second, "0 of 1 events have come until the bus had been idle"},
		"idle, Within": {func(testing.TB, bus) {}, func(r *tidingstest.Recorder) { expect(r.Within(time.Minute)) }, time.Minute, "within 1m0s"},
		"about to":     {func(_ testing.TB, b bus) { later(b, 900*time.Millisecond, "done") }, expect, 900 * time.Millisecond, ""},
		"others come": {func(_ testing.TB, b bus) {
			later(b, 900*time.Millisecond, "other")
			later(b, 1800*time.Millisecond, "done")
		}, expect, 1800 * time.Millisecond, ""},
		"too late":        {func(_ testing.TB, b bus) { later(b, 1100*time.Millisecond, "done") }, expect, time.Second, "idle for 1s"},
		"a queue works":   {func(t testing.TB, b bus) { slow(t, b, nil); publish(t, b, "work", nil) }, expect, 4 * time.Second, ""},
		"inline":          {func(t testing.TB, b bus) { slow(t, b, &tidings.SubscribeOptions{Inline: true}); later(b, 0, "work") }, expect, 4 * time.Second, ""},
		"works in vain":   {func(t testing.TB, b bus) { slow(t, b, nil); publish(t, b, "work", nil); publish(t, b, "work", nil) }, func(r *tidingstest.Recorder) { r.Expect("gone") }, 5 * time.Second, "within 5s"},
		"works meanwhile": {func(t testing.TB, b bus) { slow(t, b, nil); later(b, 900*time.Millisecond, "work") }, expect, 4900 * time.Millisecond, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var took time.Duration
			got := recording(t, func(t testing.TB, b *tidingstest.Bus, r *tidingstest.Recorder) {
				began := time.Now()
				defer func() { took = time.Since(began) }()
				c.begin(t, b)
				c.expect(r)
			})
			if c.fails == "" {
				wantSuccess(t, got)
			} else {
				wantFailure(t, got, c.fails)
			}
			if took != c.after {
				t.Errorf("waited %v, want %v", took, c.after)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // work that the recorder does not see
		b := tidingstest.New(t)
		subscribe(t, b, "work", nothing, nil)
		later(b, 900*time.Millisecond, "work")
		later(b, 1800*time.Millisecond, "done")
		expect(b.Record("done"))
	})
	synctest.Test(t, func(t *testing.T) { // a bus of anybody's
		began := time.Now()
		wantFailure(t, outcome(t, func(t testing.TB) { tidingstest.Record(t, plain(t), ">").Expect("a") }), "within 5s")
		wantFailure(t, outcome(t, func(t testing.TB) {
			b := tidingstest.New(t)
			if err := b.Attach(ctx, "mem:"+t.Name()); err != nil {
				t.Fatalf("%v", err)
			}
			b.Record(">").Expect("a")
		}), "within 5s")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("waited %v, want 10s", took)
		}
	})
}

// ExpectNone sees what handlers publish after the call has begun.
func TestExpectNoneWaitsForWhatIsInFlight(t *testing.T) {
	wantFailure(t, recording(t, func(t testing.TB, b *tidingstest.Bus, r *tidingstest.Recorder) {
		subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error {
			<-time.After(time.Second) // in the bubble of recording
			return b.Publish(ctx, "b", nil)
		}, nil)
		publish(t, b, "a", nil)
		r.ExpectNone("b")
	}), "b must not come")
	// and on a bus of anybody's
	synctest.Test(t, func(t *testing.T) {
		wantFailure(t, outcome(t, func(t testing.TB) {
			b := plain(t)
			r := tidingstest.Record(t, b, "b")
			if _, err := b.Subscribe(ctx, "a", func(ctx context.Context, _ tidings.Event) error {
				time.Sleep(time.Second)
				return b.Publish(ctx, "b", nil)
			}, nil); err != nil {
				t.Fatalf("%v", err)
			}
			_ = b.Publish(ctx, "a", nil)
			r.ExpectNone("b")
		}), "b must not come")
	})
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		wantFailure(t, outcome(t, func(t testing.TB) {
			b := plain(t)
			r := tidingstest.Record(t, b, "b")
			_, _ = b.Subscribe(ctx, "a", func(context.Context, tidings.Event) error { <-release; return nil }, nil)
			_ = b.Publish(ctx, "a", nil)
			defer close(release)
			r.ExpectNone("b")
		}), "not idle after 5s")
	})
}

func plain(t testing.TB) *tidings.Bus {
	b, err := tidings.New(tidings.Options{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { _ = b.Drain(ctx) })
	return b
}

// A worker may handle an event before the publisher comes to show it to those who
// watch.
func TestAnEventIsRecordedBeforeWhatItLeadsTo(t *testing.T) {
	b := tidingstest.New(t)
	r := b.Record(">")
	hold, held := make(chan struct{}), false
	subscribe(t, b, "cause", func(ctx context.Context, _ tidings.Event) error {
		defer close(hold)
		return b.Publish(ctx, "effect", nil)
	}, nil)
	// This one comes before the recorder in the order of inline subscriptions.
	subscribe(t, b, "cause", func(context.Context, tidings.Event) error { <-hold; held = true; return nil }, &tidings.SubscribeOptions{Inline: true})
	publish(t, b, "cause", nil)
	if got := topics(r.ExpectExactly("cause", "effect")); got != "cause effect" || !held {
		t.Errorf("matched %s", got)
	}
	if got := topics(r.Events()); got != "cause effect" {
		t.Errorf("recorded %s", got)
	}
}

func TestRecordBeginsWithTheCall(t *testing.T) {
	b := tidingstest.New(t)
	release := make(chan struct{})
	subscribe(t, b, "a", func(context.Context, tidings.Event) error { <-release; return nil }, nil)
	publish(t, b, "a", "before")
	r := b.Record("a")
	publish(t, b, "a", "after")
	close(release)
	b.Settle()
	if got := r.Events(); len(got) != 1 || tidingstest.Payload[string](got[0]) != "after" {
		t.Errorf("recorded %v", got)
	}
}

// The publisher shows an event to those who watch after Reset; only then is it
// recorded.
func TestResetKeepsWhatIsOnItsWay(t *testing.T) {
	b := tidingstest.New(t)
	r := b.Record(">")
	begun, shown := make(chan struct{}), make(chan struct{})
	subscribe(t, b, "a", func(context.Context, tidings.Event) error { close(begun); return nil }, nil)
	subscribe(t, b, "a", func(context.Context, tidings.Event) error { <-shown; return nil }, &tidings.SubscribeOptions{Inline: true})
	go func() { _ = b.Publish(ctx, "a", nil) }()
	<-begun
	r.Reset()
	close(shown)
	r.ExpectExactly("a")
}

func TestWhatIsRecordedOnce(t *testing.T) {
	b := tidingstest.New(t)
	r := b.Record(">")
	tries := 0
	subscribe(t, b, "a", func(context.Context, tidings.Event) error {
		if tries++; tries < 3 {
			return errBoom
		}
		return nil
	}, &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 3, Backoff: 1}})
	b.ExpectError(errBoom)
	publish(t, b, "a", nil)
	r.ExpectExactly("a")
	if tries != 3 {
		t.Errorf("%d attempts, want 3", tries)
	}
	// the same event published anew is another
	if err := b.PublishEvent(ctx, r.Events()[0]); err != nil {
		t.Fatal(err)
	}
	r.ExpectExactly("a", "a")
}

func TestRecordingIsNotListening(t *testing.T) {
	b := tidingstest.New(t)
	r := b.Record(">")
	if b.Listening("a") {
		t.Error("the recorder listens")
	}
	if _, err := b.Request(ctx, "a", nil); !errors.Is(err, tidings.ErrNoResponder) {
		t.Errorf("Request: %v", err)
	}
	if n := len(b.Debugger().Snapshot().Subscriptions); n != 0 {
		t.Errorf("%d subscriptions in the Snapshot", n)
	}
	publish(t, b, "a", nil)
	r.ExpectExactly(tidingstest.Event("a", nil))
}

func TestRecordFails(t *testing.T) {
	wantFailure(t, outcome(t, func(t testing.TB) { tidingstest.New(t).Record("a..b") }), "a..b")
	wantFailure(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		_ = b.Close()
		b.Record("a")
	}), "Record")
}

func TestPayloadPanics(t *testing.T) {
	defer func() {
		if s, _ := recover().(string); !strings.Contains(s, "does not decode into int") {
			t.Errorf("panic: %q", s)
		}
	}()
	tidingstest.Payload[int](tidings.NewEvent(tidings.EventFields{Topic: "a", Payload: json.RawMessage(`"x"`)}))
}

func TestManyPublishersAtOnce(t *testing.T) {
	t.Parallel()
	b := tidingstest.New(t)
	r := b.Record("n.*")
	subscribe(t, b, "n.*", func(context.Context, tidings.Event) error { return nil }, nil)
	for _, topic := range []string{"n.a", "n.b", "n.c", "n.d"} {
		go func() {
			for i := range 200 {
				_ = b.Publish(ctx, topic, i)
			}
		}()
	}
	next := map[string]int{}
	for _, e := range r.Wait(800) {
		if n := tidingstest.Payload[int](e); n != next[e.Topic()] {
			t.Fatalf("%s has %d after %d", e.Topic(), n, next[e.Topic()]-1)
		}
		next[e.Topic()]++
	}
	if len(next) != 4 || slices.Contains([]int{next["n.a"], next["n.d"]}, 0) {
		t.Errorf("recorded %v", next)
	}
}
