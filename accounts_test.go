package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// balance checks that each reception has one outcome, and the counts.
func balance(t *testing.T, i tidings.SubscriptionInfo, want tidings.SubscriptionInfo) {
	t.Helper()
	got := tidings.SubscriptionInfo{Received: i.Received, Redelivered: i.Redelivered, Handled: i.Handled, GaveUp: i.GaveUp, Returned: i.Returned,
		Expired: i.Expired, Dropped: i.Dropped, Left: i.Left, Acked: i.Acked, Failed: i.Failed}
	if text, expected := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); text != expected {
		t.Errorf("%s of group %q:\n got %s\nwant %s", i.Pattern, i.Group, text, expected)
	}
	if sum := i.Handled + i.GaveUp + i.Returned + i.Expired + i.Dropped + i.Left; !i.Ended || sum != i.Received {
		t.Errorf("%s of group %q, ended %v: %d received, %d with an outcome", i.Pattern, i.Group, i.Ended, i.Received, sum)
	}
	if len(i.HandedBack) > 0 && uint64(len(i.HandedBack)) != i.Left {
		t.Errorf("%s of group %q: %d left, %d named", i.Pattern, i.Group, i.Left, len(i.HandedBack))
	}
}

// Of the events of one number of ten each, a handler handles two at once, retries one
// once and one three times, and gives one up; the rest expire or are handled. Retries
// inside the process are one reception, those by the store one each.
func TestEachReceptionHasOneOutcome(t *testing.T) {
	for name, o := range map[string]tidings.SubscribeOptions{
		"key": {Workers: 3, Key: func(e tidings.Event) string { return fmt.Sprint(planned(e) % 7) }}, "no key": {Workers: 3}, "batch": {BatchSize: 4},
	} {
		t.Run(name, func(t *testing.T) {
			overTransports(t, func(t *testing.T, url string) { outcomes(t, url, &o) })
		})
	}
}

func planned(e tidings.Event) (n int) {
	_ = e.Decode(&n)
	return n
}

