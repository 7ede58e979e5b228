package natskv_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/idempotent/natskv"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

func TestHandlesEachEventOncePerGroup(t *testing.T) {
	url := testkit.Server(t).URL()
	ran := map[string]int{}
	for _, group := range []string{"billing", "mail", "billing"} {
		s := store(t, url, nil) // as another process
		for _, id := range []string{"1", "2", "an id that no key can hold", strings.Repeat("x", 5000)} {
			h := s.Handler(group, func(_ context.Context, e tidings.Event) error { ran[group+e.ID()]++; return nil })
			if err := h(t.Context(), event(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for key, n := range ran {
		if n != 1 {
			t.Errorf("%.20s: handled %d times", key, n)
		}
	}
	if len(ran) != 8 {
		t.Errorf("%d of 8 handled", len(ran))
	}
}

func TestFailedHandlerReleasesItsClaim(t *testing.T) {
	url := testkit.Server(t).URL()
	s, other := store(t, url, nil), store(t, url, nil)
	boom := errors.New("boom")
	for _, fail := range []func() error{
		func() error { return boom },
		func() error { panic(boom) },
	} {
		h := s.Handler("mail", func(context.Context, tidings.Event) error { return fail() })
		func() {
			defer func() { _ = recover() }()
			if err := h(t.Context(), event("1")); !errors.Is(err, boom) {
				t.Errorf("the handler's error became %v", err)
			}
		}()
	}
	began, ran := time.Now(), 0
	h := other.Handler("mail", func(context.Context, tidings.Event) error { ran++; return nil })
	for range 2 {
		if err := h(t.Context(), event("1")); err != nil {
			t.Fatal(err)
		}
	}
	if ran != 1 {
		t.Errorf("handled %d times after it had failed", ran)
	}
	if d := time.Since(began); d > 5*time.Second { // the lease is 10 s
		t.Errorf("it took %v to claim what was released", d)
	}
}

// The first handler takes several leases long, and the second must not begin.
func TestTwoAtOnceDoNotBothHandle(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	s, other := store(t, url, lease), store(t, url, lease)
	inside, errs := make(chan struct{}), make(chan error, 2)
	var ran atomic.Int32
	loop.Go(func(context.Context) {
		errs <- s.Handler("mail", func(ctx context.Context, _ tidings.Event) error {
			ran.Add(1)
			close(inside)
			select {
			case <-time.After(2500 * time.Millisecond): // two and a half leases
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})(t.Context(), event("1"))
	})
	<-inside
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	h := other.Handler("mail", func(context.Context, tidings.Event) error { ran.Add(1); return nil })
	if err := h(short, event("1")); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "claimed by") {
		t.Errorf("one who does not wait is told %v", err)
	}
	loop.Go(func(context.Context) { errs <- h(t.Context(), event("1")) })
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if ran.Load() != 1 {
		t.Errorf("the handler ran %d times", ran.Load())
	}
}

func TestLeaseLostCancelsTheHandler(t *testing.T) {
	t.Parallel()
	broker := testkit.Server(t)
	s := store(t, broker.URL(), lease)
	err := s.Handler("mail", func(ctx context.Context, _ tidings.Event) error {
		broker.Shutdown()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(patience):
			return errors.New("the context was not cancelled")
		}
	})(t.Context(), event("1"))
	if !errors.Is(err, natskv.ErrLeaseLost) {
		t.Errorf("the error is %v", err)
	}
}

// What was done cannot be undone: the event counts as handled, and somebody is
// told.
func TestHandledAndNotMarked(t *testing.T) {
	t.Parallel()
	broker := testkit.Server(t)
	s := store(t, broker.URL(), nil)
	err := s.Handler("mail", func(context.Context, tidings.Event) error { broker.Shutdown(); return nil })(t.Context(), event("1"))
	if err != nil || s.Unmarked() != 1 {
		t.Errorf("error %v, %d unmarked", err, s.Unmarked())
	}
}

func TestUnreachableBucketRunsNothing(t *testing.T) {
	t.Parallel()
	broker := testkit.Server(t)
	s := store(t, broker.URL(), nil)
	broker.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	ran := false
	if err := s.Handler("mail", func(context.Context, tidings.Event) error { ran = true; return nil })(ctx, event("1")); err == nil || ran {
		t.Errorf("error %v, ran %v", err, ran)
	}
}

func TestMarkEndsWithTheWindow(t *testing.T) {
	t.Parallel()
	s := store(t, testkit.Server(t).URL(), &natskv.Options{Window: time.Second})
	ran := 0
	h := s.Handler("mail", func(context.Context, tidings.Event) error { ran++; return nil })
	testkit.Until(t, patience, func() bool {
		if err := h(t.Context(), event("1")); err != nil {
			t.Fatal(err)
		}
		return ran == 2
	})
}

// The processes are killed with kill -9 between claim, effect, mark and the end.
func TestKilled(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	p := start(t, url, "effect")
	p.Expect("effect")
	p.Kill()
	began := time.Now()
	p = start(t, url, "handled")
	p.Expect("effect") // once more: that no bucket can prevent
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("the lease of 1s was waited for %v", d)
	}
	p.Expect("handled")
	p.Kill()
	start(t, url, "handled").Expect("handled") // and never again
}

func TestOpenRefuses(t *testing.T) {
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
	for _, cfg := range []jetstream.KeyValueConfig{{Bucket: "plain"}, {Bucket: "short", TTL: time.Minute, LimitMarkerTTL: time.Second}, {Bucket: "foreign", LimitMarkerTTL: time.Second}} {
		if _, err := js.CreateKeyValue(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		o    natskv.Options
		says string
	}{
		{natskv.Options{Bucket: "plain"}, "bucket plain"},
		{natskv.Options{Bucket: "short"}, "Options.Window"},
		{natskv.Options{Window: time.Millisecond}, "Options.Window"},
		{natskv.Options{Lease: time.Millisecond}, "Options.Lease"},
	} {
		if _, err := natskv.Open(t.Context(), js, &c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: the error is %v", c.o, err)
		}
	}
	if _, err := nc.Request("$KV.foreign."+natskv.Key("mail", "1"), []byte("mine"), patience); err != nil {
		t.Fatal(err)
	}
	err = store(t, url, &natskv.Options{Bucket: "foreign"}).Handler("mail", func(context.Context, tidings.Event) error { return nil })(t.Context(), event("1"))
	if err == nil || !strings.Contains(err.Error(), "bucket foreign") {
		t.Errorf("a foreign key: the error is %v", err)
	}
}
