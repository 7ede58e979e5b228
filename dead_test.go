package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/internal/testkit"
)

func letters(t *testing.T, url string) *deadletter.Store {
	t.Helper()
	store, err := deadletter.Open(deadline(t), url, deadletter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

func list(t *testing.T, store *deadletter.Store, sel deadletter.Selection) (out []*deadletter.Letter) {
	t.Helper()
	for l, err := range store.List(deadline(t), sel) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// deaths are the events "tidings.dead" of a bus.
func deaths(t *testing.T, b *tidings.Bus) <-chan tidings.DeadLettered {
	t.Helper()
	ch := make(chan tidings.DeadLettered, 100)
	subscribe(t, b, "tidings.dead", func(_ context.Context, e tidings.Event) error {
		ch <- e.Payload().(tidings.DeadLettered)
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	return ch
}

func soonest[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("waited in vain")
		panic("not reached")
	}
}

// quiet discards the log of what fails on purpose.
func quiet() tidings.Options { return tidings.Options{Logger: slog.New(slog.DiscardHandler)} }

func TestWhatIsGivenUpIsADeadLetter(t *testing.T) {
	for name, c := range map[string]struct {
		handler  func() error
		attempts int
		stack    bool
	}{
		"Permanent": {func() error { return tidings.Permanent(errors.New("no such customer")) }, 1, false},
		"attempts":  {func() error { return errors.New("no such customer") }, 3, false},
		"panic":     {func() error { panic("no such customer") }, 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			overTransports(t, func(t *testing.T, url string) {
				var log strings.Builder
				var mu sync.Mutex
				o := tidings.Options{Instance: "one", Logger: slog.New(slog.NewTextHandler(writer(func(p []byte) { mu.Lock(); log.Write(p); mu.Unlock() }), nil))}
				b := process(t, url, "billing", o)
				var calls atomic.Int32
				dead := deaths(t, b)
				subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
					calls.Add(1)
					return c.handler()
				}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Attempts: 3, Backoff: time.Millisecond}})
				began := time.Now()
				shop := process(t, url, "shop", tidings.Options{Instance: "two"})
				if err := shop.Publish(tidings.WithTags(deadline(t), map[string]any{"tenant": "acme"}), "order.placed", map[string]int{"id": 7}); err != nil {
					t.Fatal(err)
				}
				d := soonest(t, dead)
				if d.Err != nil || d.Attempts != c.attempts || int(calls.Load()) != c.attempts || d.Group != "billing" || d.Pattern != "order.*" {
					t.Errorf("told as %+v after %d calls", d, calls.Load())
				}
				l := list(t, letters(t, url), deadletter.Selection{})[0]
				switch {
				case l.ID != d.Letter || !strings.HasPrefix(l.ID, l.Stream+":"+fmt.Sprint(l.Sequence)+":billing"):
					t.Errorf("its id is %q", l.ID)
				case l.Group != "billing" || l.Pattern != "order.*" || l.Instance != "//billing/one":
					t.Errorf("it is of %+v", l)
				case l.Event.Topic != "order.placed" || l.Event.Source != "//shop/two" || string(l.Event.Data) != `{"id":7}` || l.Event.ContentType != "application/json":
					t.Errorf("its event is %+v", l.Event)
				case !strings.Contains(l.Event.Header["tidings-tags"], "acme") || l.Event.ID != d.Event.ID():
					t.Errorf("its event is %+v", l.Event)
				case !strings.Contains(l.Reason, "no such customer") || l.Attempts != c.attempts || l.Deliveries != c.attempts:
					t.Errorf("reason %q after %d attempts and %d deliveries", l.Reason, l.Attempts, l.Deliveries)
				case l.First.Before(began) || l.Last.Before(l.First) || l.Last.After(time.Now()):
					t.Errorf("failed from %v to %v", l.First, l.Last)
				case strings.Contains(l.Stack, "dead_test.go") != c.stack:
					t.Errorf("its stack is %q", l.Stack)
				}
				if err := b.Drain(deadline(t)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if !strings.Contains(log.String(), l.ID) || !strings.Contains(log.String(), "tidings dlq") {
					t.Errorf("the log does not name the letter:\n%s", &log)
				}
			})
		})
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestDeadLettersAreCounted(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		dead := deaths(t, b)
		subscribe(t, b, "order.*", func(context.Context, tidings.Event) error { return tidings.Permanent(errors.New("no")) }, &tidings.SubscribeOptions{Durable: true})
		for range 2 {
			if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
				t.Fatal(err)
			}
			soonest(t, dead)
		}
		for _, s := range b.Debugger().Snapshot().Subscriptions {
			if s.Durable && (s.DeadLetters != 2 || s.DeadLetterErrors != 0 || s.Failed != 2 || s.Handled != 0) {
				t.Errorf("%+v", s)
			}
		}
	})
}

