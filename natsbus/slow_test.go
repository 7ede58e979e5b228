package natsbus_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// slow is a broker that takes nothing until the proxy lets it.
func slow(t *testing.T, cfg adapter.Config) (a adapter.Adapter, proxy *testkit.Proxy, url string) {
	t.Helper()
	srv := testkit.Server(t)
	proxy = testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a = open(t, proxy.URL(), cfg)
	proxy.Slow(testkit.ToServer, testkit.Stopped)
	return a, proxy, srv.URL()
}

// headersOf reads a whole stream quickly.
func headersOf(t *testing.T, url, stream string) (all []nats.Header) {
	t.Helper()
	js := jsClient(t, url)
	n := streamInfo(t, js, stream).State.Msgs
	c, err := js.OrderedConsumer(within(t), stream, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	it, err := c.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Stop()
	for range n {
		m, err := it.Next()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Headers())
	}
	return all
}

func idsIn(t *testing.T, url, stream string) (ids []string) {
	t.Helper()
	for _, h := range headersOf(t, url, stream) {
		ids = append(ids, h.Get(nats.MsgIdHdr))
	}
	return ids
}

// bulky is an event of which few fit in what may wait, whatever their number.
func bulky(id string, data []byte) *adapter.Message {
	return &adapter.Message{ID: id, Topic: "order.placed", Source: "//shop/1", Data: data}
}

var halfMiB = make([]byte, 512<<10)

// fitting is how many of the bulky events may wait.
const fitting = natsbus.MaxBytes/(512<<10) - 1 // with their headers they are a bit larger

func overflows(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, adapter.ErrFull) || errors.Is(err, adapter.ErrInDoubt) || !strings.Contains(err.Error(), "65536 events or 64 MiB") {
		t.Errorf("beyond the bound: %v", err)
	}
}

// Callers of Publish wait for a broker that is slow, and at most so many bytes with
// them; what does not fit is not taken in. All of it is stored in the end.
func TestPublishersWaitForASlowBroker(t *testing.T) {
	a, proxy, url := slow(t, adapter.Config{Durable: []string{"order.>"}})
	const n = fitting + 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := a.Publish(t.Context(), bulky(strconv.Itoa(i), halfMiB), adapter.Durable); err != nil {
				t.Errorf("event %d: %v", i, err)
			}
		})
	}
	testkit.Until(t, patience, func() bool { return a.Stats().Buffered == fitting })
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := a.Publish(soon, bulky("beyond", halfMiB), adapter.Durable)
	if overflows(t, err); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond the bound, for a while: %v", err)
	}
	proxy.Slow(testkit.ToServer, 64<<20)
	stored := loop.Go(func(context.Context) { wg.Wait() })
	defer stored.StopAndWait()
	most := 0
	testkit.Until(t, 3*patience, func() bool { most = max(most, a.Stats().Buffered); return stored.Ended() })
	if most > fitting {
		t.Errorf("%d events waited at once; want %d at most", most, fitting)
	}
	once(t, idsIn(t, url, "shop"), n)
}

