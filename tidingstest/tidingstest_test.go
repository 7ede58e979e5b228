package tidingstest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ctx     = context.Background()
	errBoom = errors.New("boom")
)

// reporter is a test whose failures are what is tested.
type reporter struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
	log      strings.Builder
}

func (*reporter) Helper()            {}
func (r *reporter) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *reporter) Output() io.Writer { return &r.log }

func (r *reporter) Errorf(format string, v ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, v...))
}

func (r *reporter) Fatalf(format string, v ...any) {
	r.Errorf(format, v...)
	runtime.Goexit() // as t.FailNow does
}

// outcome runs f as a test with its clean-ups, and returns how it failed.
func outcome(t *testing.T, f func(t testing.TB)) string {
	t.Helper()
	r := &reporter{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	for _, cleanup := range slices.Backward(r.cleanups) {
		cleanup()
	}
	return strings.Join(r.failures, "\n")
}

// wantFailure checks that there is one, and that it says all this.
func wantFailure(t *testing.T, got string, says ...string) {
	t.Helper()
	if got == "" {
		t.Error("the test did not fail")
	}
	for _, s := range says {
		if !strings.Contains(got, s) {
			t.Errorf("the failure does not say %q:\n%s", s, got)
		}
	}
	t.Log(got) // to read with -v
}

func wantSuccess(t *testing.T, got string) {
	t.Helper()
	if got != "" {
		t.Errorf("the test failed: %s", got)
	}
}

func subscribe(t testing.TB, b *tidingstest.Bus, pattern string, h tidings.Handler, o *tidings.SubscribeOptions) *tidings.Subscription {
	t.Helper()
	s, err := b.Subscribe(ctx, pattern, h, o)
	if err != nil {
		t.Fatalf("Subscribe: %v", err)
	}
	return s
}

func publish(t testing.TB, b *tidingstest.Bus, topic string, payload any) {
	t.Helper()
	if err := b.Publish(ctx, topic, payload); err != nil {
		t.Fatalf("Publish: %v", err)
	}
}

func nothing(context.Context, tidings.Event) error { return nil }

func TestASoundTestPasses(t *testing.T) {
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		n := 0
		subscribe(t, b, "a", func(context.Context, tidings.Event) error { n++; return nil }, nil)
		for range 1000 {
			publish(t, b, "a", nil)
		}
		b.Settle()
		if n != 1000 {
			t.Errorf("%d of 1000 handled after Settle", n)
		}
	}))
}

func TestAHandlerThatHangsFailsTheTest(t *testing.T) {
	for name, o := range map[string]*tidings.SubscribeOptions{"queued": nil, "inline": {Inline: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release, begun := make(chan struct{}), make(chan struct{}, 3)
				began := time.Now()
				got := outcome(t, func(t testing.TB) {
					b := tidingstest.New(t)
					subscribe(t, b, "stuck.*", func(context.Context, tidings.Event) error {
						begun <- struct{}{}
						stuckHere(release)
						return nil
					}, o)
					go func() { _ = b.Publish(ctx, "stuck.now", nil) }()
					<-begun
				})
				wantFailure(t, got, "stuckHere", "tidingstest_test.go:", "stuck.now", "has not ended")
				if d := time.Since(began); d != 5*time.Second {
					t.Errorf("the test was over after %v, want 5s", d)
				}
				close(release)
			})
		})
	}
}

func stuckHere(release chan struct{}) { <-release }

func TestABatchHandlerThatHangsFailsTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, begun := make(chan struct{}), make(chan struct{})
		got := outcome(t, func(t testing.TB) {
			b := tidingstest.New(t, tidingstest.Options{Timeout: time.Minute})
			if _, err := b.SubscribeBatch(ctx, "batch.>", func(context.Context, []tidings.Event) error {
				close(begun)
				stuckHere(release)
				return nil
			}, &tidings.SubscribeOptions{BatchSize: 1, HungAfter: time.Hour}); err != nil {
				t.Fatalf("%v", err)
			}
			publish(t, b, "batch.x", nil)
			<-begun
			publish(t, b, "batch.x", nil)
		})
		wantFailure(t, got, "after 1m0s", "subscription batch.>", "1 handlers running, 1 events queued", "tidingstest_test.go:", "stuckHere")
		if strings.Contains(got, "dropped") {
			t.Error("what the deadline cut is reported twice")
		}
		close(release)
	})
}

