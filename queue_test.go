package tidings_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// held is a subscription whose handler waits for release.
func held(t *testing.T, b either, o tidings.SubscribeOptions) (got *[]int, release chan struct{}) {
	t.Helper()
	got, release = new([]int), make(chan struct{})
	subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
		<-release
		*got = append(*got, e.Payload().(int))
		return nil
	}, &o)
	return got, release
}

func TestOverflow(t *testing.T) {
	for name, c := range map[string]struct {
		policy tidings.Overflow
		want   []int // handled of 0…4, with one in the handler and room for two
		errs   int
		after  time.Duration
	}{
		"Block":      {tidings.Block, []int{0, 1, 2}, 2, 10 * time.Second},
		"DropOldest": {tidings.DropOldest, []int{0, 3, 4}, 0, 0},
		"DropNewest": {tidings.DropNewest, []int{0, 1, 2}, 0, 0},
		"Fail":       {tidings.Fail, []int{0, 1, 2}, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, tidings.Options{})
				got, release := held(t, b, tidings.SubscribeOptions{Queue: 2, Overflow: c.policy})
				start, failed := time.Now(), 0
				for i := range 5 {
					err := b.Publish(ctx, "x", i)
					if err != nil && !errors.Is(err, tidings.ErrOverflow) {
						t.Errorf("event %d: %v", i, err)
					}
					if err != nil {
						failed++
					}
					synctest.Wait() // the worker has taken what it can
				}
				if failed != c.errs || time.Since(start) != c.after {
					t.Errorf("%d errors after %v; want %d after %v", failed, time.Since(start), c.errs, c.after)
				}
				if d := b.Debugger().Snapshot().Subscriptions[0].Dropped; d != 2 {
					t.Errorf("%d drops counted, want 2", d)
				}
				close(release)
				drain(t, b)
				if !slices.Equal(*got, c.want) {
					t.Errorf("handled %v, want %v", *got, c.want)
				}
			})
		})
	}
}

func TestBlockEndsWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		got, release := held(t, b, tidings.SubscribeOptions{Queue: 1})
		time.AfterFunc(time.Second, func() { close(release) })
		for i := range 5 {
			if err := b.Publish(ctx, "x", i); err != nil {
				t.Error(err)
			}
		}
		drain(t, b)
		if !slices.Equal(*got, []int{0, 1, 2, 3, 4}) {
			t.Errorf("handled %v", *got)
		}
	})
}

func TestAHandlerThatFillsItsOwnQueueFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		start := time.Now()
		var overflow error
		subscribe(t, b, "x", func(context.Context, tidings.Event) error {
			for overflow == nil {
				// Background: the context does not tell the bus who calls.
				overflow = b.Publish(context.Background(), "x", nil)
			}
			return nil
		}, &tidings.SubscribeOptions{Queue: 2})
		if err := b.Publish(ctx, "x", nil); err != nil {
			t.Error(err)
		}
		drain(t, b)
		if !errors.Is(overflow, tidings.ErrOverflow) || time.Since(start) != 0 {
			t.Errorf("%v after %v", overflow, time.Since(start))
		}
	})
}

func TestRetry(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		err      error
		attempts int
		after    time.Duration
	}{
		"doubles":    {boom, 4, 700 * time.Millisecond},
		"permanent":  {tidings.Permanent(boom), 1, 0},
		"retryafter": {tidings.RetryAfter(boom, time.Minute), 4, 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := kit(t, tidings.Options{})
				b.ExpectError(boom)
				start := time.Now()
				var seen []int
				subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
					seen = append(seen, e.Attempt())
					return c.err
				}, &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 4}})
				_ = b.Publish(ctx, "x", nil)
				drain(t, b)
				if want := []int{1, 2, 3, 4}[:c.attempts]; !slices.Equal(seen, want) || time.Since(start) != c.after {
					t.Errorf("attempts %v after %v; want %v after %v", seen, time.Since(start), want, c.after)
				}
			})
		})
	}
}

func TestTimeoutCancelsTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		var cause error
		type key struct{}
		pub, cancel := context.WithCancel(context.WithValue(ctx, key{}, "value"))
		subscribe(t, b, "x", func(ctx context.Context, e tidings.Event) error {
			cancel() // the publisher's life is not the handler's
			if ctx.Value(key{}) != "value" || ctx.Err() != nil {
				t.Errorf("value %v, err %v", ctx.Value(key{}), ctx.Err())
			}
			<-ctx.Done()
			cause = ctx.Err()
			return nil
		}, &tidings.SubscribeOptions{Timeout: time.Second})
		start := time.Now()
		_ = b.Publish(pub, "x", nil)
		drain(t, b)
		if cause != context.DeadlineExceeded || time.Since(start) != time.Second {
			t.Errorf("%v after %v", cause, time.Since(start))
		}
	})
}

func TestKeyKeepsOrderBetweenWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		got := make([][]int, 10)
		start := time.Now()
		subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
			n := e.Payload().(int)
			time.Sleep(time.Duration(10-n/10) * time.Millisecond) // later ones are faster
			got[n%10] = append(got[n%10], n/10)
			return nil
		}, &tidings.SubscribeOptions{Workers: 8, Key: func(e tidings.Event) string { return string(rune('a' + e.Payload().(int)%10)) }})
		serial := time.Duration(0)
		for i := range 100 {
			serial += time.Duration(10-i/10) * time.Millisecond
			_ = b.Publish(ctx, "x", i)
		}
		drain(t, b)
		for k, seq := range got {
			if len(seq) != 10 || !slices.IsSorted(seq) {
				t.Errorf("key %d was handled in the order %v", k, seq)
			}
		}
		if d := time.Since(start); d >= serial {
			t.Errorf("took %v, as long as one worker", d)
		}
	})
}

func TestDrainFinishesWhatWasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		var first, second int
		subscribe(t, b, "first", func(context.Context, tidings.Event) error {
			time.Sleep(time.Second)
			first++
			return b.Publish(context.Background(), "second", nil) // handlers go on publishing
		}, nil)
		subscribe(t, b, "second", func(context.Context, tidings.Event) error { second++; return nil }, nil)
		for range 10 {
			_ = b.Publish(ctx, "first", nil)
		}
		time.AfterFunc(time.Second/2, func() {
			if err := b.Publish(ctx, "first", nil); !errors.Is(err, tidings.ErrDraining) {
				t.Errorf("Publish while draining: %v", err)
			}
			if _, err := b.Subscribe(ctx, "third", func(context.Context, tidings.Event) error { return nil }, nil); !errors.Is(err, tidings.ErrDraining) {
				t.Errorf("Subscribe while draining: %v", err)
			}
			drain(t, b) // a second call waits for the first
		})
		drain(t, b)
		if first != 10 || second != 10 {
			t.Errorf("handled %d and %d, want 10 and 10", first, second)
		}
		if err := b.Publish(ctx, "first", nil); !errors.Is(err, tidings.ErrClosed) {
			t.Errorf("Publish after Drain: %v", err)
		}
	})
}

func TestDrainNamesWhatItsDeadlineCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		subscribe(t, b, "slow.*", func(ctx context.Context, e tidings.Event) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil)
		for range 5 {
			_ = b.Publish(ctx, "slow.one", nil)
		}
		synctest.Wait()
		deadline, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := b.Drain(deadline)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "slow.*") || !strings.Contains(err.Error(), "4 queued") {
			t.Errorf("Drain: %v", err)
		}
	})
}

