package natsbus_test

import (
	"context"
	"errors"
	"fmt"
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

// A breakpoint is where the publisher waits until the leader is killed.
type breakpoint struct {
	point atomic.Pointer[string]
	there chan struct{}
	goOn  chan struct{}
}

func newBreakpoint(t *testing.T) *breakpoint {
	b := &breakpoint{there: make(chan struct{}), goOn: make(chan struct{})}
	natsbus.StopAt(func(p string) {
		if at := b.point.Load(); at != nil && *at == p && b.point.CompareAndSwap(at, nil) {
			b.there <- struct{}{}
			<-b.goOn
		}
	})
	t.Cleanup(func() { natsbus.StopAt(func(string) {}) })
	return b
}

// crowd are callers that publish one event after the other, and what they were told.
type crowd struct {
	a        adapter.Adapter
	accepted atomic.Int64
	next     []int
	errs     []map[string]error // of each caller, by id
}

func newCrowd(a adapter.Adapter, n int) *crowd {
	c := &crowd{a: a, next: make([]int, n), errs: make([]map[string]error, n)}
	for i := range n {
		c.errs[i] = map[string]error{}
	}
	return c
}

// publish has each of them publish so many more.
func (c *crowd) publish(ctx context.Context, each int) {
	var wg sync.WaitGroup
	for i := range c.next {
		wg.Go(func() {
			for range each {
				id := fmt.Sprint(i, "-", c.next[i])
				c.next[i]++
				err := c.a.Publish(ctx, order(id, 100), adapter.Durable)
				if c.errs[i][id] = err; err == nil {
					c.accepted.Add(1)
				}
			}
		})
	}
	wg.Wait()
}

// check holds what is stored against that.
func (c *crowd) check(t *testing.T, stored []nats.Header) {
	t.Helper()
	seen, last, batched, doubt := map[string]bool{}, map[int]int{}, 0, 0
	for _, h := range stored {
		id := h.Get(nats.MsgIdHdr)
		if seen[id] {
			t.Errorf("%s is stored twice", id)
		}
		seen[id] = true
		if h.Get("Nats-Batch-Id") != "" {
			batched++
		}
		who, which, _ := strings.Cut(id, "-")
		i, _ := strconv.Atoi(who)
		k, _ := strconv.Atoi(which)
		if before, there := last[i]; there && k < before {
			t.Errorf("%s is stored after number %d", id, before)
		}
		last[i] = k
	}
	for i := range c.errs {
		for id, err := range c.errs[i] {
			switch {
			case err == nil && !seen[id]:
				t.Errorf("%s was accepted, and is not stored", id)
			case errors.Is(err, adapter.ErrInDoubt):
				doubt++
			case err != nil && seen[id]:
				t.Errorf("%s is stored, and its caller was told %v", id, err)
			case err != nil:
				t.Logf("%s: %v", id, err)
			}
		}
	}
	t.Logf("%d are stored, %d of them in batches; %d callers were left in doubt", len(stored), batched, doubt)
	if batched == 0 {
		t.Error("there were no batches: this proves nothing")
	}
}

// Three copies on three servers, and the one that leads is killed in the middle of a
// batch, after one was written, and after it was stored and the answer lost. What was
// accepted is stored, once and in order, and nobody waits for ever.
func TestALeaderIsKilledInABatch(t *testing.T) {
	const callers, each = 256, 12
	servers, url := nodes(t, 3)
	var proxies []*testkit.Proxy
	var through []string
	for _, n := range servers {
		p := testkit.Through(t, n.addr)
		proxies, through = append(proxies, p), append(through, strings.TrimPrefix(p.URL(), "nats://"))
	}
	at := newBreakpoint(t)
	var a adapter.Adapter
	testkit.Until(t, 3*patience, func() bool {
		var err error
		a, err = natsbus.Open(within(t), "nats://"+strings.Join(through, ","), adapter.Config{App: "shop", Durable: []string{"order.>"}})
		return err == nil
	})
	defer func() { _ = a.Close() }()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	copies := whole(t, js, 3)
	c := newCrowd(a, callers)
	for round, when := range []struct {
		point    string
		answered bool // or its answer is lost, before it dies
	}{{"half a batch", true}, {"a batch", true}, {"half a batch", false}} {
		natsbus.Batches(a, true)
		leader, err := named(servers, copies.Leader)
		if err != nil {
			t.Fatal(err)
		}
		enough := c.accepted.Load() + callers*each/3
		run := loop.Go(func(context.Context) { c.publish(t.Context(), each) })
		testkit.Until(t, patience, func() bool { return c.accepted.Load() >= enough })
		at.point.Store(&when.point)
		select {
		case <-at.there:
		case <-time.After(patience):
			t.Fatal("no batch was made")
		}
		if when.answered {
			leader.kill()
			at.goOn <- struct{}{}
		} else {
			last := streamInfo(t, js, "shop").State.LastSeq
			each := func(f func(*testkit.Proxy)) {
				for _, p := range proxies {
					f(p)
				}
			}
			each(func(p *testkit.Proxy) { p.Lose(testkit.ToClient, true) })
			at.goOn <- struct{}{}
			testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq > last })
			leader.kill()
			each((*testkit.Proxy).Cut)
			each((*testkit.Proxy).Mend)
		}
		killed, before := time.Now(), c.accepted.Load()
		testkit.Until(t, 3*patience, func() bool { return c.accepted.Load() > before || run.Ended() })
		stall := time.Since(killed)
		<-run.Done()
		t.Logf("round %d: %s was killed in %s; nothing was accepted for %v; the round took %v more", round, leader.name, when.point, stall, time.Since(killed)-stall)
		leader.start()
		copies = whole(t, js, 3)
	}
	if s := a.Stats(); s.Possible != 0 {
		t.Errorf("%d possible doubles", s.Possible)
	}
	c.check(t, headersOf(t, url, "shop"))
	if err := a.Drain(within(t)); err != nil {
		t.Error(err)
	}
}

// whole waits until the stream has so many copies, and all of it in each.
func whole(t *testing.T, js jetstream.JetStream, n int) (found *jetstream.ClusterInfo) {
	t.Helper()
	testkit.Until(t, 3*patience, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, "shop")
		if err != nil {
			return false
		}
		found = s.CachedInfo().Cluster
		return found != nil && found.Leader != "" && len(found.Replicas) == n-1 &&
			!slices.ContainsFunc(found.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline })
	})
	return found
}
