package tidings_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// batches collects the payloads of each call.
func batches(t *testing.T, b either, o tidings.SubscribeOptions) func() [][]int {
	t.Helper()
	var mu sync.Mutex
	var got [][]int
	if _, err := b.SubscribeBatch(ctx, "x", func(_ context.Context, events []tidings.Event) error {
		var one []int
		for _, e := range events {
			one = append(one, e.Payload().(int))
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, one)
		return nil
	}, &o); err != nil {
		t.Fatal(err)
	}
	return func() [][]int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

func TestBatchIsFullOrOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		got := batches(t, b, tidings.SubscribeOptions{BatchSize: 3, BatchWait: time.Second})
		for i := range 4 {
			_ = b.Publish(ctx, "x", i)
		}
		synctest.Wait()
		if !equal(got(), [][]int{{0, 1, 2}}) {
			t.Errorf("before the wait is over: %v", got())
		}
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if len(got()) != 1 {
			t.Errorf("a batch came early: %v", got())
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !equal(got(), [][]int{{0, 1, 2}, {3}}) {
			t.Errorf("after the wait: %v", got())
		}
		_ = b.Publish(ctx, "x", 4)
		start := time.Now()
		drain(t, b) // does not wait for more
		if !equal(got(), [][]int{{0, 1, 2}, {3}, {4}}) || time.Since(start) != 0 {
			t.Errorf("after Drain: %v in %v", got(), time.Since(start))
		}
	})
}

func equal(a, b [][]int) bool { return slices.EqualFunc(a, b, slices.Equal) }

func TestBatchWithoutWaitTakesWhatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		release, sizes := make(chan struct{}), []int{}
		if _, err := b.SubscribeBatch(ctx, "x", func(_ context.Context, events []tidings.Event) error {
			<-release
			sizes = append(sizes, len(events))
			return nil
		}, &tidings.SubscribeOptions{BatchSize: 4}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_ = b.Publish(ctx, "x", nil)
			synctest.Wait()
		}
		close(release)
		drain(t, b)
		if !slices.Equal(sizes, []int{1, 4, 4, 1}) {
			t.Errorf("batches of %v", sizes)
		}
	})
}

// What fails is the batch: it is tried again as one, and counted by event.
func TestBatchIsRetriedAsAWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := kit(t, tidings.Options{})
		boom := errors.New("boom")
		b.ExpectError(boom)
		var attempts []int
		if _, err := b.SubscribeBatch(ctx, "x", func(ctx context.Context, events []tidings.Event) error {
			attempts = append(attempts, events[0].Attempt()*10+len(events))
			if len(attempts) < 3 {
				panic(boom)
			}
			return nil
		}, &tidings.SubscribeOptions{BatchSize: 2, BatchWait: time.Second, Retry: tidings.Retry{Attempts: 3}, Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		_ = b.Publish(ctx, "x", 1)
		_ = b.Publish(ctx, "x", 2)
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Equal(attempts, []int{12, 22, 32}) || len(b.Errors()) != 2 {
			t.Errorf("attempts %v, reported %v", attempts, b.Errors())
		}
		if s := b.Debugger().Snapshot().Subscriptions[0]; s.Handled != 2 || s.Failed != 2 || s.Panicked != 2 || s.Queued != 0 {
			t.Errorf("counts %+v", s)
		}
	})
}

func TestBatchOptionsAreChecked(t *testing.T) {
	b := kit(t, tidings.Options{})
	one := func(context.Context, tidings.Event) error { return nil }
	many := func(context.Context, []tidings.Event) error { return nil }
	if _, err := b.Subscribe(ctx, "x", one, &tidings.SubscribeOptions{BatchSize: 2}); err == nil || !strings.Contains(err.Error(), "SubscribeBatch") {
		t.Errorf("BatchSize without a batch: %v", err)
	}
	if _, err := b.SubscribeBatch(ctx, "x", many, &tidings.SubscribeOptions{Inline: true}); err == nil || !strings.Contains(err.Error(), "Inline") {
		t.Errorf("inline batch: %v", err)
	}
	if _, err := b.SubscribeBatch(ctx, "x", many, &tidings.SubscribeOptions{BatchSize: 9, Queue: 8}); err == nil || !strings.Contains(err.Error(), "raise Queue") {
		t.Errorf("a batch that is never full: %v", err)
	}
	if _, err := b.SubscribeBatch(ctx, "x", many, &tidings.SubscribeOptions{Queue: 8}); err != nil {
		t.Errorf("the default batch, of a short queue: %v", err)
	}
	if _, err := b.SubscribeBatch(ctx, "x", nil, nil); err == nil {
		t.Error("a nil batch handler was taken")
	}
}
