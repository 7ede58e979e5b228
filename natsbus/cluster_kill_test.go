package natsbus_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
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
)

// clusterKills is how often each node is killed.
var clusterKills = flag.Int("cluster-kills", 1, "how often each of three nodes is killed")

// A till publishes numbered events without end, and knows which were accepted.
type till struct {
	name     string
	a        adapter.Adapter
	class    adapter.Class
	accepted atomic.Int64
	run      *loop.Loop

	mu  sync.Mutex
	ids map[string]bool // accepted
	err error
}

// opens starts one that publishes an event each pause.
func opens(name string, a adapter.Adapter, class adapter.Class, topic string, pause time.Duration) *till {
	p := &till{name: name, a: a, class: class, ids: map[string]bool{}}
	p.run = loop.Go(func(ctx context.Context) {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for n := int64(1); ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			id := name + "-" + strconv.FormatInt(n, 36)
			within, cancel := context.WithTimeout(context.Background(), 5*patience)
			err := a.Publish(within, &adapter.Message{ID: id, Topic: topic, Source: "//shop/" + name, Time: time.Now(), Data: []byte(id), Numbered: true}, class)
			cancel()
			p.mu.Lock()
			if err == nil {
				p.ids[id] = true
			} else if p.err == nil {
				p.err = fmt.Errorf("%s: %w", id, err)
			}
			p.mu.Unlock()
			if err == nil {
				p.accepted.Add(1)
			}
		}
	})
	return p
}

// soFar is what was accepted until now.
func (p *till) soFar() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.ids)
}

// closes waits for the last one, and returns what was accepted.
func (p *till) closes(t *testing.T) map[string]bool {
	t.Helper()
	p.run.StopAndWait()
	if p.err != nil {
		t.Error(p.err)
	}
	return p.ids
}

// A clerk is a group of processes, and counts what it handles.
type clerk struct {
	mu      sync.Mutex
	handled map[string]int
	again   map[string]bool // said to be delivered again
	last    time.Time
	gap     time.Duration
}

func newClerk() *clerk { return &clerk{handled: map[string]int{}, again: map[string]bool{}} }

func (c *clerk) take(d adapter.Delivery) {
	c.mu.Lock()
	now := time.Now()
	if !c.last.IsZero() {
		c.gap = max(c.gap, now.Sub(c.last))
	}
	c.last = now
	c.handled[d.ID]++
	if d.Attempt > 1 {
		c.again[d.ID] = true
	}
	c.mu.Unlock()
	if d.Settle != nil {
		d.Settle.Ack(func(error) {})
	}
}

func (c *clerk) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.handled)
}

// longest is the longest time between two.
func (c *clerk) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gap.Round(time.Millisecond)
}

// hasOf reports whether anything of a till was handled.
func (c *clerk) hasOf(p *till) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.handled {
		if strings.HasPrefix(id, p.name+"-") {
			return true
		}
	}
	return false
}

// judge compares: what was accepted and not handled, and what was handled twice without
// a word.
func (c *clerk) judge(accepted map[string]bool) (lost, doubled, reported []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range accepted {
		if c.handled[id] == 0 {
			lost = append(lost, id)
		}
	}
	for id, n := range c.handled {
		switch {
		case n > 1 && c.again[id]:
			reported = append(reported, id)
		case n > 1:
			doubled = append(doubled, id)
		}
	}
	return lost, doubled, reported
}

// A rival is nats.go by itself beside us, so that its stalls are the server's own.
type rival struct {
	accepted atomic.Int64
	got      *clerk
	stop     func()
}

