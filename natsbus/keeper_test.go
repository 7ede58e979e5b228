package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// jsClient is a client of the test's own, to look and to meddle.
func jsClient(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func streamInfo(t *testing.T, js jetstream.JetStream, name string) *jetstream.StreamInfo {
	t.Helper()
	s, err := js.Stream(within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// A lagging group acknowledges each event only when lag more have come, or it
// is told to catch up.
type lagging struct {
	mu     sync.Mutex
	lag    int
	held   []adapter.Delivery
	counts map[string]int
	more   chan struct{}
}

func newLagging(lag int) *lagging {
	return &lagging{lag: lag, counts: map[string]int{}, more: make(chan struct{}, 1)}
}

func (l *lagging) deliver(d adapter.Delivery) {
	l.mu.Lock()
	l.counts[d.ID]++
	l.held = append(l.held, d)
	l.mu.Unlock()
	l.release()
}

func (l *lagging) release() {
	l.mu.Lock()
	n := max(len(l.held)-l.lag, 0)
	done := l.held[:n]
	l.held = l.held[n:]
	l.mu.Unlock()
	for _, d := range done {
		d.Settle.Ack(func(error) {})
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func (l *lagging) setLag(n int) {
	l.mu.Lock()
	l.lag = n
	l.mu.Unlock()
	l.release()
}

func (l *lagging) handled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.counts)
}

// until waits until the group has handled n different events.
func (l *lagging) until(t *testing.T, n int) {
	t.Helper()
	end := time.After(patience)
	for l.handled() < n {
		select {
		case <-l.more:
		case <-end:
			t.Fatalf("%d of %d events came", l.handled(), n)
		}
	}
}

func (l *lagging) once(t *testing.T, name string, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		if k := l.counts[fmt.Sprint(i)]; k != 1 {
			t.Errorf("group %s handled event %d of %d %d times", name, i, n, k)
		}
	}
}

// The stream would be filled ten times over. As long as its groups keep up the
// publisher does not notice; when one stays away it is told which, and when that
// is back it goes on. No event is lost to any group.
func TestAStreamIsPurgedOfWhatEveryGroupHasHandled(t *testing.T) {
	const (
		size  = 4 << 10
		limit = 4 << 20
		fits  = limit / size
	)
	srv := testkit.Server(t)
	p := open(t, srv.URL()+"?max-bytes=4MiB", adapter.Config{App: "shop", Durable: []string{"order.>"}})
	quick, slow := newLagging(0), newLagging(100)
	join := func(group string, l *lagging) adapter.Subscription {
		return subscribe(t, open(t, srv.URL(), adapter.Config{App: group}), adapter.Spec{Pattern: "order.*", Group: group, Durable: true, MaxInFlight: 200, Deliver: l.deliver})
	}
	qs, ss := join("quick", quick), join("slow", slow)
	data := make([]byte, size)
	send := func(n int) error {
		return p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(n), Topic: "order.placed", Source: "//shop/1", Time: time.Now(), Data: data}, adapter.Durable)
	}
	n := 0
	for ; n < 10*fits; n++ {
		if n > fits/2 {
			slow.until(t, n-fits/2) // it keeps up, however busy the machine is
			quick.until(t, n-fits/2)
		}
		if err := send(n); err != nil {
			t.Fatalf("event %d, while both groups keep up: %v", n, err)
		}
	}
	if s := p.Stats(); s.Purged < 8*fits {
		t.Errorf("%d events were purged", s.Purged)
	}

	slow.setLag(0)
	if err := ss.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	var full error
	for ; full == nil && n < 12*fits; n++ {
		full = send(n)
	}
	n-- // the last one was refused
	if !errors.Is(full, adapter.ErrFull) {
		t.Fatalf("a group is away and the stream is full: %v", full)
	}
	for _, part := range []string{"order.placed", "stream shop of app shop", "max_bytes 4MiB", `group "slow"`, "asks for none", "tidings streams forget"} {
		if !strings.Contains(full.Error(), part) {
			t.Errorf("the error does not say %s: %v", part, full)
		}
	}

	ss = join("slow", slow)
	testkit.Until(t, patience, func() bool {
		err := send(n)
		if err != nil && !errors.Is(err, adapter.ErrFull) {
			t.Fatal(err)
		}
		return err == nil
	})
	n++
	quick.until(t, n)
	slow.until(t, n)
	for _, s := range []adapter.Subscription{qs, ss} {
		if err := s.Close(within(t)); err != nil {
			t.Error(err)
		}
	}
	quick.once(t, "quick", n)
	slow.once(t, "slow", n)
}