// PublishAsync takes as many events as may be on their way, and then waits.
func TestPublishAsyncWaitsForASlowBroker(t *testing.T) {
	a, proxy, url := slow(t, adapter.Config{Durable: []string{"order.>"}})
	var told atomic.Int64
	tell := func(err error) {
		if err != nil {
			t.Error(err)
		}
		told.Add(1)
	}
	for i := range natsbus.MaxItems {
		if err := async(within(t), a, order(strconv.Itoa(i), 10), tell); err != nil {
			t.Fatal(err)
		}
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	overflows(t, async(soon, a, order("beyond", 10), tell))
	if s := a.Stats(); s.Buffered != natsbus.MaxItems {
		t.Errorf("%d wait", s.Buffered)
	}
	waits := make(chan error, 1)
	run := loop.Go(func(context.Context) { waits <- async(t.Context(), a, order(strconv.Itoa(natsbus.MaxItems), 10), tell) })
	defer run.StopAndWait()
	proxy.Slow(testkit.ToServer, 0)
	if err := <-waits; err != nil {
		t.Errorf("with room again: %v", err)
	}
	testkit.Until(t, 3*patience, func() bool { return told.Load() == natsbus.MaxItems+1 })
	inOrder(t, idsIn(t, url, "shop"), natsbus.MaxItems+1)
}

// What is live does not wait: at the bound it is refused, at once. What was taken
// arrives, in order, or is counted as in doubt.
func TestLiveEventsAreRefusedByASlowBroker(t *testing.T) {
	a, proxy, url := slow(t, adapter.Config{})
	got := make(chan adapter.Delivery, natsbus.MaxItems)
	subscribe(t, open(t, url, adapter.Config{}), adapter.Spec{Pattern: "order.>", Deliver: func(d adapter.Delivery) { got <- d }})
	data := make([]byte, 48<<10) // in base64
	taken := 0
	var err error
	for ; err == nil && taken < natsbus.MaxItems; taken++ {
		err = a.Publish(within(t), bulky(strconv.Itoa(taken), data), adapter.Live)
	}
	taken--
	overflows(t, err)
	if s := a.Stats(); s.Buffered > natsbus.MaxBytes/(64<<10) || s.Buffered < natsbus.MaxBytes/(64<<10)-10 {
		t.Errorf("%d wait", s.Buffered)
	}
	for range 100 {
		overflows(t, a.Publish(within(t), bulky("beyond", data), adapter.Live))
	}
	proxy.Slow(testkit.ToServer, 0)
	testkit.Until(t, 3*patience, func() bool { return a.Stats().Buffered == 0 })
	var ids []string
	testkit.Until(t, patience, func() bool {
		for len(got) > 0 {
			ids = append(ids, (<-got).ID)
		}
		return len(ids)+int(a.Stats().InDoubt) >= taken
	})
	if !slices.IsSortedFunc(ids, func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y }) {
		t.Error("not in order")
	}
	slices.Sort(ids)
	if n := len(slices.Compact(slices.Clone(ids))); n != len(ids) {
		t.Errorf("%d came twice", len(ids)-n)
	}
	t.Logf("%d were taken, %d came, %d in doubt", taken, len(ids), a.Stats().InDoubt)
}

// With a spool a broker that takes nothing is away: all that waits goes there, and those
// for whom there was no room follow.
func TestASlowBrokerIsAway(t *testing.T) {
	dir := t.TempDir()
	a, proxy, url := slow(t, spooling(dir))
	const n = fitting + 20
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			if err := a.Publish(t.Context(), bulky(strconv.Itoa(i), halfMiB), adapter.Durable); err != nil {
				t.Errorf("event %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if took, s := time.Since(began), a.Stats(); took > patience || s.Spooled != n || s.Buffered != 0 {
		t.Errorf("after %v %d lie in the spool, and %d wait", took, s.Spooled, s.Buffered)
	}
	proxy.Cut()
	proxy.Mend()
	testkit.Until(t, 3*patience, func() bool { return a.Stats().Spooled == 0 })
	once(t, idsIn(t, url, "shop"), n)
}

// A disk that is slow has those wait who publish to the spool, too.
func TestASlowSpoolIsWaitedFor(t *testing.T) {
	slow := make(chan struct{})
	natsbus.StopAt(func(p string) {
		if p == "stored" {
			<-slow
		}
	})
	t.Cleanup(func() { natsbus.StopAt(func(string) {}) })
	srv, dir := testkit.Server(t), t.TempDir()
	a := open(t, srv.URL(), spooling(dir))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told atomic.Int64
	taken := 0
	var last error
	run := loop.Go(func(context.Context) {
		for ; last == nil && taken < 2*natsbus.MaxItems; taken++ {
			last = a.(adapter.AsyncPublisher).PublishAsync(ctx, order(strconv.Itoa(taken), 10), adapter.Spooled, func(err error) {
				if err != nil {
					t.Error(err)
				}
				told.Add(1)
			})
		}
		taken--
	})
	testkit.Until(t, 3*patience, func() bool { return a.Stats().Buffered == natsbus.MaxItems || run.Ended() })
	cancel()
	<-run.Done()
	if taken != natsbus.MaxItems {
		t.Errorf("%d were taken", taken)
	}
	overflows(t, last)
	close(slow)
	if err := a.Drain(within(t)); err != nil {
		t.Error(err)
	}
	if int(told.Load()) != taken {
		t.Errorf("%d of %d were told", told.Load(), taken)
	}
	inOrder(t, idsIn(t, srv.URL(), "shop"), taken)
}