// Every method that ends or changes things, called inside a handler with a
// context that does not tell the bus, returns.
func TestCallsFromInsideHandlersReturn(t *testing.T) {
	for name, call := range map[string]func(*tidings.Bus, *tidings.Subscription) error{
		"Drain":     func(b *tidings.Bus, _ *tidings.Subscription) error { return b.Drain(context.Background()) },
		"Close":     func(b *tidings.Bus, _ *tidings.Subscription) error { return b.Close() },
		"Stop":      func(_ *tidings.Bus, s *tidings.Subscription) error { s.Stop(); return nil },
		"sub.Drain": func(_ *tidings.Bus, s *tidings.Subscription) error { return s.Drain(context.Background()) },
		"Ready":     func(b *tidings.Bus, _ *tidings.Subscription) error { return b.Ready(context.Background()) },
		"Subscribe": func(b *tidings.Bus, _ *tidings.Subscription) error {
			_, err := b.Subscribe(context.Background(), "y", func(context.Context, tidings.Event) error { return nil }, nil)
			return err
		},
		"Publish":  func(b *tidings.Bus, _ *tidings.Subscription) error { return b.Publish(context.Background(), "y", 1) },
		"Snapshot": func(b *tidings.Bus, _ *tidings.Subscription) error { b.Debugger().Snapshot(); return nil },
		"Instrument": func(b *tidings.Bus, _ *tidings.Subscription) error {
			return b.Instrument(context.Background(), "y", 1, func(context.Context) error { return nil })
		},
	} {
		for _, inline := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := kit(t, tidings.Options{})
					subs := make(chan *tidings.Subscription, 1)
					s := subscribe(t, b, "x", func(context.Context, tidings.Event) error {
						return call(b.Bus, <-subs)
					}, &tidings.SubscribeOptions{Inline: inline})
					subs <- s
					if err := b.Publish(ctx, "x", 1); err != nil {
						t.Error(err)
					}
					synctest.Wait()
					drain(t, b)
					<-s.Done()
				})
			})
		}
	}
}

// A drain whose deadline passed says so, also when what still runs was stopped
// before; and one that had nothing to do does not.
func TestDrainNamesStoppedSubscriptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		release := make(chan struct{})
		s := subscribe(t, b, "x", func(context.Context, tidings.Event) error { <-release; return nil }, nil)
		subscribe(t, b, "idle", func(context.Context, tidings.Event) error { return nil }, nil)
		for range 3 {
			_ = b.Publish(ctx, "x", nil)
		}
		synctest.Wait()
		s.Stop()
		deadline, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := b.Drain(deadline); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "was stopped") || strings.Contains(err.Error(), "idle") {
			t.Errorf("Drain: %v", err)
		}
		close(release)
		<-s.Done()
		if n := b.Debugger().Snapshot().Dropped; n != 2 {
			t.Errorf("%d events dropped, want 2", n)
		}

		late := newBus(t, tidings.Options{})
		subscribe(t, late, "idle", func(context.Context, tidings.Event) error { return nil }, nil)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := late.Drain(gone); err != nil {
			t.Errorf("nothing was left, yet: %v", err)
		}
	})
}

func TestStopDropsAndCloseCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		cancelled := false
		s := subscribe(t, b, "x", func(ctx context.Context, e tidings.Event) error {
			<-ctx.Done()
			cancelled = true
			return nil
		}, nil)
		_ = b.Publish(ctx, "x", 1)
		_ = b.Publish(ctx, "x", 2)
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		<-s.Done()
		if !cancelled || s.Err() != nil {
			t.Errorf("cancelled %v, Err %v", cancelled, s.Err())
		}
	})
}

// Accepted is true exactly if somebody took the event.
func TestAcceptedTellsWhetherAnybodyTookIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		var releases []chan struct{}
		for range 2 {
			_, release := held(t, b, tidings.SubscribeOptions{Queue: 1, Overflow: tidings.Fail})
			releases = append(releases, release)
		}
		publish := func() (accepted bool, err error) {
			err = b.Publish(ctx, "x", 1)
			synctest.Wait()
			var e *tidings.Error
			return errors.As(err, &e) && e.Accepted, err
		}
		for range 2 {
			if _, err := publish(); err != nil {
				t.Fatal(err)
			}
		}
		if accepted, err := publish(); accepted || !errors.Is(err, tidings.ErrOverflow) {
			t.Errorf("both full: %v, accepted %v", err, accepted)
		}
		releases[0] <- struct{}{}
		synctest.Wait()
		if accepted, err := publish(); !accepted || !errors.Is(err, tidings.ErrOverflow) {
			t.Errorf("one full: %v, accepted %v", err, accepted)
		}
		close(releases[0])
		close(releases[1])
		drain(t, b)
	})
}