func TestAHandlerOfAnEndedSubscriptionIsSeen(t *testing.T) {
	for name, end := range map[string]func(*tidingstest.Bus, *tidings.Subscription){
		"stopped": func(_ *tidingstest.Bus, s *tidings.Subscription) { s.Stop() },
		"closed":  func(b *tidingstest.Bus, _ *tidings.Subscription) { _ = b.Close() },
		"drained in vain": func(_ *tidingstest.Bus, s *tidings.Subscription) {
			over, cancel := context.WithCancel(ctx)
			cancel()
			_ = s.Drain(over)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release, begun := make(chan struct{}), make(chan struct{})
				wantFailure(t, outcome(t, func(t testing.TB) {
					b := tidingstest.New(t)
					s := subscribe(t, b, "a", func(context.Context, tidings.Event) error { close(begun); stuckHere(release); return nil }, nil)
					publish(t, b, "a", nil)
					<-begun
					end(b, s)
				}), "stuckHere")
				close(release)
			})
			synctest.Test(t, func(t *testing.T) { // one that ends later is waited for
				wantSuccess(t, outcome(t, func(t testing.TB) {
					b, begun := tidingstest.New(t), make(chan struct{})
					s := subscribe(t, b, "a", func(context.Context, tidings.Event) error {
						close(begun)
						time.Sleep(time.Second)
						return nil
					}, nil)
					publish(t, b, "a", nil)
					<-begun
					end(b, s)
				}))
			})
		})
	}
}

// The kit's middleware is not around batch handlers: the bus alone knows that they
// run, and no Snapshot shows them any more.
func TestABatchHandlerOfAnEndedSubscriptionIsSeen(t *testing.T) {
	for name, end := range map[string]func(*tidingstest.Bus, *tidings.Subscription){
		"stopped":               func(_ *tidingstest.Bus, s *tidings.Subscription) { s.Stop() },
		"closed":                func(b *tidingstest.Bus, _ *tidings.Subscription) { _ = b.Close() },
		"stopped, then settled": func(b *tidingstest.Bus, s *tidings.Subscription) { s.Stop(); b.Settle() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release, begun := make(chan struct{}), make(chan struct{})
				wantFailure(t, outcome(t, func(t testing.TB) {
					b := tidingstest.New(t)
					s, err := b.SubscribeBatch(ctx, "a", func(context.Context, []tidings.Event) error { close(begun); stuckHere(release); return nil },
						&tidings.SubscribeOptions{BatchSize: 1})
					if err != nil {
						t.Fatalf("%v", err)
					}
					publish(t, b, "a", nil)
					<-begun
					end(b, s)
				}), "after 5s", "stuckHere")
				close(release)
			})
		})
	}
}

func TestErrorsFailTheTest(t *testing.T) {
	handle := func(t testing.TB, b *tidingstest.Bus) {
		subscribe(t, b, "a", func(context.Context, tidings.Event) error { return errBoom }, nil)
		publish(t, b, "a", nil)
	}
	wantFailure(t, outcome(t, func(t testing.TB) { handle(t, tidingstest.New(t)) }), "not expected", "boom")
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		b.ExpectError(errBoom)
		handle(t, b)
		b.Settle()
		if errs := b.Errors(); len(errs) != 1 || !errors.Is(errs[0], errBoom) {
			t.Errorf("Errors: %v", errs)
		}
	}))
	wantFailure(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		b.ExpectError(context.Canceled)
		handle(t, b)
	}), "not expected", "boom", "did not come: errors.Is context canceled")
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		b.AllowErrors(nil)
		handle(t, b)
	}))
	wantFailure(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		b.AllowErrors(func(err error) bool { return errors.Is(err, context.Canceled) })
		handle(t, b)
	}), "boom")
	wantSuccess(t, outcome(t, func(t testing.TB) {
		var theirs error
		b := tidingstest.New(t, tidingstest.Options{Bus: tidings.Options{OnError: func(_ context.Context, err error) { theirs = err }}})
		b.ExpectErrorMatching("a boom", func(err error) bool { return strings.Contains(err.Error(), "boom") })
		handle(t, b)
		b.Settle()
		if !errors.Is(theirs, errBoom) {
			t.Errorf("the test's own OnError got %v", theirs)
		}
	}))
}

