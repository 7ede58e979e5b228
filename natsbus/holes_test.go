package natsbus_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// A counter publishes numbered events of one topic.
type counter struct {
	t *testing.T
	a adapter.Adapter
	n int64
}

func (c *counter) publish(n int) {
	c.t.Helper()
	for range n {
		c.n++
		m := &adapter.Message{ID: "counter-" + strconv.FormatInt(c.n, 36), Topic: "cart.seen", Source: "//shop/1", Time: time.Now(), Numbered: true}
		if err := c.a.Publish(within(c.t), m, adapter.Live); err != nil {
			c.t.Fatal(err)
		}
	}
}

func missing(s adapter.Subscription) uint64 { return s.(adapter.MissCounter).Missing() }

// misses waits until every subscription says that so many of the events of the counter
// are missing, of as many as it knows of.
func (c *counter) misses(want uint64, subs ...adapter.Subscription) {
	c.t.Helper()
	for i, s := range subs {
		testkit.Until(c.t, patience, func() bool { return natsbus.Counted(s) == uint64(c.n) })
		testkit.Until(c.t, patience, func() bool { return missing(s) >= want })
		if n := missing(s); n != want {
			c.t.Errorf("subscription %d: %d are missing, want %d", i, n, want)
		}
	}
}

// settled waits until all that is known has been judged.
func settled() { <-time.After(4 * markEvery) }

const markEvery = 50 * time.Millisecond

// counting subscribes and handles nothing.
func counting(t *testing.T, a adapter.Adapter, group string) adapter.Subscription {
	return subscribe(t, a, adapter.Spec{Pattern: "cart.*", Group: group, Deliver: func(adapter.Delivery) {}})
}

func TestNothingIsMissingOverHandOvers(t *testing.T) {
	natsbus.SetMarkEvery(t, markEvery)
	url := testkit.Server(t).URL()
	c := &counter{t: t, a: open(t, url, adapter.Config{})}
	first, all := counting(t, open(t, url, adapter.Config{}), "g"), counting(t, open(t, url, adapter.Config{}), "")
	old := first
	for range 5 {
		c.publish(200)
		next := counting(t, open(t, url, adapter.Config{}), "g")
		c.publish(200)
		if old != first {
			if err := old.Close(within(t)); err != nil {
				t.Error(err)
			}
		}
		old = next
	}
	settled()
	c.misses(0, first, all)
}

// What a publisher's connection loses is missing everywhere.
func TestWhatAConnectionLosesIsMissing(t *testing.T) {
	natsbus.SetMarkEvery(t, markEvery)
	srv := testkit.Server(t)
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a := open(t, proxy.URL(), adapter.Config{})
	c := &counter{t: t, a: a}
	subs := []adapter.Subscription{counting(t, open(t, srv.URL(), adapter.Config{}), "g"), counting(t, open(t, srv.URL(), adapter.Config{}), "g"), counting(t, open(t, srv.URL(), adapter.Config{}), "")}
	c.publish(20)
	c.misses(0, subs...)
	proxy.Lose(testkit.ToServer, true)
	c.publish(7)
	testkit.Until(t, patience, func() bool { return a.Stats().Buffered == 0 })
	proxy.Cut()
	testkit.Until(t, patience, func() bool { return a.Stats().Disconnects > 0 })
	proxy.Mend()
	testkit.Until(t, patience, func() bool { return a.Stats().Connected })
	c.misses(7, subs...) // also when nothing more is published
	c.publish(20)
	c.misses(7, subs...)
	if n := a.Stats().InDoubt; n != 7 {
		t.Errorf("the publisher has %d in doubt", n)
	}
}

// What is sent to a process that does not get it, and is gone then, is missing for those
// who are left.
func TestWhatADeadMemberHadIsMissing(t *testing.T) {
	natsbus.SetMarkEvery(t, markEvery)
	srv := testkit.Server(t)
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	c := &counter{t: t, a: open(t, srv.URL(), adapter.Config{})}
	left, dead := counting(t, open(t, srv.URL(), adapter.Config{}), "g"), open(t, proxy.URL(), adapter.Config{})
	got := make(chan struct{}, 1000)
	subscribe(t, dead, adapter.Spec{Pattern: "cart.*", Group: "g", Deliver: func(adapter.Delivery) { got <- struct{}{} }})
	c.publish(100)
	c.misses(0, left)
	before := len(got)
	proxy.Lose(testkit.ToClient, true)
	c.publish(100)
	testkit.Until(t, patience, func() bool { return natsbus.Counted(left) == 200 })
	proxy.Cut() // for good
	if before == 0 || before == 100 || len(got) != before {
		t.Fatalf("the other member got %d, and %d when it could get nothing", before, len(got)-before)
	}
	testkit.Until(t, patience, func() bool { return missing(left) > 0 })
	n := missing(left)
	c.publish(50)
	c.misses(n, left)
	if n < 20 || n > 80 {
		t.Errorf("%d of 100 are missing, of which another was given about a half", n)
	}
}

// What a full buffer drops is missing.
func TestWhatABufferDropsIsMissing(t *testing.T) {
	natsbus.SetMarkEvery(t, markEvery)
	url := testkit.Server(t).URL()
	c := &counter{t: t, a: open(t, url, adapter.Config{})}
	a, hold := open(t, url, adapter.Config{}), make(chan struct{})
	begun := make(chan struct{}, 100)
	s := subscribe(t, a, adapter.Spec{Pattern: "cart.*", Group: "g", Deliver: func(adapter.Delivery) { begun <- struct{}{}; <-hold }})
	c.publish(1)
	<-begun // the rest fills the buffer
	if err := natsbus.SetPending(s, 10); err != nil {
		t.Fatal(err)
	}
	c.publish(100)
	testkit.Until(t, patience, func() bool { return natsbus.Counted(s) == 101 && a.Stats().Dropped > 0 })
	close(hold)
	c.misses(91, s)
	if n := a.Stats().Dropped; n != 91 {
		t.Errorf("%d are counted as dropped", n)
	}
}

// Without the permission to count everything else goes on.
func TestCountingNeedsPermission(t *testing.T) {
	natsbus.SetMarkEvery(t, markEvery)
	url := testkit.Server(t, func(o *server.Options) {
		only := &server.SubjectPermission{Allow: []string{"cart.>", "_INBOX.>"}}
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{Publish: only, Subscribe: only}}}
	}).URL()
	url = strings.Replace(url, "nats://", "nats://u:p@", 1)
	cfg := adapter.Config{App: "shop", OnError: func(err error) { t.Error(err) }}
	c := &counter{t: t, a: open(t, url, cfg)}
	got := make(chan adapter.Delivery, 100)
	a := open(t, url, cfg)
	s := subscribe(t, a, adapter.Spec{Pattern: "cart.*", Group: "g", Deliver: func(d adapter.Delivery) { got <- d }})
	for range 3 {
		c.publish(1)
		receive(t, got)
		settled()
	}
	if missing(s) != 0 || a.Stats().Dropped != 0 || c.a.Stats().Dropped != 0 {
		t.Errorf("%d missing, %+v, %+v", missing(s), a.Stats(), c.a.Stats())
	}
}
