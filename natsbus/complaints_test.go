package natsbus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// Each test here is a complaint that users of other clients, or of JetStream bare,
// have filed. The threads are named.

// logbook is a log that a test reads.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.b.Bytes(), []byte(s))
}

// openLogged is open with a log to read; what has no caller goes there too.
func openLogged(t *testing.T, url string) (adapter.Adapter, *logbook) {
	t.Helper()
	l := &logbook{}
	a, err := natsbus.Open(within(t), url, adapter.Config{App: "shop", Instance: "1", Durable: []string{"order.>"},
		Logger: slog.New(slog.NewTextHandler(l, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, l
}

// flows publishes one event and waits for it.
func flows(t *testing.T, p adapter.Adapter, got <-chan adapter.Delivery, id string) {
	t.Helper()
	publish(t, p, adapter.Durable, id, "order.placed")
	for d := receive(t, got); d.ID != id; d = receive(t, got) {
	}
}

func acking(t *testing.T, a adapter.Adapter) (adapter.Subscription, <-chan adapter.Delivery) {
	t.Helper()
	got := make(chan adapter.Delivery, 10_000)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); got <- d }))
	return sub, got
}

// nats.go#181, magistrala#1686, netlify-commons#62, nats.py#735: after 60 attempts
// to reconnect the client gives up for good, in silence.
func TestComplaintSilentStop(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	_, got := acking(t, a)
	flows(t, a, got, "before")
	if n := natsbus.MaxReconnects(a); n >= 0 {
		t.Errorf("it gives up after %d attempts", n)
	}
	srv.Shutdown()
	testkit.Until(t, patience, func() bool { return natsbus.Dials(a) > 70 })
	srv.Start()
	flows(t, a, got, "after")
}

// nats-server#5679, nats.go#1094, #1370, nats.node#570: the consumer is there, the
// connection is up, and nothing comes.
func TestComplaintAliveButSilent(t *testing.T) {
	srv := testkit.Server(t)
	a, log := openLogged(t, srv.URL())
	sub, got := acking(t, a)
	flows(t, a, got, "before")
	if err := natsbus.Deafen(sub); err != nil {
		t.Fatal(err)
	}
	flows(t, a, got, "after")
	if a.Stats().Stalled == 0 || !log.has("gets nothing") {
		t.Error("it was mended in silence")
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// The same with a broker that was restarted many times while nothing happened.
func TestComplaintSilentAfterRestarts(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	_, got := acking(t, a)
	for i := range 3 {
		srv.Restart()
		srv.Restart()
		flows(t, a, got, strconv.Itoa(i))
	}
}

// nats.go#1083, nuts-node#2401, nats-server#217: a slow consumer drops events, and
// nobody knows. Here ten thousand come while the handler is stuck.
func TestComplaintSlowConsumerDrops(t *testing.T) {
	const n = 10_000
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	stuck, got := make(chan struct{}), make(chan string, n)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { <-stuck; d.Settle.Ack(nil); got <- d.ID }))
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range n / 20 {
				m := &adapter.Message{ID: fmt.Sprint(w, "-", i), Topic: "order.placed", Source: "//shop/1"}
				if err := a.Publish(t.Context(), m, adapter.Durable); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stuck)
	seen := map[string]bool{}
	for range n {
		select {
		case id := <-got:
			if seen[id] {
				t.Errorf("%s came twice", id)
			}
			seen[id] = true
		case <-time.After(patience):
			t.Fatalf("%d of %d came", len(seen), n)
		}
	}
	if s := a.Stats(); s.Dropped != 0 {
		t.Errorf("%d were dropped", s.Dropped)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// newchat#346: bare negative acknowledgements use up max_deliver in milliseconds.
// nats-server#7817: then the event is lost.
func TestComplaintNakBurnsTheEvent(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	done := make(chan int, 1)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) {
		if d.Attempt <= 1000 {
			d.Settle.Nak(0)
			return
		}
		d.Settle.Ack(nil)
		done <- d.Attempt
	}))
	publish(t, a, adapter.Durable, "1", "order.placed")
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it was given up")
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// nats.go#1096, #1328, #1672, #1673, newchat#223: Drain returns at once, and the
// program ends with handlers at work. ClickHouse#118521: acknowledgements are sent
// and not confirmed.
func TestComplaintDrainDoesNotWait(t *testing.T) {
	const n = 500
	srv := testkit.Server(t)
	p := stored(t, srv.URL(), n)
	a := open(t, srv.URL(), adapter.Config{})
	var mu sync.Mutex
	delivered := 0
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) {
		<-time.After(100 * time.Microsecond)
		mu.Lock()
		delivered++
		mu.Unlock()
		d.Settle.Ack(nil)
	}))
	if err := sub.Ready(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := sub.Drain(within(t)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	after := delivered
	mu.Unlock()
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if delivered != after {
		t.Errorf("%d were delivered after Drain had returned", delivered-after)
	}
	info := consumerOf(t, jsClient(t, srv.URL()))
	if info.NumAckPending != 0 || info.NumRedelivered != 0 || info.AckFloor.Consumer != uint64(delivered) {
		t.Errorf("%d were delivered; the server says: %d unsettled, %d redelivered, floor %d", delivered, info.NumAckPending, info.NumRedelivered, info.AckFloor.Consumer)
	}
	_ = p
}

// devtron#5377: draining a subscription deletes its durable consumer.
func TestComplaintDrainDeletesTheDurable(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}})
	sub, got := acking(t, a)
	flows(t, a, got, "1")
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	publish(t, a, adapter.Durable, "2", "order.placed")
	js := jsClient(t, srv.URL())
	testkit.Until(t, patience, func() bool { return consumerOf(t, js).NumPending == 1 }) // the server counts a moment after it has acknowledged
}

