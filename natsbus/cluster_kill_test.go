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

// anew has longest begin now.
func (c *clerk) anew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gap = 0
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

// elections knows when servers have elected leaders: they tell of it.
type elections struct {
	mu   sync.Mutex
	last map[string]time.Time // by "shop", or "shop.CONSUMER"
}

// follow hears it. The node that it is connected to may be killed: nobody is elected
// before it is connected to another.
func (s *shipped) follow(t *testing.T) *elections {
	t.Helper()
	e := &elections{last: map[string]time.Time{}}
	nc, err := nats.Connect(s.raw(t), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if _, err := nc.Subscribe("$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>", func(m *nats.Msg) {
		_, of, _ := strings.Cut(m.Subject, ".LEADER_ELECTED.")
		e.mu.Lock()
		defer e.mu.Unlock()
		e.last[of] = time.Now()
	}); err != nil {
		t.Fatal(err)
	}
	return e
}

// after is how long after a kill a stream and a group's consumer had their leaders; 0 if
// neither has lost its own.
func (e *elections) after(killed time.Time, group string) (last time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for of, at := range e.last {
		if of == "shop" || strings.HasPrefix(of, "shop."+group) {
			last = max(last, at.Sub(killed))
		}
	}
	return last
}

// A cluster as it is shipped, with three copies: each node is killed under load and
// started again. What was accepted is handled, and nothing twice unless it is said to be
// delivered again. How long stream and consumer had no leader is the server's own; that,
// and how long nothing was handled, is printed.
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
	js, elected := jsClient(t, s.raw(t)), s.follow(t)
	raw := rivals(t, s.raw(t))
	total := func() (n int64) {
		for _, p := range tills {
			n += p.accepted.Load()
		}
		return n
	}
	began, most := time.Now(), time.Duration(0)
	for round := range 3 * *clusterKills {
		copies := settledCluster(t, js)
		before := total()
		testkit.Until(t, 5*patience, func() bool { return total() > before+300 })
		n, leader := s.nodes[round%3], copies.Leader
		c.anew()
		raw.got.anew()
		var ours, servers time.Duration
		n.kill()
		killed := time.Now()
		watch := []*loop.Loop{stall(total, &ours), stall(raw.accepted.Load, &servers)}
		for _, w := range watch {
			testkit.Until(t, 5*patience, w.Ended)
		}
		ids, rawIDs := c.count(), raw.got.count()
		testkit.Until(t, 5*patience, func() bool { return c.count() > ids+300 && raw.got.count() > rawIDs+300 })
		gap, leaderless := c.longest(), elected.after(killed, "billing")
		t.Logf("%s killed, which led the stream: %v. Nothing was accepted for %v, by nats.go alone for %v. Nothing was handled for %v, of which %v without a leader; by nats.go alone for %v, %v",
			n.name, n.name == leader, ours.Round(time.Millisecond), servers.Round(time.Millisecond), gap, leaderless.Round(time.Millisecond), raw.got.longest(), elected.after(killed, "rival").Round(time.Millisecond))
		most = max(most, gap-leaderless)
		n.start()
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
	t.Logf("%d accepted in %v: %d lost, %d doubled, %d handled again and said so, %d possible doubles; without an event handled at most %v longer than without a leader",
		len(accepted), took.Round(time.Millisecond), len(lost), len(doubled), len(reported), possible, most.Round(time.Millisecond))
	if len(lost) > 0 || len(doubled) > int(possible) {
		t.Errorf("lost %v; doubled %v", some(lost), some(doubled))
	}
}

// settledCluster waits until the stream and its consumers have a leader and all copies:
// else the next kill is one too many.
func settledCluster(t *testing.T, js jetstream.JetStream) *jetstream.ClusterInfo {
	t.Helper()
	copies := whole(t, js, 3)
	testkit.Until(t, 3*patience, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		st, err := js.Stream(ctx, "shop")
		if err != nil {
			return false
		}
		all, n := st.ListConsumers(ctx), 0
		for info := range all.Info() {
			if whole := info.Cluster; whole != nil && whole.Leader != "" && !slices.ContainsFunc(whole.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline }) {
				n++
			}
		}
		return all.Err() == nil && n == 2
	})
	return copies
}

func some(ids []string) []string {
	slices.Sort(ids)
	return ids[:min(len(ids), 10)]
}