func outcomes(t *testing.T, url string, o *tidings.SubscribeOptions) {
	const n = 200
	b := process(t, url, "billing", quiet())
	var over atomic.Int32
	published := make(chan struct{}) // and what expires has
	o.Durable, o.Retry = true, tidings.Retry{Backoff: time.Millisecond, MaxBackoff: time.Millisecond}
	handle := func(_ context.Context, e tidings.Event) error {
		<-published
		switch i := planned(e) % 10; {
		case i == 2 && e.Attempt() == 1, i == 3 && e.Attempt() <= 3:
			return errors.New("not yet")
		case i == 4:
			over.Add(1)
			return tidings.Permanent(errors.New("never"))
		}
		over.Add(1)
		return nil
	}
	// An error is of a whole batch, and which events meet in one is chance.
	batch := o.BatchSize > 0
	var err error
	if batch {
		_, err = b.SubscribeBatch(deadline(t), "order.*", func(ctx context.Context, all []tidings.Event) error {
			var first error
			for i, e := range all {
				if err := handle(ctx, e); i == 0 {
					first = err
				}
			}
			return first
		}, o)
	} else {
		_, err = b.Subscribe(deadline(t), "order.*", handle, o)
	}
	if err != nil {
		t.Fatal(err)
	}
	expired := time.Now()
	for i := range n {
		f := tidings.EventFields{Topic: "order.placed", Payload: i}
		if batch {
			f.Payload = 0
		}
		publish := func(lasts time.Duration) error {
			if !batch && i%10 == 5 {
				f.Expires = time.Now().Add(lasts)
				expired = f.Expires
			}
			return b.PublishEvent(deadline(t), tidings.NewEvent(f))
		}
		lasts := time.Millisecond
		err := publish(lasts)
		for ; err != nil && lasts < time.Second; err = publish(lasts) {
			lasts *= 2 // on a busy machine it has expired before, and is refused
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(time.Until(expired))
	close(published)
	info := func() tidings.SubscriptionInfo { return b.Debugger().Snapshot().Subscriptions[0] }
	testkit.Until(t, 30*time.Second, func() bool { i := info(); return uint64(over.Load())+i.Expired == n && i.GaveUp+i.Acked+i.Expired == n })
	if err := b.Drain(deadline(t)); err != nil {
		t.Error(err)
	}
	i := info()
	want := tidings.SubscriptionInfo{Received: n, Handled: n, Acked: n}
	if !batch {
		want = tidings.SubscriptionInfo{Received: n, GaveUp: n / 10, Expired: i.Expired, Failed: n/10 + 3*n/10 + n/10}
		want.Handled = n - want.GaveUp - want.Expired
		want.Acked = want.Handled
		if i.Expired == 0 {
			t.Error("nothing expired")
		}
		if o.Key == nil {
			want.Returned = 4 * n / 10
			want.Received, want.Redelivered = n+want.Returned, want.Returned
		}
	}
	balance(t, i, want)
}

// A drain that is cut: what it names is what is left, also of live events, which it
// can only count; a handler that returns afterwards is not believed.
func TestWhatADrainLeavesIsCounted(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		release, returned := make(chan struct{}), make(chan struct{}, 8)
		running := make(chan struct{}, 8)
		hold := func(context.Context, tidings.Event) error {
			running <- struct{}{}
			<-release
			returned <- struct{}{}
			return nil
		}
		for range 20 {
			if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
				t.Fatal(err)
			}
		}
		subscribe(t, b, "order.*", hold, &tidings.SubscribeOptions{Durable: true, Workers: 2})
		subscribe(t, b, "cart.*", hold, &tidings.SubscribeOptions{Workers: 2})
		for range 20 {
			if err := b.Publish(deadline(t), "cart.filled", 1); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			<-running
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		var left *tidings.LeftError
		if err := b.Drain(over); !errors.As(err, &left) {
			t.Fatalf("Drain: %v", err)
		}
		for again := range 2 {
			subs := b.Debugger().Snapshot().Subscriptions
			taken := uint64(len(left.HandedBack))
			balance(t, subs[0], tidings.SubscriptionInfo{Received: taken, Left: taken})
			// The two that run are left; of the rest, what a worker had in hand may be.
			if i := subs[1]; again == 0 && (i.Left < 2 || i.Handled != 0 || i.Left+i.Dropped != 20) || i.Received != 20 {
				t.Errorf("live: %+v", i)
			}
			if again == 0 {
				close(release)
				for range 4 {
					<-returned
				}
				testkit.Until(t, 30*time.Second, func() bool { return b.Debugger().Snapshot().Subscriptions[0].Running == 0 })
			}
		}
	})
}

// What the transport took and never gave to the bus was received as well.
func TestWhatWasNeverDeliveredIsCounted(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		b := process(t, url, "billing", quiet())
		const n = 20
		for range n {
			if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
				t.Fatal(err)
			}
		}
		asked, answer := make(chan struct{}, n), make(chan struct{})
		subscribe(t, b, "order.*", nothing, &tidings.SubscribeOptions{Durable: true, Workers: n, Filter: func(string) bool {
			asked <- struct{}{}
			<-answer
			return true
		}})
		<-asked
		over, cancel := context.WithTimeout(ctx, 500*time.Millisecond) // to take the rest
		defer cancel()
		var left *tidings.LeftError
		if err := b.Drain(over); !errors.As(err, &left) {
			t.Fatalf("Drain: %v", err)
		}
		close(answer)
		taken := uint64(len(left.HandedBack))
		if taken < 2 {
			t.Fatalf("%d events were taken: this tests nothing", taken)
		}
		info := func() tidings.SubscriptionInfo { return b.Debugger().Snapshot().Subscriptions[0] }
		testkit.Until(t, 30*time.Second, func() bool { return info().Received == taken })
		balance(t, info(), tidings.SubscriptionInfo{Received: taken, Left: taken})
	})
}