// FastStream#2563: a handler that takes longer than the ack wait gets its event
// again, and again, while it works; so does what waits behind it.
func TestComplaintSlowHandlerIsDoubled(t *testing.T) {
	natsbus.SetAckWait(t, time.Second)
	srv := testkit.Server(t)
	const n = 10
	stored(t, srv.URL(), n)
	a := open(t, srv.URL(), adapter.Config{})
	got := make(chan adapter.Delivery, 3*n)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { got <- d }))
	subscribe(t, open(t, srv.URL(), adapter.Config{}), groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); got <- d }))
	var held []adapter.Delivery
	for range n {
		held = append(held, receive(t, got))
	}
	select {
	case d := <-got:
		t.Errorf("event %s came again after less than %v of work", d.ID, 4*time.Second)
	case <-time.After(4 * time.Second):
	}
	for _, d := range held {
		d.Settle.Ack(nil)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// JasperFx/wolverine#4039: what a dead process has prefetched pins MaxAckPending, and
// nobody gets anything. See also kill_test.go. Here the bound itself is reached: it
// is said.
func TestComplaintAckPendingPinned(t *testing.T) {
	srv := testkit.Server(t)
	a, log := openLogged(t, srv.URL())
	held := make(chan adapter.Delivery, 10)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { held <- d }))
	js := jsClient(t, srv.URL())
	cfg := consumerOf(t, js).Config
	cfg.MaxAckPending = 2
	if _, err := js.UpdateConsumer(within(t), "shop", cfg); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		publish(t, a, adapter.Durable, strconv.Itoa(i), "order.placed")
	}
	pinned := []adapter.Delivery{receive(t, held), receive(t, held)}
	testkit.Until(t, patience, func() bool { return log.has("as many unsettled events as it may") })
	for _, d := range pinned {
		d.Settle.Ack(nil)
	}
	for range 2 {
		receive(t, held).Settle.Ack(nil)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// A consumer that somebody has paused is taken for a broken program.
func TestComplaintPausedConsumer(t *testing.T) {
	srv := testkit.Server(t)
	a, log := openLogged(t, srv.URL())
	_, got := acking(t, a)
	flows(t, a, got, "1")
	js := jsClient(t, srv.URL())
	name := consumerOf(t, js).Name
	if _, err := js.PauseConsumer(within(t), "shop", name, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	publish(t, a, adapter.Durable, "2", "order.placed")
	testkit.Until(t, patience, func() bool { return log.has("it is paused") })
	if !log.has("nats consumer resume shop "+name) || a.Stats().Stalled != 1 {
		t.Errorf("no way out in the log, or not counted once: %d", a.Stats().Stalled)
	}
	if _, err := js.ResumeConsumer(within(t), "shop", name); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	receive(t, got)
	if took := time.Since(at); took > 3*time.Second { // nats.go: 15 s
		t.Errorf("the first event came %v after the resumption", took)
	}
	testkit.Until(t, patience, func() bool { return log.has("was resumed") })
}

// The consumer was deleted under a running process, which then waits for ever.
func TestComplaintConsumerDeleted(t *testing.T) {
	srv := testkit.Server(t)
	a, log := openLogged(t, srv.URL())
	_, got := acking(t, a)
	for i := range 10 {
		flows(t, a, got, strconv.Itoa(i))
	}
	js := jsClient(t, srv.URL())
	name := consumerOf(t, js).Name
	if err := js.DeleteConsumer(within(t), "shop", name); err != nil {
		t.Fatal(err)
	}
	publish(t, a, adapter.Durable, "after", "order.placed")
	if d := receive(t, got); d.ID != "after" {
		t.Errorf("event %s, which was handled before, came again", d.ID)
	}
	testkit.Until(t, patience, func() bool { return log.has("was deleted and is made anew") })
}

// The stream was deleted, and we make it anew: its sequences begin again, and mean other
// events.
func TestComplaintStreamRecreated(t *testing.T) {
	srv := testkit.Server(t)
	a, log := openLogged(t, srv.URL())
	held := make(chan adapter.Delivery, 10)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { held <- d }))
	publish(t, a, adapter.Durable, "old", "order.placed")
	old := receive(t, held)
	js := jsClient(t, srv.URL())
	if err := js.DeleteStream(within(t), "shop"); err != nil {
		t.Fatal(err)
	}
	publish(t, a, adapter.Durable, "new", "order.placed")
	fresh := receive(t, held)
	if fresh.ID != "new" {
		t.Fatalf("%s came", fresh.ID)
	}
	lost, confirmed := make(chan error, 1), make(chan error, 1)
	old.Settle.Ack(func(err error) { lost <- err })
	if err := <-lost; err == nil {
		t.Error("an event of a stream that is gone was acknowledged")
	}
	fresh.Settle.Ack(func(err error) { confirmed <- err })
	if err := <-confirmed; err != nil {
		t.Error(err)
	}
	if !log.has("was made anew") {
		t.Error("nothing was said")
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// The stream was purged: what is in hand can be settled, and what comes next comes.
func TestComplaintStreamPurged(t *testing.T) {
	srv := testkit.Server(t)
	a, _ := openLogged(t, srv.URL())
	held := make(chan adapter.Delivery, 100)
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { held <- d }))
	for i := range 5 {
		publish(t, a, adapter.Durable, strconv.Itoa(i), "order.placed")
	}
	var old []adapter.Delivery
	for range 5 {
		old = append(old, receive(t, held))
	}
	s, err := jsClient(t, srv.URL()).Stream(within(t), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(within(t)); err != nil {
		t.Fatal(err)
	}
	publish(t, a, adapter.Durable, "new", "order.placed")
	if d := receive(t, held); d.ID != "new" {
		t.Fatalf("%s came", d.ID)
	} else {
		old = append(old, d)
	}
	confirmed := make(chan error, len(old))
	for _, d := range old {
		d.Settle.Ack(func(err error) { confirmed <- err })
	}
	for range old {
		if err := <-confirmed; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
}
