package tidings_test

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
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

func double(ctx context.Context, e tidings.Event) error {
	var n int
	if err := e.Decode(&n); err != nil {
		return err
	}
	return tidings.Reply(ctx, n*2)
}

// askFor requests and decodes.
func askFor(t *testing.T, b *tidings.Bus, topic string, n int) (got int, from string) {
	t.Helper()
	e, err := b.Request(deadline(t), topic, n)
	if err == nil {
		err = e.Decode(&got)
	}
	if err != nil {
		t.Fatal(err)
	}
	return got, e.Source()
}

func TestRequestReachesOtherProcesses(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		for name, o := range map[string]*tidings.SubscribeOptions{"queued": nil, "inline": {Inline: true}, "broadcast": {Broadcast: true},
			"two workers": {Workers: 2}, "retried": {Retry: tidings.Retry{Attempts: 2}}} {
			t.Run(name, func(t *testing.T) {
				pricing := process(t, url, "pricing", tidings.Options{Instance: "p1"})
				subscribe(t, pricing, "price.*", func(ctx context.Context, e tidings.Event) error {
					if name == "retried" && e.Attempt() == 1 {
						return errors.New("once more")
					}
					return double(ctx, e)
				}, o)
				subscribe(t, pricing, "price.*", func(context.Context, tidings.Event) error { return nil }, nil) // only listens
				if got, from := askFor(t, shop, "price.of", 21); got != 42 || from != "//pricing/p1" {
					t.Errorf("%d from %s", got, from)
				}
				drain(t, pricing)
			})
		}
		if _, err := shop.Request(deadline(t), "price.of", 1); !errors.Is(err, tidings.ErrNoResponder) {
			t.Errorf("nobody listens any more: %v", err)
		}
		drain(t, shop)
	})
}

// The own process answers as others do; that others listen too changes nothing.
func TestRequestIsAnsweredHereOrThere(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, other := process(t, url, "shop", tidings.Options{Instance: "own"}), process(t, url, "shop", tidings.Options{})
		c := newTally()
		subscribe(t, shop, "price.*", double, nil)
		subscribe(t, other, "price.*", func(context.Context, tidings.Event) error {
			t.Error("the other process of the group was asked too")
			return nil
		}, nil)
		audit := process(t, url, "audit", tidings.Options{})
		subscribe(t, audit, "price.*", c.handler("audit"), nil)
		for i := range 100 {
			if got, from := askFor(t, shop, "price.of", i); got != 2*i || from != "//shop/own" {
				t.Fatalf("%d from %s", got, from)
			}
		}
		c.until(t, func() bool { return c.count("audit") == 100 })
		drain(t, shop)
		drain(t, other)
		drain(t, audit)
	})
}

// What went wrong in another process is told when the time is over.
func TestRequestTellsWhyOthersDidNotReply(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		pricing := process(t, url, "pricing", tidings.Options{OnError: func(context.Context, error) {}})
		subscribe(t, pricing, "price.fails", func(context.Context, tidings.Event) error { return errors.New("no price list") }, nil)
		subscribe(t, pricing, "price.panics", func(context.Context, tidings.Event) error { panic("no price list") }, &tidings.SubscribeOptions{Inline: true})
		subscribe(t, pricing, "price.silent", func(context.Context, tidings.Event) error { return nil }, nil)
		filtered := &tidings.SubscribeOptions{Filter: func(string) bool { return false }}
		subscribe(t, pricing, "price.filtered", double, filtered)
		for topic, want := range map[string]string{"price.fails": "no price list", "price.panics": "no price list",
			"price.silent": "ended without a reply", "price.filtered": "ended without a reply"} {
			short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			_, err := shop.Request(short, topic, 1)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "//pricing/") {
				t.Errorf("%s: %v", topic, err)
			}
		}
		drain(t, shop)
		drain(t, pricing)
	})
}

func TestRequestOfADurableTopicStaysHere(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, billing := process(t, url, "shop", tidings.Options{}), process(t, url, "billing", tidings.Options{})
		subscribe(t, billing, "order.*", func(context.Context, tidings.Event) error { t.Error("it left the process"); return nil }, &tidings.SubscribeOptions{Durable: true})
		if _, err := shop.Request(deadline(t), "order.placed", 1); !errors.Is(err, tidings.ErrNoResponder) || !strings.Contains(err.Error(), "route is live") {
			t.Errorf("%v", err)
		}
		subscribe(t, shop, "order.placed", double, nil)
		if got, _ := askFor(t, shop, "order.placed", 4); got != 8 {
			t.Errorf("got %d", got)
		}
		drain(t, shop)
		drain(t, billing)
	})
}