// An error of a batch handler is that of every event in it.
func TestABatchThatIsGivenUp(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		for i := range 3 {
			if err := b.Publish(deadline(t), "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		dead := deaths(t, b)
		s, err := b.SubscribeBatch(deadline(t), "order.*", func(context.Context, []tidings.Event) error { return tidings.Permanent(errors.New("no")) },
			&tidings.SubscribeOptions{Durable: true, BatchSize: 3, BatchWait: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if d := soonest(t, dead); d.Err != nil || d.Attempts != 1 {
				t.Errorf("%+v", d)
			}
		}
		if err := s.Drain(deadline(t)); err != nil {
			t.Error(err)
		}
		if n := len(list(t, letters(t, url), deadletter.Selection{Group: "billing"})); n != 3 {
			t.Errorf("%d letters", n)
		}
	})
}

// Two groups get an event, one gives it up: redriven, it comes to that one again,
// unchanged and with a fresh count, and to nobody else.
func TestRedriveReachesTheGroupThatGaveUp(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b, audit, shop := process(t, url, "billing", quiet()), process(t, url, "audit", quiet()), process(t, url, "shop", quiet())
		dead, got, seen := deaths(t, b), make(chan tidings.Event, 10), make(chan string, 10)
		var fixed atomic.Bool
		durable := &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Attempts: 2, Backoff: time.Millisecond}}
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			if !fixed.Load() {
				return errors.New("not yet fixed")
			}
			got <- e
			return nil
		}, durable)
		note := func(_ context.Context, e tidings.Event) error { seen <- e.ID(); return nil }
		subscribe(t, audit, "order.*", note, durable)
		subscribe(t, shop, ">", note, nil) // live
		publish := func() {
			if err := shop.Publish(deadline(t), "order.placed", 1); err != nil {
				t.Fatal(err)
			}
		}
		publish()
		d := soonest(t, dead)
		soonest(t, seen)
		soonest(t, seen)
		store := letters(t, url)
		one := deadletter.Selection{IDs: []string{d.Letter}}
		// Still broken: it dies again, as a new letter, after as many attempts.
		if n, err := store.Redrive(deadline(t), one, deadletter.Action{}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		again := soonest(t, dead)
		if again.Attempts != 2 || again.Event.ID() != d.Event.ID() || again.Letter == d.Letter {
			t.Errorf("it died again as %+v", again)
		}
		fixed.Store(true)
		if n, err := store.Redrive(deadline(t), deadletter.Selection{Topic: "order.>"}, deadletter.Action{}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		e := soonest(t, got)
		if e.ID() != d.Event.ID() || e.Topic() != "order.placed" || e.Source() != d.Event.Source() || !e.Time().Equal(d.Event.Time()) || e.Attempt() != 1 {
			t.Errorf("it came as %v from %s, %v, attempt %d", e, e.Source(), e.Time(), e.Attempt())
		}
		if left := list(t, store, deadletter.Selection{}); len(left) != 0 {
			t.Errorf("%d letters are left", len(left))
		}
		publish() // what comes later shows that nothing else came before
		next := soonest(t, got).ID()
		for range 2 {
			if id := soonest(t, seen); id != next {
				t.Errorf("the others got %s, want %s", id, next)
			}
		}
		if err := errors.Join(b.Drain(deadline(t)), audit.Drain(deadline(t)), shop.Drain(deadline(t))); err != nil {
			t.Error(err)
		}
	})
}

// The count of failures outlives the subscription, and what is handed back by the
// deadline of a drain is no failure.
func TestFailuresAreCountedAndDeliveriesAreNot(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		dead := deaths(t, b)
		o := &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Attempts: 3, Backoff: time.Millisecond}}
		var failing atomic.Bool
		var failed atomic.Int32
		join := func() (*tidings.Subscription, <-chan int) {
			begun := make(chan int, 100)
			return subscribe(t, b, "order.*", func(ctx context.Context, e tidings.Event) error {
				begun <- e.Attempt()
				if failing.Load() {
					failed.Add(1)
					return errors.New("no")
				}
				<-ctx.Done()
				return ctx.Err()
			}, o), begun
		}
		s, begun := join()
		if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
			t.Fatal(err)
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		for i := range 5 { // more often than Attempts
			if n := soonest(t, begun); n <= i {
				t.Errorf("delivery %d says %d", i+1, n)
			}
			if err := s.Drain(over); !errors.Is(err, context.Canceled) {
				t.Errorf("a drain that was cut: %v", err)
			}
			<-s.Done()
			failing.Store(i == 4)
			s, begun = join()
		}
		if d := soonest(t, dead); d.Attempts != 3 || d.Err != nil {
			t.Errorf("given up as %+v", d)
		}
		if n := failed.Load(); n != 3 {
			t.Errorf("failed %d times, want 3", n)
		}
		if l := list(t, letters(t, url), deadletter.Selection{})[0]; l.Attempts != 3 || l.Deliveries < 8 {
			t.Errorf("%d attempts, %d deliveries", l.Attempts, l.Deliveries)
		}
	})
}