func TestDroppedEventsFailTheTest(t *testing.T) {
	overflow := func(t testing.TB, b *tidingstest.Bus) {
		release, begun := make(chan struct{}), make(chan struct{}, 3)
		subscribe(t, b, "drop.*", func(context.Context, tidings.Event) error { begun <- struct{}{}; <-release; return nil },
			&tidings.SubscribeOptions{Name: "mailer", Queue: 1, Overflow: tidings.DropNewest})
		publish(t, b, "drop.a", nil)
		<-begun
		publish(t, b, "drop.b", nil)
		publish(t, b, "drop.c", nil)
		close(release)
	}
	got := outcome(t, func(t testing.TB) { overflow(t, tidingstest.New(t)) })
	wantFailure(t, got, "1 events were dropped", `1 by the subscription "mailer": drop.* `, "tidingstest_test.go:")
	if strings.Contains(got, "had ended") {
		t.Error("a drop is reported twice")
	}
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		b.AllowDrops()
		overflow(t, b)
	}))
	wantFailure(t, outcome(t, func(t testing.TB) {
		quiet := tidings.Options{Logger: slog.New(slog.DiscardHandler)} // what counts is not what is logged
		b, release, begun := tidingstest.New(t, tidingstest.Options{Bus: quiet}), make(chan struct{}), make(chan struct{}, 2)
		s := subscribe(t, b, "a", func(context.Context, tidings.Event) error { begun <- struct{}{}; <-release; return nil }, nil)
		publish(t, b, "a", nil)
		<-begun
		publish(t, b, "a", nil)
		s.Stop()
		close(release)
	}), "1 events were dropped", "1 by subscriptions that had ended")
}

func TestPayloadsMustBeEncodable(t *testing.T) {
	bad := make(chan int)
	wantFailure(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t)
		subscribe(t, b, "a", nothing, nil)
		if err := b.Publish(ctx, "a", bad); err == nil {
			t.Errorf("Publish took a channel")
		}
		_ = b.Instrument(ctx, "a", bad, nil)
	}), "not expected", "cannot encode the payload chan int")
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t, tidingstest.Options{NoEncode: true})
		var got any
		subscribe(t, b, "a", func(_ context.Context, e tidings.Event) error { got = e.Payload(); return nil }, nil)
		publish(t, b, "a", bad)
		b.Settle()
		if got != bad {
			t.Errorf("the handler got %v", got)
		}
	}))
}

func TestStrictPassesThrough(t *testing.T) {
	wantSuccess(t, outcome(t, func(t testing.TB) {
		b := tidingstest.New(t, tidingstest.Options{Bus: tidings.Options{Strict: true}})
		subscribe(t, b, "a", func(context.Context, tidings.Event) error { return errBoom }, &tidings.SubscribeOptions{Inline: true})
		if err := b.Publish(ctx, "a", nil); !errors.Is(err, errBoom) {
			t.Errorf("Publish: %v", err)
		}
	}))
}

func TestBadOptionsFailTheTest(t *testing.T) {
	wantFailure(t, outcome(t, func(t testing.TB) { tidingstest.New(t, tidingstest.Options{}, tidingstest.Options{}) }), "2 Options")
	wantFailure(t, outcome(t, func(t testing.TB) {
		tidingstest.New(t, tidingstest.Options{Bus: tidings.Options{App: "a.b"}})
	}), "Options.App")
}

func TestAppIsTheTest(t *testing.T) {
	for _, name := range []string{"a b.c/*>", "$x", "_INBOX", strings.Repeat("é", 2000), "\xff"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := tidingstest.New(t)
			if app := b.Debugger().Snapshot().App; !strings.HasPrefix(app, "TestAppIsTheTest-") {
				t.Errorf("App is %q", app)
			}
		})
	}
	wantSuccess(t, outcome(t, func(t testing.TB) { tidingstest.New(named{t, "_INBOX"}); tidingstest.New(named{t, "$"}) }))
}

type named struct {
	testing.TB
	name string
}

func (n named) Name() string { return n.name }

// The testing package panics when a test is written to that has ended.
func TestTheLogMayBeUsedAfterTheEnd(t *testing.T) {
	r := &reporter{TB: t}
	b := tidingstest.New(r)
	b.AllowErrors(nil)
	b.Begin(ctx, "not a topic", nil) // reported, so logged
	before := r.log.String()
	if !strings.Contains(before, "not a topic") {
		t.Errorf("logged %q", before)
	}
	r.cleanups[0]()
	b.Begin(ctx, "not a topic", nil)
	if after := r.log.String(); after != before || len(b.Errors()) != 2 {
		t.Errorf("logged %q and reported %v", after, b.Errors())
	}
}

// timed is a test with a deadline.
type timed struct {
	*reporter
	at time.Time
}

func (d timed) Deadline() (time.Time, bool) { return d.at, true }

