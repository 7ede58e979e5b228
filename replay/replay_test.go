package replay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/adapter"
	_ "github.com/tidings-go/tidings/adapter/memory"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
	"github.com/tidings-go/tidings/replay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A shop whose group "billing" has two subscriptions.
type shop struct {
	adapter.Adapter
	got chan string // subscription and id of what billing got
}

var patterns = []string{"order.*", "order.paid", "cart.>"}

// openShop publishes five events and waits until billing has handled them.
func openShop(t *testing.T, url, prefix string) shop {
	t.Helper()
	a, err := adapter.Open(within(t), url, adapter.Config{App: "shop", Prefix: prefix, Durable: []string{"order.>", "cart.>"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	s := shop{a, make(chan string, 100)}
	for _, p := range patterns {
		spec := adapter.Spec{Pattern: p, Group: "billing", Durable: true, Deliver: func(d adapter.Delivery) {
			d.Settle.Ack(func(err error) {
				if err == nil {
					s.got <- p + " " + d.ID
				}
			})
		}}
		if _, err := a.Subscribe(within(t), spec); err != nil {
			t.Fatal(err)
		}
	}
	for i, topic := range []string{"order.placed", "order.paid", "cart.a", "cart.b", "order.placed"} {
		m := &adapter.Message{ID: fmt.Sprint(prefix, i+1), Topic: topic, Source: "//shop/1", Data: []byte("x")}
		if err := a.Publish(within(t), m, adapter.Durable); err != nil {
			t.Fatal(err)
		}
	}
	s.take(t, 6)
	return s
}

// take returns the next n that billing got, sorted.
func (s shop) take(t *testing.T, n int) (got []string) {
	t.Helper()
	ctx := within(t)
	for range n {
		select {
		case g := <-s.got:
			got = append(got, g)
		case <-ctx.Done():
			t.Fatalf("%d of %d arrived: %q", len(got), n, got)
		}
	}
	slices.Sort(got)
	return got
}

func open(t *testing.T, url, prefix string) *replay.Replayer {
	t.Helper()
	r, err := replay.Open(within(t), url, replay.Options{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func overTransports(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("memory", func(t *testing.T) { test(t, "mem:"+t.Name()) })
	t.Run("nats", func(t *testing.T) { test(t, testkit.Server(t).URL()) })
}

// One subscription is given them: others of the group have places of their own.
func TestRunChoosesOneSubscription(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		s := openShop(t, url, "")
		r := open(t, url, "")
		var told []replay.Progress
		done, err := r.Run(within(t), replay.Request{Group: "billing", Topics: "cart.*", Progress: func(p replay.Progress) { told = append(told, p) }})
		if err != nil || done.Given != 2 || done.Subscription != "cart.>" || done.Group != "billing" {
			t.Fatalf("%+v, %v", done, err)
		}
		if len(told) == 0 || told[len(told)-1].Given != 2 || told[0].Subscription != "cart.>" {
			t.Errorf("told %+v", told)
		}
		if got := s.take(t, 2); !slices.Equal(got, []string{"cart.> 3", "cart.> 4"}) {
			t.Errorf("given: %q", got)
		}
		_, err = r.Run(within(t), replay.Request{Group: "billing", Topics: "order.paid"})
		if err == nil || !strings.Contains(err.Error(), "order.*, order.paid: name one") {
			t.Errorf("two subscriptions have it: %v", err)
		}
		if done, err = r.Run(within(t), replay.Request{Group: "billing", Topics: "order.paid", Subscription: "order.*"}); err != nil || done.Given != 1 {
			t.Errorf("%+v, %v", done, err)
		}
		if got := s.take(t, 1); got[0] != "order.* 2" {
			t.Errorf("given: %q", got)
		}
		_, err = r.Run(within(t), replay.Request{Group: "billing", Topics: "order.paid", Subscription: "cart.>"})
		if err == nil || !strings.Contains(err.Error(), "none is or has what is asked for") {
			t.Errorf("the subscription has no such topics: %v", err)
		}
		if _, err = r.Run(within(t), replay.Request{Group: "billing", Subscription: "order.paid", Resume: true}); !errors.Is(err, replay.ErrNothingToResume) {
			t.Errorf("nothing was begun: %v", err)
		}
	})
}

// Environments that share a broker are apart.
func TestPrefix(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		prod, staging := openShop(t, url, "prod.eu"), openShop(t, url, "prod")
		done, err := open(t, url, "prod").Run(within(t), replay.Request{Group: "billing", Topics: "order.placed", From: 1})
		if err != nil || done.Given != 2 {
			t.Fatalf("%+v, %v", done, err)
		}
		if got := staging.take(t, 2); !slices.Equal(got, []string{"order.* prod1", "order.* prod5"}) {
			t.Errorf("given: %q", got)
		}
		if done, err = open(t, url, "prod.eu").Run(within(t), replay.Request{Group: "billing", Subscription: "order.paid"}); err != nil || done.Given != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		if got := prod.take(t, 1); got[0] != "order.paid prod.eu2" {
			t.Errorf("given: %q", got)
		}
		if _, err := open(t, url, "").Run(within(t), replay.Request{Group: "billing"}); err == nil {
			t.Error("without a prefix there is a group, too")
		}
	})
}

func TestBadRequests(t *testing.T) {
	url := "mem:" + t.Name()
	r := open(t, url, "")
	for want, q := range map[string]replay.Request{
		"Group is empty":           {},
		"Resume goes on":           {Group: "g", Resume: true, From: 3},
		"both say where to begin":  {Group: "g", From: 3, Since: time.Now()},
		`bad topic "a..b"`:         {Group: "g", Topics: "a..b"},
		`bad topic "c..d"`:         {Group: "g", Subscription: "c..d"},
		`there is no group "nobo"`: {Group: "nobo"},
	} {
		if done, err := r.Run(within(t), q); err == nil || done.Given != 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %+v, %v", q, done, err)
		}
	}
	for _, url := range []string{"", "carrier-pigeon:loft", "nats://127.0.0.1:1"} {
		if _, err := replay.Open(within(t), url, replay.Options{}); err == nil {
			t.Errorf("%q was opened", url)
		}
	}
	if _, err := replay.Open(within(t), url, replay.Options{Prefix: "a b"}); err == nil || !strings.Contains(err.Error(), "Options.Prefix") {
		t.Errorf("a bad prefix: %v", err)
	}
}