// What came too often to be innocent is handled alone: else the others that a
// process has in hand when it dies of one would be blamed as well.
func TestSuspiciousEventsAreHandledOneByOne(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		const n = 4
		var cutting atomic.Bool
		var running, most atomic.Int32
		cutting.Store(true)
		join := func() (*tidings.Subscription, <-chan string) {
			begun := make(chan string, 100)
			return subscribe(t, b, "order.*", func(ctx context.Context, e tidings.Event) error {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
				begun <- e.ID()
				if cutting.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				<-time.After(20 * time.Millisecond) // for another to begin
				return nil
			}, &tidings.SubscribeOptions{Durable: true, Workers: n, Retry: tidings.Retry{Deaths: 100}}), begun
		}
		s, begun := join()
		for i := range n {
			if err := b.Publish(deadline(t), "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		for range 5 { // deliveries
			for range n {
				soonest(t, begun)
			}
			if err := s.Drain(over); !errors.Is(err, context.Canceled) {
				t.Errorf("a drain that was cut: %v", err)
			}
			<-s.Done()
			testkit.Until(t, 30*time.Second, func() bool { return running.Load() == 0 })
			if m := most.Swap(0); m != n {
				t.Errorf("%d were handled at the same time, want %d while nothing is suspicious", m, n)
			}
			s, begun = join()
		}
		soonest(t, begun) // the first of them: the others wait, and a drain hands them back
		if err := s.Drain(over); !errors.Is(err, context.Canceled) {
			t.Errorf("a drain that was cut: %v", err)
		}
		<-s.Done()
		testkit.Until(t, 30*time.Second, func() bool { return running.Load() == 0 })
		most.Store(0)
		cutting.Store(false)
		_, begun = join()
		for range n {
			soonest(t, begun)
		}
		if m := most.Load(); m != 1 {
			t.Errorf("%d suspicious events were handled at the same time", m)
		}
	})
}

// What cannot be decoded, in whichever form it claims to be an event, is a dead
// letter when it is durable, and counted when it is live; both name the source, and
// neither stops what comes after.
func TestUndecodableBytes(t *testing.T) {
	const envelope = `{"specversion":"1.0","id":"bad","source":"//legacy/9","type":"order.placed","time":"yesterday","data":1}`
	for name, broken := range map[string]nats.Msg{
		"binary": {Data: []byte{0xff, 0x00}, Header: nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {"bad"}, "ce-source": {"//legacy/9"}, "ce-time": {"yesterday"}, "X-Own": {"kept"}}},
		"structured":          {Data: []byte(envelope), Header: nats.Header{"Content-Type": {"application/cloudevents+json"}, "X-Own": {"kept"}}},
		"structured, unnamed": {Data: []byte(envelope), Header: nats.Header{"X-Own": {"kept"}}},
	} {
		t.Run(name, func(t *testing.T) { undecodable(t, broken) })
	}
}