// What is not acknowledged stays, though it was delivered and later events were
// acknowledged; a group that gets few events does not hold up the others.
func TestPurgeStopsAtTheLowestFloor(t *testing.T) {
	srv := testkit.Server(t)
	p := open(t, srv.URL()+"?max-msgs=100", adapter.Config{App: "shop", Durable: []string{"order.>"}})
	var mu sync.Mutex
	held := map[string]adapter.Delivery{}
	taken := make(chan string, 1000)
	subscribe(t, open(t, srv.URL(), adapter.Config{App: "few"}), adapter.Spec{Pattern: "order.refunded", Group: "few", Durable: true,
		Deliver: func(d adapter.Delivery) { d.Settle.Ack(func(error) {}) }})
	subscribe(t, open(t, srv.URL(), adapter.Config{App: "g"}), adapter.Spec{Pattern: "order.placed", Group: "g", Durable: true, Deliver: func(d adapter.Delivery) {
		if d.ID == "10" && d.Attempt == 1 {
			mu.Lock()
			held[d.ID] = d
			mu.Unlock()
		} else {
			d.Settle.Ack(func(error) {})
		}
		taken <- d.ID
	}})
	send := func(n int) error {
		return p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(n), Topic: "order.placed", Source: "//shop/1", Time: time.Now()}, adapter.Durable)
	}
	for n := 1; n <= 100; n++ {
		if err := send(n); err != nil {
			t.Fatal(err)
		}
		if got := <-taken; got != fmt.Sprint(n) {
			t.Fatalf("%s came instead of %d", got, n)
		}
	}
	js := jsClient(t, srv.URL())
	n := 101
	var full error
	testkit.Until(t, patience, func() bool {
		if full = send(n); full == nil {
			<-taken
			n++
		}
		return full != nil
	})
	if first := streamInfo(t, js, "shop").State.FirstSeq; first != 10 {
		t.Errorf("the stream begins at %d; event 10 is not acknowledged and all before it are", first)
	}
	if !errors.Is(full, adapter.ErrFull) || !strings.Contains(full.Error(), "max_msgs 100") || !strings.Contains(full.Error(), `group "g" (order.placed) has not acknowledged 1 events`) {
		t.Errorf("the error is %v", full)
	}
	mu.Lock()
	held["10"].Settle.Nak(0) // a group that has it again
	mu.Unlock()
	if got := <-taken; got != "10" {
		t.Errorf("%s came instead of what was handed back", got)
	}
	testkit.Until(t, patience, func() bool { return send(n) == nil })
	<-taken
	testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.FirstSeq > 10 })
}

// Streams that nobody consumes, or that Tidings has not made, are left alone.
func TestNothingIsPurgedThatSomebodyMayWant(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "HAND", Subjects: []string{"hand.>"}, MaxMsgs: 10, Discard: jetstream.DiscardNew}); err != nil {
		t.Fatal(err)
	}
	p := open(t, srv.URL()+"?max-msgs=10", adapter.Config{App: "shop", Durable: []string{"order.>", "hand.>"}})
	in := newLagging(0)
	hs := subscribe(t, p, adapter.Spec{Pattern: "hand.>", Group: "g", Durable: true, Deliver: in.deliver})
	for _, c := range []struct{ topic, stream, say string }{
		{"order.placed", "shop", "no group subscribes to it"},
		{"hand.made", "HAND", "not made by Tidings"},
	} {
		var full error
		n := 0
		for ; full == nil && n < 20; n++ {
			full = p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(n), Topic: c.topic, Source: "//shop/1"}, adapter.Durable)
		}
		if n != 11 || !errors.Is(full, adapter.ErrFull) || !strings.Contains(full.Error(), c.say) {
			t.Errorf("event %d: %v", n, full)
		}
		if first := streamInfo(t, js, c.stream).State.FirstSeq; first != 1 {
			t.Errorf("stream %s begins at %d", c.stream, first)
		}
	}
	in.until(t, 10)
	if err := hs.Close(within(t)); err != nil {
		t.Error(err)
	}
	// The first group gets all there is.
	late := newLagging(0)
	subscribe(t, p, adapter.Spec{Pattern: "order.>", Group: "late", Durable: true, Deliver: late.deliver})
	late.until(t, 10)
}