func TestTheDeadlineOfTheTestIsRespected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		wantFailure(t, outcome(t, func(t testing.TB) {
			tidingstest.New(timed{t.(*reporter), began.Add(2 * time.Second)}).Record("a").Wait(1)
		}), "0 of 1")
		if d := time.Since(began); d >= 2*time.Second || d < time.Second {
			t.Errorf("gave up after %v, want a little less than 2s", d)
		}
	})
}

func TestSettleWaitsForAllThatFollows(t *testing.T) {
	for range 50 {
		b := tidingstest.New(t)
		var mu sync.Mutex
		n := 0
		h := func(ctx context.Context, e tidings.Event) error {
			mu.Lock()
			n++
			mu.Unlock()
			if d := tidingstest.Payload[int](e); d > 0 {
				return errors.Join(b.Publish(ctx, "a", d-1), b.Publish(ctx, "b", d-1))
			}
			return nil
		}
		subscribe(t, b, "a", h, nil)
		subscribe(t, b, "b", h, &tidings.SubscribeOptions{Workers: 3})
		publish(t, b, "a", 5)
		b.Settle()
		mu.Lock()
		if n != 63 {
			t.Errorf("%d of 63 handled", n)
		}
		mu.Unlock()
	}
}

func TestSettleInABubbleTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidingstest.New(t)
		began := time.Now()
		attempts := 0
		subscribe(t, b, "slow", func(context.Context, tidings.Event) error { time.Sleep(time.Second); return nil }, nil)
		subscribe(t, b, "retried", func(context.Context, tidings.Event) error {
			if attempts++; attempts < 3 {
				return errBoom
			}
			return nil
		}, &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 3, Backoff: time.Second}})
		publish(t, b, "slow", nil)
		b.Settle()
		if d := time.Since(began); d != time.Second {
			t.Errorf("settled after %v, want 1s", d)
		}
		b.ExpectError(errBoom)
		publish(t, b, "retried", nil)
		b.Settle()
		if d := time.Since(began); d != 4*time.Second || attempts != 3 {
			t.Errorf("settled after %v and %d attempts, want 4s and 3", d, attempts)
		}
	})
}

func TestSettleWaitsForBatches(t *testing.T) {
	b := tidingstest.New(t)
	n := 0
	if _, err := b.SubscribeBatch(ctx, "a", func(_ context.Context, events []tidings.Event) error {
		n += len(events)
		return nil
	}, &tidings.SubscribeOptions{BatchWait: 5 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	for range 250 {
		publish(t, b, "a", nil)
	}
	b.Settle()
	if n != 250 {
		t.Errorf("%d of 250 handled", n)
	}
}

// Inline handlers run on no queue, and may give work to one.
func TestSettleWaitsForInlineHandlersOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, began := tidingstest.New(t), time.Now()
		begun := make(chan struct{})
		subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error {
			close(begun)
			time.Sleep(time.Second)
			return b.Publish(ctx, "b", nil)
		}, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "b", func(context.Context, tidings.Event) error { time.Sleep(time.Second); return nil }, nil)
		go func() { _ = b.Publish(ctx, "a", nil) }()
		<-begun
		b.Settle()
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("settled after %v, want 2s", d)
		}
	})
}

// And they may begin, and give it work, while the queues are waited for.
func TestSettleWaitsForInlineHandlersThatBeginMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, began := tidingstest.New(t), time.Now()
		begun := make(chan struct{})
		subscribe(t, b, "a", func(ctx context.Context, _ tidings.Event) error {
			time.Sleep(2 * time.Second)
			return b.Publish(ctx, "c", nil)
		}, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, b, "c", func(context.Context, tidings.Event) error { time.Sleep(time.Second); return nil }, nil)
		if _, err := b.SubscribeBatch(ctx, "b", func(context.Context, []tidings.Event) error {
			go func() { <-time.After(time.Second); _ = b.Publish(ctx, "a", nil) }()
			close(begun)
			time.Sleep(2 * time.Second)
			return nil
		}, &tidings.SubscribeOptions{BatchSize: 1}); err != nil {
			t.Fatal(err)
		}
		publish(t, b, "b", nil)
		<-begun
		b.Settle()
		if d := time.Since(began); d != 4*time.Second {
			t.Errorf("settled after %v, want 4s", d)
		}
	})
}

func TestSettleFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		wantFailure(t, outcome(t, func(t testing.TB) {
			b := tidingstest.New(t)
			subscribe(t, b, "a", func(context.Context, tidings.Event) error { stuckHere(release); return nil }, nil)
			publish(t, b, "a", nil)
			defer close(release)
			b.Settle()
			t.Errorf("Settle returned")
		}), "not idle after 5s", "stuckHere")
	})
}