func undecodable(t *testing.T, broken nats.Msg) {
	url := testkit.Server(t).URL()
	var mu sync.Mutex
	var told []string
	o := quiet()
	o.OnError = func(_ context.Context, err error) { mu.Lock(); defer mu.Unlock(); told = append(told, err.Error()) }
	b := process(t, url, "billing", o)
	dead, got := deaths(t, b), make(chan tidings.Event, 10)
	take := func(_ context.Context, e tidings.Event) error { got <- e; return nil }
	subscribe(t, b, "order.*", take, &tidings.SubscribeOptions{Durable: true})
	subscribe(t, b, "cart.*", take, nil)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	broken.Subject = "order.placed"
	if _, err := js.PublishMsg(deadline(t), &broken); err != nil {
		t.Fatal(err)
	}
	d := soonest(t, dead)
	l := list(t, letters(t, url), deadletter.Selection{})[0]
	switch {
	case d.Letter != l.ID || d.Attempts != 0 || l.Attempts != 0 || l.Deliveries != 1:
		t.Errorf("told as %+v, kept as %+v", d, l)
	case l.Event.Source != "//legacy/9" || string(l.Event.Data) != string(broken.Data) || l.Event.Header["ce-time"] != broken.Header.Get("ce-time") || l.Event.Header["x-own"] != "kept":
		t.Errorf("its event is %+v", l.Event)
	case !strings.Contains(l.Reason, "cannot be decoded") || !strings.Contains(l.Reason, "//legacy/9") || !strings.Contains(l.Reason, "ce-time"):
		t.Errorf("its reason is %q", l.Reason)
	}
	broken.Subject = "cart.seen"
	if err := nc.PublishMsg(&broken); err != nil {
		t.Fatal(err)
	}
	// Foreign events, without any header of CloudEvents, are events.
	if _, err := js.Publish(deadline(t), "order.foreign", []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("cart.foreign", []byte(`plain`)); err != nil {
		t.Fatal(err)
	}
	topics := map[string]bool{}
	for range 2 {
		e := soonest(t, got)
		topics[e.Topic()] = true
		if e.ID() == "" {
			t.Errorf("%v has no id", e)
		}
	}
	if !topics["order.foreign"] || !topics["cart.foreign"] {
		t.Errorf("handled %v", topics)
	}
	if err := b.Debugger().Idle(deadline(t)); err != nil {
		t.Error(err)
	}
	for _, s := range b.Debugger().Snapshot().Subscriptions {
		if s.Durable && (s.Handled != 1 || s.Failed != 0 || s.DeadLetters != 1) {
			t.Errorf("%+v", s)
		}
	}
	if n := b.Debugger().Snapshot().Transport.Dropped; n != 1 {
		t.Errorf("%d live events are counted as dropped, want 1", n)
	}
	if err := b.Drain(deadline(t)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if all := strings.Join(told, "\n"); !strings.Contains(all, "cart.seen") || strings.Count(all, "//legacy/9") < 2 {
		t.Errorf("OnError was told:\n%s", all)
	}
}

// An event of another schema fails to decode into the type of its topic: no retry
// can mend that.
func TestAnotherSchemaIsADeadLetterAtOnce(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b, shop := process(t, url, "billing", quiet()), process(t, url, "shop", quiet())
		dead := deaths(t, b)
		orders := tidings.NewTopic[struct{ ID int }]("order.placed").On(b)
		if _, err := orders.Subscribe(deadline(t), func(context.Context, tidings.Event, struct{ ID int }) error {
			t.Error("the handler was called")
			return nil
		}, &tidings.SubscribeOptions{Durable: true}); err != nil {
			t.Fatal(err)
		}
		if err := shop.Publish(deadline(t), "order.placed", []int{1}); err != nil {
			t.Fatal(err)
		}
		if d := soonest(t, dead); d.Attempts != 1 || !strings.Contains(d.Reason, "cannot decode") {
			t.Errorf("%+v", d)
		}
	})
}

// A full stream of dead letters loses nothing: the event comes again until there
// is room, and its handler is left alone meanwhile.
func TestAFullStreamOfDeadLetters(t *testing.T) {
	url := testkit.Server(t).URL()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(deadline(t), jetstream.StreamConfig{Name: "tidings-dead-all", Subjects: []string{"$TIDINGS.dead.all.>"},
		MaxMsgs: 1, Discard: jetstream.DiscardNew, AllowDirect: true}); err != nil {
		t.Fatal(err)
	}
	b := process(t, url, "billing", quiet())
	dead := deaths(t, b)
	var calls atomic.Int32
	subscribe(t, b, "order.*", func(context.Context, tidings.Event) error {
		calls.Add(1)
		return tidings.Permanent(errors.New("no"))
	}, &tidings.SubscribeOptions{Durable: true})
	for range 2 {
		if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
			t.Fatal(err)
		}
	}
	first, second := soonest(t, dead), soonest(t, dead)
	if first.Err != nil {
		first, second = second, first
	}
	if first.Err != nil || !errors.Is(second.Err, tidings.ErrOverflow) || !strings.Contains(second.Err.Error(), "tidings dlq") {
		t.Errorf("told as %v and %v", first.Err, second.Err)
	}
	store := letters(t, url)
	if n, err := store.Drop(deadline(t), deadletter.Selection{IDs: []string{first.Letter}}, deadletter.Action{}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	third := soonest(t, dead)
	if third.Err != nil || third.Event.ID() != second.Event.ID() {
		t.Errorf("then: %+v", third)
	}
	if l := list(t, store, deadletter.Selection{}); len(l) != 1 || l[0].Event.ID != second.Event.ID() {
		t.Errorf("%d letters", len(l))
	}
	if calls.Load() != 2 {
		t.Errorf("the handler was called %d times for two events", calls.Load())
	}
	for _, s := range b.Debugger().Snapshot().Subscriptions {
		if s.Durable && (s.DeadLetters != 2 || s.DeadLetterErrors != 1) {
			t.Errorf("%+v", s)
		}
	}
}
