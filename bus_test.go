package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/tidingstest"
)

var ctx = context.Background()

// errs collects what goes to OnError.
type errs struct {
	mu  sync.Mutex
	all []error
}

func (e *errs) add(_ context.Context, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, err)
}

func (e *errs) list() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

func newBus(t *testing.T, o tidings.Options) *tidings.Bus {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := tidings.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// kit is a bus that fails its test for what that leaves behind: handlers, drops, and
// errors nobody expected. Its middleware is around every handler, so tests of what
// holds for bare and typed handlers use newBus.
func kit(t *testing.T, o tidings.Options) *tidingstest.Bus {
	t.Helper()
	return tidingstest.New(t, tidingstest.Options{Bus: o, NoEncode: true})
}

// either is a newBus or a kit.
type either interface {
	Publish(ctx context.Context, topic string, payload any) error
	Instrument(ctx context.Context, topic string, payload any, fn func(context.Context) error) error
	Subscribe(ctx context.Context, pattern string, h tidings.Handler, o *tidings.SubscribeOptions) (*tidings.Subscription, error)
	SubscribeBatch(ctx context.Context, pattern string, h func(context.Context, []tidings.Event) error, o *tidings.SubscribeOptions) (*tidings.Subscription, error)
	Drain(ctx context.Context) error
}

func subscribe(t *testing.T, b either, pattern string, h tidings.Handler, o *tidings.SubscribeOptions) *tidings.Subscription {
	t.Helper()
	s, err := b.Subscribe(ctx, pattern, h, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func drain(t *testing.T, b either) {
	t.Helper()
	if err := b.Drain(ctx); err != nil {
		t.Fatalf("Drain: %v", err)
	}
}

type order struct{ ID int }

func TestPublishReachesEverySubscriberInOrder(t *testing.T) {
	b := newBus(t, tidings.Options{})
	placed := tidings.NewTopic[order]("test.placed").On(b)
	var typed, byName, wild, inline []int
	collect := func(to *[]int) tidings.Handler {
		return func(_ context.Context, e tidings.Event) error {
			var o order
			if err := e.Decode(&o); err != nil {
				return err
			}
			*to = append(*to, o.ID)
			return nil
		}
	}
	if _, err := placed.Subscribe(ctx, func(_ context.Context, e tidings.Event, o order) error {
		typed = append(typed, o.ID)
		return nil
	}, nil); err != nil {
		t.Fatal(err)
	}
	subscribe(t, b, "test.placed", collect(&byName), nil)
	subscribe(t, b, "test.*", collect(&wild), nil)
	subscribe(t, b, "test.>", collect(&inline), &tidings.SubscribeOptions{Inline: true})
	subscribe(t, b, "other.>", func(context.Context, tidings.Event) error { t.Error("not for this one"); return nil }, nil)
	var want []int
	for i := range 2000 {
		want = append(want, i)
		if err := placed.Publish(ctx, order{i}); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, b)
	for name, got := range map[string][]int{"typed": typed, "by name": byName, "wildcard": wild, "inline": inline} {
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %d events, not 2000 in order", name, len(got))
		}
	}
}

func TestListening(t *testing.T) {
	b := newBus(t, tidings.Options{})
	if b.Listening("a.b") || b.Listening("") {
		t.Error("somebody listens on a new bus")
	}
	s := subscribe(t, b, "a.*", func(context.Context, tidings.Event) error { return nil }, nil)
	if !b.Listening("a.b") || b.Listening("a.b.c") {
		t.Error("Listening does not follow the pattern")
	}
	s.Stop()
	if b.Listening("a.b") {
		t.Error("somebody listens after Stop")
	}
}

func TestBadTopicsAreRefused(t *testing.T) {
	b := newBus(t, tidings.Options{})
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "$SYS.x", "_INBOX.x", "a\x00", "tidings.settled", strings.Repeat("x", 2000)} {
		err := b.Publish(ctx, name, nil)
		var e *tidings.Error
		if !errors.Is(err, tidings.ErrTopic) || !errors.As(err, &e) || e.Accepted {
			t.Errorf("Publish(%.20q): %v", name, err)
		}
	}
	for _, pattern := range []string{"", "a.>.b", "a*", "a.b>"} {
		if _, err := b.Subscribe(ctx, pattern, func(context.Context, tidings.Event) error { return nil }, nil); !errors.Is(err, tidings.ErrTopic) {
			t.Errorf("Subscribe(%q): %v", pattern, err)
		}
	}
}

func TestBadOptionsNameTheField(t *testing.T) {
	for field, o := range map[string]tidings.Options{
		"Options.App":       {App: "a.b"},
		"Options.Instance":  {Instance: "a b"},
		"Options.Prefix":    {Prefix: "x.*"},
		"Options.Routes[0]": {Routes: []tidings.Route{{Pattern: "a."}}},
		"Class":             {Routes: []tidings.Route{{Pattern: "a.>"}}},
		"AckSpool":          {Routes: []tidings.Route{{Pattern: "a", Class: tidings.Live, Ack: tidings.AckSpool}}},
	} {
		if _, err := tidings.New(o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	b := newBus(t, tidings.Options{})
	h := func(context.Context, tidings.Event) error { return nil }
	key := func(tidings.Event) string { return "" }
	for field, o := range map[string]tidings.SubscribeOptions{
		"Queue":              {Queue: -1},
		"Group":              {Group: "a|b"},
		"Broadcast":          {Broadcast: true, Group: "g"},
		"Durable":            {Broadcast: true, Durable: true},
		"Workers":            {Inline: true, Workers: 2},
		"Key":                {Key: key},
		"Overflow":           {Overflow: 9},
		"Timeout":            {Timeout: -1},
		"HungAfter":          {Inline: true, HungAfter: time.Second},
		"Retry":              {Inline: true, Retry: tidings.Retry{Attempts: 2}},
		"leave out Inline":   {Inline: true, Durable: true},
		"BlockTimeout":       {Overflow: tidings.Fail, BlockTimeout: time.Second},
		"BlockTimeout is of": {Inline: true, BlockTimeout: time.Second},
		"Retry.Backoff":      {Retry: tidings.Retry{Backoff: time.Second}},
		"Retry.MaxBackoff":   {Retry: tidings.Retry{Attempts: 2, Backoff: time.Minute, MaxBackoff: time.Second}},
		"Deaths":             {Retry: tidings.Retry{Deaths: 1}}, // not Durable
		"Deaths is":          {Durable: true, Retry: tidings.Retry{Deaths: -1}},
		"200":                {Name: strings.Repeat("x", 201)},
		`'\n'`:               {Name: "two\nlines"},
		"UTF-8":              {Name: "\xff"},
	} {
		if _, err := b.Subscribe(ctx, "a", h, &o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, o := range []tidings.SubscribeOptions{
		{Inline: true, Timeout: time.Second, Workers: 1}, {Overflow: tidings.Block, BlockTimeout: time.Second},
		{Retry: tidings.Retry{Attempts: 2, MaxBackoff: time.Second}}, {HungAfter: time.Second, Timeout: time.Minute}, {Name: "a mailer, für Kunden"},
	} {
		if _, err := b.Subscribe(ctx, "a", h, &o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := b.Subscribe(ctx, "a", nil, nil); err == nil {
		t.Error("a nil handler was taken")
	}
	if _, err := b.Subscribe(ctx, "a", h, &tidings.SubscribeOptions{Durable: true}); !errors.Is(err, tidings.ErrNotDurable) {
		t.Errorf("durable without a route: %v", err)
	}
}

func TestRoutesFromTheEnvironment(t *testing.T) {
	t.Setenv("TIDINGS_ROUTES", "order.>=durable, debug.>=local")
	b := newBus(t, tidings.Options{})
	if _, err := b.Subscribe(ctx, "order.placed", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Durable: true}); err != nil {
		t.Error(err)
	}
	t.Setenv("TIDINGS_ROUTES", "order.>=durabel")
	if _, err := tidings.New(tidings.Options{}); err == nil || !strings.Contains(err.Error(), "TIDINGS_ROUTES") {
		t.Errorf("a bad TIDINGS_ROUTES: %v", err)
	}
}

// What transports are told: that of the code, then that of the environment.
func TestSpoolMaxFromTheEnvironment(t *testing.T) {
	var got adapter.Config
	scheme := fmt.Sprint("spool-max-", time.Now().UnixNano()) // once per run of this test
	adapter.Register(scheme, func(_ context.Context, _ string, c adapter.Config) (adapter.Adapter, error) {
		got = c
		return nil, errors.New("it is asked for its options only")
	})
	for _, c := range []struct {
		env  string
		code int64
		want int64
	}{{"", 0, 0}, {"4096", 0, 4096}, {"64KiB", 0, 64 << 10}, {"3MiB", 0, 3 << 20}, {"2GiB", 0, 2 << 30}, {"64KiB", 5000, 5000}} {
		t.Setenv("TIDINGS_SPOOL_MAX", c.env)
		if b, err := tidings.Open(ctx, scheme+":", tidings.Options{SpoolMax: c.code}); err == nil || b != nil || got.SpoolMax != c.want {
			t.Errorf("%q and %d: %d, want %d; %v", c.env, c.code, got.SpoolMax, c.want, err)
		}
	}
	for _, bad := range []string{"much", "-1", "0", "1.5MiB", "9000000000GiB"} {
		t.Setenv("TIDINGS_SPOOL_MAX", bad)
		if _, err := tidings.New(tidings.Options{}); err == nil || !strings.Contains(err.Error(), "TIDINGS_SPOOL_MAX") || !strings.Contains(err.Error(), "512MiB") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAFailureStaysInItsSubscription(t *testing.T) {
	var got errs
	b := newBus(t, tidings.Options{OnError: got.add})
	boom := errors.New("boom")
	var after atomic.Int32
	for _, inline := range []bool{false, true} {
		o := &tidings.SubscribeOptions{Inline: inline}
		subscribe(t, b, "x", func(context.Context, tidings.Event) error { panic(boom) }, o)
		subscribe(t, b, "x", func(context.Context, tidings.Event) error { return boom }, o)
		subscribe(t, b, "x", func(context.Context, tidings.Event) error { after.Add(1); return nil }, o)
	}
	subscribe(t, b, "x", func(context.Context, tidings.Event) error { runtime.Goexit(); return nil }, nil)
	for range 2 {
		if err := b.Publish(ctx, "x", 1); err != nil {
			t.Errorf("a subscriber's failure reached the publisher: %v", err)
		}
	}
	drain(t, b)
	if after.Load() != 4 {
		t.Errorf("the sound subscribers ran %d times, want 4", after.Load())
	}
	panics := 0
	for _, err := range got.list() {
		var p *tidings.PanicError
		if errors.As(err, &p) {
			panics++
			if !errors.Is(err, boom) || !strings.Contains(string(p.Stack), "bus_test.go") {
				t.Errorf("the panic lost its value or stack: %v", err)
			}
		}
	}
	if panics != 4 || len(got.list()) != 10 {
		t.Errorf("reported %d errors, %d of them panics; want 10 and 4", len(got.list()), panics)
	}
}

func TestInstrument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		var last tidings.Event
		boom := errors.New("boom")
		run := func(fn func(context.Context) error) error { return b.Instrument(ctx, "job.run", 7, fn) }
		if err := run(func(context.Context) error { return boom }); err != boom {
			t.Errorf("nobody listens: %v", err)
		}
		subscribe(t, b, "job.run", func(_ context.Context, e tidings.Event) error {
			last = e
			panic("a bad subscriber")
		}, &tidings.SubscribeOptions{Inline: true})
		if err := run(func(context.Context) error { time.Sleep(time.Second); return boom }); err != boom {
			t.Errorf("Instrument returned %v", err)
		}
		if last.Duration() != time.Second || last.Err() != boom || last.Payload() != 7 {
			t.Errorf("event: %v %v %v", last.Duration(), last.Err(), last.Payload())
		}
		func() {
			defer func() {
				if p := recover(); p != boom {
					t.Errorf("the block's panic came back as %v", p)
				}
			}()
			_ = run(func(context.Context) error { panic(boom) })
		}()
		var p *tidings.PanicError
		if !errors.As(last.Err(), &p) {
			t.Errorf("the event of a panic has %v", last.Err())
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = run(func(context.Context) error { runtime.Goexit(); return nil }) })
		wg.Wait()
		if last.Err() == nil {
			t.Error("the event of a block that ended its goroutine has no error")
		}
		if err := b.Instrument(ctx, "bad topic", nil, func(context.Context) error { return boom }); err != boom {
			t.Errorf("a bad topic changed what it instruments: %v", err)
		}
	})
}

func TestTypedTopicTakenWithAnotherType(t *testing.T) {
	b := newBus(t, tidings.Options{})
	tidings.NewTopic[int]("typed.once").On(b)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	tidings.NewTopic[string]("typed.once")
}

func TestAlwaysEncode(t *testing.T) {
	b := newBus(t, tidings.Options{AlwaysEncode: true})
	sent := &order{7}
	subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
		var o order
		if err := e.Decode(&o); err != nil || o.ID != 7 {
			t.Errorf("decoded %v, %v", o, err)
		}
		if e.Payload() == any(sent) {
			t.Error("the local value came through")
		}
		return nil
	}, nil)
	if err := b.Publish(ctx, "x", sent); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, "x", func() {}); err == nil {
		t.Error("a payload that cannot be encoded was accepted")
	}
	drain(t, b)
}

func TestNamesThatAreNeverSeenAgainAreForgotten(t *testing.T) {
	b := newBus(t, tidings.Options{})
	placed := tidings.NewTopic[int]("keep.me").On(b)
	n := 0
	subscribe(t, b, "keep.*", func(context.Context, tidings.Event) error { n++; return nil }, &tidings.SubscribeOptions{Inline: true})
	for i := range 20000 {
		if err := b.Publish(ctx, fmt.Sprintf("user.%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if entries := tidings.Entries(b); entries > 5000 {
		t.Errorf("%d topics are remembered", entries)
	}
	_ = placed.Publish(ctx, 1)
	if n != 1 {
		t.Error("a typed topic was forgotten")
	}
}

// Tests of other packages use the Default bus in bubble after bubble.
func TestDefaultBusInSeveralBubbles(t *testing.T) {
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			s, err := tidings.Subscribe(ctx, "bubble.x", func(context.Context, tidings.Event) error { return nil }, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := tidings.Publish(ctx, "bubble.x", 1); err != nil {
				t.Error(err)
			}
			if err := s.Drain(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}