// rivals starts one, which tries to publish again every half second, and hears of a pull
// that is not served as soon.
func rivals(t *testing.T, url string) *rival {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	r := &rival{got: newClerk()}
	consumer, err := js.CreateConsumer(within(t), "shop", jetstream.ConsumerConfig{Durable: "rival", FilterSubject: "order.raw", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		r.got.take(adapter.Delivery{Message: adapter.Message{ID: m.Headers().Get(nats.MsgIdHdr)}})
		_ = m.Ack()
	}, jetstream.PullExpiry(2*time.Second), jetstream.PullHeartbeat(time.Second/2))
	if err != nil {
		t.Fatal(err)
	}
	publishing := loop.Go(func(ctx context.Context) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; {
			try, cancel := context.WithTimeout(ctx, time.Second/2)
			_, err := js.Publish(try, "order.raw", []byte("raw"), jetstream.WithMsgID(fmt.Sprint("raw-", n)))
			cancel()
			if err == nil {
				n++
				r.accepted.Add(1)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	r.stop = func() { publishing.StopAndWait(); consuming.Stop(); nc.Close() }
	return r
}

// stall measures how long no more is counted from now on.
func stall(count func() int64, took *time.Duration) *loop.Loop {
	began, before := time.Now(), count()
	return loop.Go(func(ctx context.Context) {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for count() <= before {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		*took = time.Since(began)
	})
}

// A cluster as it is shipped, with three copies: each node is killed under load and
// started again. What was accepted is handled, and nothing twice unless it is said to be
// delivered again. How long nothing was accepted is the server's own, and printed.
func TestAClusterSurvivesTheLossOfANode(t *testing.T) {
	s := ship(t, asShipped)
	var tills []*till
	for i := range 3 {
		a := s.join(t, s.url(i), adapter.Config{Instance: fmt.Sprint("till", i), Durable: []string{"order.>"}})
		tills = append(tills, opens(fmt.Sprint("till", i), a, adapter.Durable, "order.placed", 4*time.Millisecond))
	}
	c := newClerk()
	for i := range 2 {
		a := s.join(t, s.url((i+1)%3), adapter.Config{App: "billing", Instance: fmt.Sprint(i)})
		subscribe(t, a, adapter.Spec{Pattern: "order.placed", Group: "billing", Durable: true, Deliver: c.take})
	}
	js := jsClient(t, s.raw(t))
	copies := whole(t, js, 3)
	raw := rivals(t, s.raw(t))
	total := func() (n int64) {
		for _, p := range tills {
			n += p.accepted.Load()
		}
		return n
	}
	began := time.Now()
	for round := range 3 * *clusterKills {
		before := total()
		testkit.Until(t, 5*patience, func() bool { return total() > before+300 })
		n, leader := s.nodes[round%3], copies.Leader
		var ours, servers time.Duration
		n.kill()
		watch := []*loop.Loop{stall(total, &ours), stall(raw.accepted.Load, &servers)}
		for _, w := range watch {
			testkit.Until(t, 5*patience, w.Ended)
		}
		t.Logf("%s killed, the leader was %s: nothing was accepted for %v, by nats.go alone for %v", n.name, leader, ours.Round(time.Millisecond), servers.Round(time.Millisecond))
		before = total()
		testkit.Until(t, 5*patience, func() bool { return total() > before+100 })
		n.start()
		copies = whole(t, js, 3)
	}
	took := time.Since(began)
	raw.stop()
	accepted, possible := map[string]bool{}, uint64(0)
	for _, p := range tills {
		maps.Copy(accepted, p.closes(t))
		possible += p.a.Stats().Possible
	}
	testkit.Until(t, 5*patience, func() bool { return c.count() >= len(accepted) })
	lost, doubled, reported := c.judge(accepted)
	t.Logf("%d accepted in %v: %d lost, %d doubled, %d handled again and said so, %d possible doubles, longest gap between two handled %v, with nats.go alone %v",
		len(accepted), took.Round(time.Millisecond), len(lost), len(doubled), len(reported), possible, c.longest(), raw.got.longest())
	if len(lost) > 0 || len(doubled) > int(possible) {
		t.Errorf("lost %v; doubled %v", some(lost), some(doubled))
	}
}

func some(ids []string) []string {
	slices.Sort(ids)
	return ids[:min(len(ids), 10)]
}