// What waits for its retry, and behind that, is in the process: it is counted as
// waiting, and once.
func TestWhatIsHeldWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := process(t, "mem:"+t.Name(), "billing", quiet())
		release := make(chan struct{})
		subscribe(t, b, "order.*", func(_ context.Context, e tidings.Event) error {
			if planned(e) == 0 && e.Attempt() == 1 {
				return tidings.RetryAfter(errors.New("later"), time.Minute)
			}
			<-release
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Key: func(tidings.Event) string { return "one" }})
		for i := range 3 {
			if err := b.Publish(ctx, "order.placed", i); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		info := func() tidings.SubscriptionInfo { return b.Debugger().Snapshot().Subscriptions[0] }
		if i := info(); i.Received != 3 || i.Queued != 3 || i.Running != 0 || i.Failed != 1 || i.Handled != 0 {
			t.Errorf("while the first waits: %+v", i)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if i := info(); i.Received != 3 || i.Queued != 2 || i.Running != 1 {
			t.Errorf("at its retry: %+v", i)
		}
		close(release)
		drain(t, b)
		balance(t, info(), tidings.SubscriptionInfo{Received: 3, Handled: 3, Acked: 3, Failed: 1})
	})
}

// A batch handler that ends its goroutine has failed with what it got, and not with
// what had expired before.
func TestABatchThatEndsItsGoroutineIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := process(t, "mem:"+t.Name(), "billing", quiet())
		release := make(chan struct{})
		calls := 0
		_, err := b.SubscribeBatch(ctx, "order.*", func(context.Context, []tidings.Event) error {
			if calls++; calls == 1 {
				<-release // the others come, and some expire meanwhile
			} else if calls == 2 {
				runtime.Goexit()
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true, BatchSize: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			f := tidings.EventFields{Topic: "order.placed", Payload: i}
			if i%3 == 2 {
				f.Expires = time.Now().Add(time.Second)
			}
			if err := b.PublishEvent(ctx, tidings.NewEvent(f)); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				synctest.Wait()
			}
		}
		time.Sleep(time.Minute)
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		drain(t, b)
		i := b.Debugger().Snapshot().Subscriptions[0]
		balance(t, i, tidings.SubscriptionInfo{Received: 11, Redelivered: 4, Handled: 5, Acked: 5, Returned: 4, Expired: 2, Failed: 4})
	})
}

// What a queue has no room for was received too, by whatever policy.
func TestWhatHasNoRoomIsCounted(t *testing.T) {
	for name, policy := range map[string]tidings.Overflow{"newest": tidings.DropNewest, "oldest": tidings.DropOldest, "fail": tidings.Fail} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, quiet())
				release := make(chan struct{})
				h := func(_ context.Context, e tidings.Event) error {
					<-release
					switch e.Payload().(int) % 3 {
					case 0:
						return errors.New("no")
					case 1:
						panic("no")
					}
					return nil
				}
				subscribe(t, b, "full.*", h, &tidings.SubscribeOptions{Queue: 3, Overflow: policy})
				subscribe(t, b, "full.*", h, &tidings.SubscribeOptions{Group: "retries", Queue: 200, Retry: tidings.Retry{Attempts: 3}})
				subscribe(t, b, "full.*", func(ctx context.Context, e tidings.Event) error {
					if e.Payload().(int)%3 < 2 {
						return errors.New("no")
					}
					return nil
				}, &tidings.SubscribeOptions{Inline: true})
				for i := range 99 {
					if err := b.Publish(ctx, "full.x", i); err != nil && !strings.Contains(err.Error(), "SubscribeOptions.Queue") {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if i := b.Debugger().Snapshot().Subscriptions[0]; i.Received != 99 || i.Dropped+uint64(i.Queued)+i.Running != 99 || i.Ended || i.Left != 0 {
					t.Errorf("on the way: %+v", i)
				}
				close(release)
				drain(t, b)
				subs := b.Debugger().Snapshot().Subscriptions
				i := subs[0]
				balance(t, i, tidings.SubscriptionInfo{Received: 99, Dropped: i.Dropped, Handled: i.Handled, GaveUp: i.Failed, Failed: i.Failed})
				if i.Dropped < 90 || i.Handled == 0 {
					t.Errorf("%+v", i)
				}
				balance(t, subs[1], tidings.SubscriptionInfo{Received: 99, Handled: 33, GaveUp: 66, Failed: 3 * 66})
				balance(t, subs[2], tidings.SubscriptionInfo{Received: 99, Handled: 33, GaveUp: 66, Failed: 66})
			})
		})
	}
}
