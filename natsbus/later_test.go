package natsbus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// collected is what a subscription gets, and settles it.
type collected struct {
	mu  sync.Mutex
	got []string
}

func (c *collected) deliver(d adapter.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, d.Topic+" "+d.ID)
	if d.Settle != nil {
		d.Settle.Ack(func(error) {})
	}
}

func (c *collected) wait(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	testkit.Until(t, patience, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		got = slices.Clone(c.got)
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

var durableOrders = adapter.Config{App: "shop", Durable: []string{"order.>"}}

func publishAt(t *testing.T, a adapter.Adapter, id string, at, expires time.Time) {
	t.Helper()
	m := &adapter.Message{ID: id, Topic: "order.due", Source: "//shop/1", Time: time.Now(), NotBefore: at, Expires: expires}
	if err := a.Publish(within(t), m, adapter.Durable); err != nil {
		t.Fatal(err)
	}
}

// Whoever listens to everything hears of the event, and of nothing that Tidings
// does to delay it.
func TestDelayedWithPrefixAndWithout(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	staging := durableOrders
	staging.Prefix = "staging.eu"
	var plain, prefixed collected
	subscribe(t, open(t, url, adapter.Config{App: "watch"}), adapter.Spec{Pattern: ">", Deliver: plain.deliver})
	subscribe(t, open(t, url, adapter.Config{App: "watch", Prefix: staging.Prefix}), adapter.Spec{Pattern: ">", Deliver: prefixed.deliver})
	due := time.Now().Add(300 * time.Millisecond)
	publishAt(t, open(t, url, staging), "1", due, time.Time{})
	publishAt(t, open(t, url, durableOrders), "2", due.Add(time.Second), time.Time{})
	plain.wait(t, "staging.eu.order.due 1", "order.due 2")
	prefixed.wait(t, "order.due 1")
}

// The process that delayed it is gone; another of the app, which never delayed
// anything, was there before the first.
func TestAnotherProcessHandsOn(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	other := open(t, url, durableOrders)
	var got collected
	subscribe(t, other, adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: got.deliver})
	first, err := natsbus.Open(within(t), url, durableOrders)
	if err != nil {
		t.Fatal(err)
	}
	publishAt(t, first, "1", time.Now().Add(time.Second), time.Time{})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	got.wait(t, "order.due 1")
}

// A full stream holds a due event up, and says so; nothing is lost.
func TestDueEventThatCannotBePublished(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	cfg := durableOrders
	errs := make(chan error, 100)
	cfg.OnError = func(err error) { errs <- err }
	a, js := open(t, url, cfg), jsClient(t, url)
	limit := func(n int64) {
		t.Helper()
		c := streamInfo(t, js, "shop").Config
		c.MaxMsgs = n
		if _, err := js.UpdateStream(within(t), c); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, a, adapter.Durable, "first", "order.placed")
	limit(1)
	publishAt(t, a, "late", time.Now().Add(300*time.Millisecond), time.Time{})
	select {
	case err := <-errs:
		if !errors.Is(err, adapter.ErrFull) || !strings.Contains(err.Error(), "order.due") || !strings.Contains(err.Error(), "due and cannot be published") {
			t.Errorf("the error is %v", err)
		}
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	limit(10)
	var got collected
	subscribe(t, a, adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: got.deliver})
	got.wait(t, "order.placed first", "order.due late")
}

// A stream that an earlier version made learns to forget what has expired.
func TestExistingStreamForgetsWhatExpired(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	js := jsClient(t, url)
	old := jetstream.StreamConfig{Name: "shop", Subjects: []string{"order.>"}, Discard: jetstream.DiscardNew, Metadata: map[string]string{"tidings.app": "shop"}}
	foreign := jetstream.StreamConfig{Name: "theirs", Subjects: []string{"their.>"}, Discard: jetstream.DiscardNew}
	for _, c := range []jetstream.StreamConfig{old, foreign} {
		if _, err := js.CreateStream(within(t), c); err != nil {
			t.Fatal(err)
		}
	}
	a := open(t, url, adapter.Config{App: "shop", Durable: []string{"order.>", "their.>"}})
	if !streamInfo(t, js, "shop").Config.AllowMsgTTL || streamInfo(t, js, "theirs").Config.AllowMsgTTL {
		t.Errorf("the app's own stream forgets: %v; that of others: %v", streamInfo(t, js, "shop").Config.AllowMsgTTL, streamInfo(t, js, "theirs").Config.AllowMsgTTL)
	}
	soon := time.Now().Add(time.Second)
	publishAt(t, a, "1", time.Time{}, soon)
	publishAt(t, a, "2", soon.Add(-500*time.Millisecond), soon)
	m := &adapter.Message{ID: "3", Topic: "their.thing", Source: "//shop/1", Expires: soon}
	if err := a.Publish(within(t), m, adapter.Durable); err != nil { // kept until it is purged
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool {
		s := streamInfo(t, js, "shop").State
		return s.Msgs == 0 && s.LastSeq == 2 && time.Now().After(soon)
	})
	if n := streamInfo(t, js, "theirs").State.Msgs; n != 1 {
		t.Errorf("the stream of others has %d events", n)
	}
}

func TestDrainLeavesWhatIsDelayed(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	js := jsClient(t, url)
	for _, end := range []func(adapter.Adapter) error{
		func(a adapter.Adapter) error { return a.Drain(within(t)) },
		func(a adapter.Adapter) error { return a.Close() },
	} {
		a := open(t, url, durableOrders)
		publishAt(t, a, "1", time.Now().Add(time.Hour), time.Time{})
		began := time.Now()
		if err := end(a); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it took %v", d)
		}
		if err := a.Publish(context.Background(), &adapter.Message{ID: "2", Topic: "order.due", NotBefore: time.Now().Add(time.Hour)}, adapter.Durable); !errors.Is(err, adapter.ErrClosed) {
			t.Errorf("after its end it returns %v", err)
		}
	}
	if n := streamInfo(t, js, "tidings-later-shop").State.Msgs; n != 1 {
		t.Errorf("%d events wait", n)
	}
}