// The keeper purges before anybody has to be told that the stream is full, and
// leaves half of it for groups to come.
func TestPurgeBeforeItIsFull(t *testing.T) {
	srv := testkit.Server(t)
	p := open(t, srv.URL()+"?max-msgs=100", adapter.Config{App: "shop", Durable: []string{"order.>"}})
	in := newLagging(0)
	sub := subscribe(t, p, adapter.Spec{Pattern: "order.>", Group: "g", Durable: true, Deliver: in.deliver})
	js := jsClient(t, srv.URL())
	// Somebody who only looks, without a durable name, holds up nothing.
	if _, err := js.CreateConsumer(within(t), "shop", jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for n := range 80 {
		publish(t, p, adapter.Durable, fmt.Sprint(n), "order.placed")
	}
	in.until(t, 80)
	testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.FirstSeq > 1 })
	if kept := streamInfo(t, js, "shop").State.Msgs; kept < 45 || kept > 55 {
		t.Errorf("%d events are left", kept)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// The app whose stream is full may be told only by the server: what the groups
// have handled goes then, too.
func TestPurgeWhenTheServerIsFull(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 64 << 20 })
	p := open(t, srv.URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	in := newLagging(0)
	subscribe(t, p, adapter.Spec{Pattern: "order.>", Group: "g", Durable: true, MaxInFlight: 8, Deliver: in.deliver})
	data := make([]byte, 512<<10)
	for n := range 300 {
		in.until(t, n-16)
		if err := p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(n), Topic: "order.placed", Source: "//shop/1", Data: data}, adapter.Durable); err != nil {
			t.Fatalf("event %d: %v", n, err)
		}
	}
	in.until(t, 300)
	in.once(t, "g", 300)
}

// A stream that is deleted is made again by whoever declares it: no publisher
// waits for a restart of anything.
func TestADeletedStreamIsMadeAgain(t *testing.T) {
	srv := testkit.Server(t)
	p := open(t, srv.URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	publish(t, p, adapter.Durable, "1", "order.placed")
	js := jsClient(t, srv.URL())
	if err := js.DeleteStream(within(t), "shop"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Publish(ctx, &adapter.Message{ID: "2", Topic: "order.placed", Source: "//shop/1"}, adapter.Durable); err != nil {
		t.Error(err)
	}
	if n := streamInfo(t, js, "shop").State.Msgs; n != 1 {
		t.Errorf("%d events are stored", n)
	}
}

// Who may not purge says so, once in the log and in each publisher's error.
func TestMissingPermissionToPurge(t *testing.T) {
	var log logged
	cfg := log.config()
	cfg.Durable = []string{"order.>"}
	p, err := natsbus.Open(within(t), denied(t, "$JS.API.STREAM.PURGE.>")+"?max-msgs=10", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	in := newLagging(0)
	subscribe(t, p, adapter.Spec{Pattern: "order.>", Group: "g", Durable: true, Deliver: in.deliver})
	var full error
	for n := 0; full == nil && n < 20; n++ {
		full = p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(n), Topic: "order.placed", Source: "//app/1"}, adapter.Durable)
		in.until(t, min(n+1, 10))
	}
	const want = `no permission to publish to "$JS.API.STREAM.PURGE.app"`
	if !errors.Is(full, adapter.ErrFull) || !strings.Contains(full.Error(), want) {
		t.Errorf("the error is %v", full)
	}
	if !log.has("of stream app could not be purged") {
		t.Error("the log does not say it")
	}
}

// Several processes purge one stream: that is no more than one would.
func TestSeveralProcessesPurge(t *testing.T) {
	const processes, each, limit = 4, 1000, 400
	srv := testkit.Server(t)
	in := newLagging(0)
	var ps []adapter.Adapter
	for range processes {
		ps = append(ps, open(t, srv.URL()+fmt.Sprint("?max-msgs=", limit), adapter.Config{App: "shop", Durable: []string{"order.>"}}))
	}
	subscribe(t, open(t, srv.URL(), adapter.Config{App: "g"}), adapter.Spec{Pattern: "order.>", Group: "g", Durable: true, Deliver: in.deliver})
	js := jsClient(t, srv.URL())
	room := make(chan struct{}, limit/4) // so far the publishers are ahead
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() {
			for n := range each {
				room <- struct{}{}
				if err := p.Publish(within(t), &adapter.Message{ID: fmt.Sprint(i*each + n), Topic: "order.placed", Source: "//shop/1"}, adapter.Durable); err != nil {
					t.Error(err)
				}
			}
		})
	}
	least := uint64(limit)
	for n := range processes * each {
		in.until(t, n+1)
		<-room
		if n > limit && n%50 == 0 {
			least = min(least, streamInfo(t, js, "shop").State.Msgs)
		}
	}
	wg.Wait()
	in.once(t, "g", processes*each)
	if least < limit/3 {
		t.Errorf("at times only %d events were left of %d that fit", least, limit)
	}
	purgers := 0
	for _, p := range ps {
		if p.Stats().Purged > 0 {
			purgers++
		}
	}
	t.Log(purgers, "processes have purged; at least", least, "events were left")
}