// What refuses a request at once does so without waiting.
func TestRequestThatIsRefused(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		pricing := process(t, url, "pricing", tidings.Options{})
		asked := make(chan struct{}, 1)
		subscribe(t, pricing, "slow.*", func(ctx context.Context, _ tidings.Event) error { asked <- struct{}{}; <-ctx.Done(); return nil }, nil)
		subscribe(t, shop, "price.*", double, nil)
		if _, err := shop.Request(ctx, "price.of", make(chan int)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a payload that nobody can encode: %v", err)
		}
		quiet := process(t, url, "quiet", tidings.Options{})
		done := make(chan error, 1)
		run := loop.Go(func(context.Context) { _, err := quiet.Request(deadline(t), "slow.one", 1); done <- err })
		select {
		case <-asked:
		case <-deadline(t).Done():
			t.Fatal("nobody was asked")
		}
		if err := quiet.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, tidings.ErrClosed) {
			t.Errorf("closed while waiting: %v", err)
		}
		run.StopAndWait()
		_ = pricing.Close()
		drain(t, shop)
	})
}

// Processes that respond come and go; every request is answered, once.
func TestRequestsAcrossADeploy(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop := process(t, url, "shop", tidings.Options{})
		var handled atomic.Int64
		join := func() *tidings.Bus {
			b := process(t, url, "pricing", tidings.Options{})
			subscribe(t, b, "price.*", func(ctx context.Context, e tidings.Event) error { handled.Add(1); return double(ctx, e) }, nil)
			if err := b.Ready(deadline(t)); err != nil {
				t.Fatal(err)
			}
			return b
		}
		old := join()
		var sent int
		run := loop.Go(func(over context.Context) {
			for ; over.Err() == nil; sent++ {
				e, err := shop.Request(deadline(t), "price.of", sent)
				var got int
				if err == nil {
					err = e.Decode(&got)
				}
				if err != nil || got != 2*sent {
					t.Errorf("request %d: %d, %v", sent, got, err)
					return
				}
			}
		})
		for range 10 {
			next := join()
			drain(t, old)
			old = next
		}
		run.StopAndWait()
		if n := int(handled.Load()); n != sent || sent < 10 {
			t.Errorf("%d requests, %d handled", sent, n)
		}
		drain(t, shop)
		drain(t, old)
	})
}

// A broker that restarts costs the requests that are on their way, which are in doubt;
// what is asked as soon as that is known finds its responder.
func TestRequestsAfterARestartOfTheBroker(t *testing.T) {
	srv := testkit.Server(t)
	shop, pricing := process(t, srv.URL(), "shop", tidings.Options{}), process(t, srv.URL(), "pricing", tidings.Options{})
	subscribe(t, pricing, "price.*", double, nil)
	for i := range 5 {
		srv.Restart()
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := shop.Request(short, "price.of", i); err != nil && !errors.Is(err, tidings.ErrInDoubt) {
			t.Error(err)
		}
		cancel()
		if got, _ := askFor(t, shop, "price.of", i); got != 2*i {
			t.Errorf("got %d", got)
		}
	}
	drain(t, shop)
	drain(t, pricing)
}

// Programs that know nothing of Tidings ask and answer too.
func TestRequestsOfAndToOthers(t *testing.T) {
	srv := testkit.Server(t)
	nc, err := nats.Connect(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	shop := process(t, srv.URL(), "shop", tidings.Options{})
	sub, err := nc.Subscribe("tax.of", func(m *nats.Msg) { _ = m.Respond([]byte(`19`)) })
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := askFor(t, shop, "tax.of", 1); got != 19 {
		t.Errorf("got %d", got)
	}
	subscribe(t, shop, "price.of", double, nil)
	subscribe(t, shop, "price.of", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Group: "audit"})
	m, err := nc.Request("price.of", []byte(`21`), 10*time.Second)
	if err != nil || !strings.Contains(string(m.Data), `"data":42`) {
		t.Errorf("%s, %v", m.Data, err)
	}
	_ = sub.Unsubscribe()

	// A stream that stores what is asked acknowledges it: that is no reply.
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(deadline(t), jetstream.StreamConfig{Name: "tax", Subjects: []string{"tax.>"}}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err := shop.Request(short, "tax.of", 1); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stream tax stores") {
		t.Errorf("a stream in between: %v", err)
	}
	drain(t, shop)
}
