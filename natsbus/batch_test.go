package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// storedIDs reads a whole stream: the ids in their order, and how many came in batches.
func storedIDs(t *testing.T, url, stream string) (ids []string, batched int) {
	t.Helper()
	js := jsClient(t, url)
	info := streamInfo(t, js, stream)
	s, err := js.Stream(within(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(within(t), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Header.Get(nats.MsgIdHdr))
		if m.Header.Get("Nats-Batch-Id") != "" {
			batched++
		}
	}
	return ids, batched
}

func order(id string, size int) *adapter.Message {
	return &adapter.Message{ID: id, Topic: "order.placed", Source: "//shop/1", Time: time.Now(), Data: []byte(strings.Repeat("x", size))}
}

// Many that wait are stored as one batch, each once, and nobody sees that.
func TestBatchesAreStored(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	_, got := acking(t, a)
	natsbus.Batches(a, true)
	const n = 1500 // more than one batch takes
	natsbus.Held(a, n, n, func(i int) { publish(t, a, adapter.Durable, strconv.Itoa(i), "order.placed") })
	ids, batched := storedIDs(t, srv.URL(), "shop")
	if once(t, ids, n); batched < 1000 {
		t.Errorf("%d of %d came in batches", batched, n)
	}
	for range n {
		for k := range receive(t, got).Header {
			t.Errorf("a handler sees the header %s", k)
		}
	}
}

// once checks that the numbers below n are there, each once.
func once(t *testing.T, ids []string, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, id := range ids {
		seen[id]++
	}
	if len(ids) != n || len(seen) != n {
		t.Errorf("%d events are stored, of %d ids; want %d", len(ids), len(seen), n)
	}
}

// What is wrong with one event of a batch is the error of its own caller, and of
// nobody else.
func TestErrorsReachTheirCallers(t *testing.T) {
	const n, size = 64, 100
	for name, c := range map[string]struct {
		url    string // what the stream is declared with
		before int    // events that are there already
		event  func(i int) *adapter.Message
		failed func(i int) bool
		want   error
		fails  int
	}{
		"a known id":                {before: 8, event: func(i int) *adapter.Message { return order(strconv.Itoa(i), size) }},
		"too big for the stream":    {event: func(i int) *adapter.Message { return order(strconv.Itoa(i), size+i%2*2000) }, failed: func(i int) bool { return i%2 == 1 }, fails: n / 2},
		"too big for the server":    {event: func(i int) *adapter.Message { return order(strconv.Itoa(i), size+i%2*(1<<20)) }, failed: func(i int) bool { return i%2 == 1 }, fails: n / 2},
		"the stream is full midway": {url: "?max-msgs=40", event: func(i int) *adapter.Message { return order(strconv.Itoa(i), size) }, want: adapter.ErrFull, fails: n - 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := testkit.Server(t)
			a := open(t, srv.URL()+c.url, adapter.Config{Durable: []string{"order.>"}})
			if name == "too big for the stream" {
				js := jsClient(t, srv.URL())
				cfg := streamInfo(t, js, "shop").Config
				cfg.MaxMsgSize = 1000
				if _, err := js.UpdateStream(within(t), cfg); err != nil {
					t.Fatal(err)
				}
			}
			for i := range c.before {
				publish(t, a, adapter.Durable, strconv.Itoa(i*7), "order.placed")
			}
			natsbus.Batches(a, true)
			errs := make([]error, n)
			wait := n
			if name == "too big for the server" {
				wait = n / 2 // the others are refused at once
			}
			natsbus.Held(a, n, wait, func(i int) { errs[i] = a.Publish(within(t), c.event(i), adapter.Durable) })
			fails := 0
			for i, err := range errs {
				if c.failed != nil && (err != nil) != c.failed(i) || c.want != nil && err != nil && !errors.Is(err, c.want) {
					t.Errorf("event %d: %v", i, err)
				}
				if err != nil {
					fails++
				}
				if errors.Is(err, adapter.ErrInDoubt) {
					t.Errorf("event %d is in doubt: %v", i, err)
				}
			}
			if fails != c.fails {
				t.Errorf("%d callers got an error; want %d", fails, c.fails)
			}
			ids, _ := storedIDs(t, srv.URL(), "shop")
			once(t, ids, n-fails)
			for _, id := range ids {
				if i, _ := strconv.Atoi(id); errs[i] != nil {
					t.Errorf("event %d is stored, and its caller was told %v", i, errs[i])
				}
			}
		})
	}
}

// Of callers that give up while their events wait, or while they are stored, each is
// told what may have become of its own.
func TestGivingUpWhileABatchWaits(t *testing.T) {
	srv := testkit.Server(t)
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a := open(t, proxy.URL(), adapter.Config{Durable: []string{"order.>"}})
	natsbus.Batches(a, true)
	const n = 100
	first, giveUp := context.WithCancel(t.Context())
	giveUp()
	errs := make([]error, n)
	proxy.Lose(testkit.ToClient, true) // what they get stored they do not hear of
	waiting, cancel := context.WithCancel(t.Context())
	stop := time.AfterFunc(100*time.Millisecond, cancel)
	defer stop.Stop()
	natsbus.Held(a, n, n-1, func(i int) {
		ctx := waiting
		if i == 0 {
			ctx = first
		}
		errs[i] = a.Publish(ctx, order(strconv.Itoa(i), 10), adapter.Durable)
	})
	for i, err := range errs {
		if doubt := errors.Is(err, adapter.ErrInDoubt); err == nil || doubt != (i > 0) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "order.placed") {
			t.Errorf("event %d: %v", i, err)
		}
	}
	proxy.Cut()
	proxy.Mend()
	publish(t, a, adapter.Durable, "next", "order.placed")
	ids, _ := storedIDs(t, srv.URL(), "shop")
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] || id == "0" {
			t.Errorf("event %s is stored though it was not sent, or twice", id)
		}
		seen[id] = true
	}
	if !seen["next"] {
		t.Error("what came after them is not stored")
	}
}

// A stream that takes no batches, or not any more, gets single events.
func TestStreamsWithoutBatches(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	_, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "foreign", Subjects: []string{"order.>"}, Discard: jetstream.DiscardNew})
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>", "cart.>"}})
	turnOff := func() {
		cfg := streamInfo(t, js, "shop").Config
		cfg.AllowAtomicPublish = false
		if _, err := js.UpdateStream(within(t), cfg); err != nil {
			t.Fatal(err)
		}
	}
	natsbus.Batches(a, true)
	for round, change := range []func(){func() {}, turnOff} {
		change()
		natsbus.Held(a, 100, 100, func(i int) {
			publish(t, a, adapter.Durable, fmt.Sprint(round, "-", i), []string{"order.placed", "cart.filled"}[i%2])
		})
		foreign, inBatches := storedIDs(t, srv.URL(), "foreign")
		if once(t, foreign, 50*(round+1)); inBatches > 0 {
			t.Errorf("%d events of a stream that is not ours came in batches", inBatches)
		}
		own, inBatches := storedIDs(t, srv.URL(), "shop")
		if once(t, own, 50*(round+1)); inBatches != 50 {
			t.Errorf("%d events came in batches; want those of the first round, 50", inBatches)
		}
	}
}
