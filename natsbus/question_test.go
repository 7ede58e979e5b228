package natsbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// overhear returns what a server is asked of JetStream's API from now on, and a function
// that waits for all of that until now.
func overhear(t *testing.T, url, op string) (asked <-chan *nats.Msg, all func()) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	heard := make(chan *nats.Msg, 1000)
	if _, err := nc.ChanSubscribe("$JS.API."+op, heard); err != nil {
		t.Fatal(err)
	}
	all = func() {
		if err := nc.FlushWithContext(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	all()
	return heard, all
}

// Who opens with routes that his own stream has, or subscribes to them, asks that one, and not for a list that the
// leaders of the cluster and of every such stream are needed for.
func TestWhoOpensAsksHisOwnStream(t *testing.T) {
	srv := testkit.Server(t)
	cfg := adapter.Config{App: "shop", Durable: []string{"order.>", "cart.*"}}
	if err := open(t, srv.URL(), cfg).Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	asked, all := overhear(t, srv.URL(), "STREAM.LIST")
	a := open(t, srv.URL(), cfg)
	got := make(chan adapter.Delivery, 1)
	subscribe(t, a, adapter.Spec{Pattern: "order.placed", Group: "shop", Durable: true, Deliver: func(d adapter.Delivery) {
		d.Settle.Ack(func(error) {})
		got <- d
	}})
	publish(t, a, adapter.Durable, "1", "order.placed")
	receive(t, got)
	if err := a.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	for all(); len(asked) > 0; {
		if m := <-asked; strings.Contains(string(m.Data), "order.") || strings.Contains(string(m.Data), "cart.") {
			t.Errorf("it asked for a list: %s", m.Data)
		}
	}
}

// While nobody leads a cluster, whoever opens asks again, and whichever of his questions
// is answered first, late as it may be, is enough.
func TestAQuestionIsRepeatedUntilItIsAnswered(t *testing.T) {
	var routes []*url.URL
	for range 2 {
		routes = append(routes, &url.URL{Scheme: "nats", Host: testkit.FreeAddr(t)})
	}
	join := func(i int) *testkit.Broker {
		port, err := strconv.Atoi(routes[i].Port())
		if err != nil {
			t.Fatal(err)
		}
		return testkit.Server(t, func(o *server.Options) {
			o.ServerName = fmt.Sprint("node", i)
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}
			o.Routes = routes
		})
	}
	b := join(0)
	asked, _ := overhear(t, b.URL(), "STREAM.INFO.shop")
	var a adapter.Adapter
	var err error
	opening := loop.Go(func(context.Context) {
		a, err = natsbus.Open(within(t), b.URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	})
	var replies []string
	for range 3 {
		select {
		case m := <-asked:
			replies = append(replies, m.Reply)
		case <-opening.Done():
			t.Fatalf("it was opened without a leader: %v", err)
		case <-time.After(patience):
			t.Fatalf("asked no more than %d times", len(replies))
		}
	}
	if replies = slices.Compact(replies); len(replies) != 1 {
		t.Errorf("answers to all but the last question are ignored: they would go to %v", replies)
	}
	join(1)
	<-opening.Done()
	if err != nil {
		t.Fatal(err)
	}
	publish(t, a, adapter.Durable, "1", "order.placed")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// metaLeader is the node that leads the cluster, as any node's monitor says.
func (s *shipped) metaLeader(t *testing.T) (leader int) {
	t.Helper()
	var addr string
	for line := range strings.Lines(readFile(t, filepath.Join(s.dir, "node1.conf"))) {
		if rest, ok := strings.CutPrefix(line, "http: "); ok {
			addr, _, _ = strings.Cut(rest, " ")
		}
	}
	testkit.Until(t, patience, func() bool {
		res, err := http.Get("http://" + addr + "/jsz")
		if err != nil {
			t.Fatal(err)
		}
		var z server.JSInfo
		err = json.NewDecoder(res.Body).Decode(&z)
		_ = res.Body.Close()
		if err != nil || z.Meta == nil {
			return false
		}
		leader = slices.IndexFunc(s.nodes, func(n *node) bool { return n.name == z.Meta.Leader })
		return leader >= 0
	})
	return leader
}

// The node that leads the cluster, and nothing that a group needs, is killed, and a member
// of that is connected to it. It goes on elsewhere at once: long before the cluster has
// another leader.
func TestAGroupNeedsNoLeaderOfTheCluster(t *testing.T) {
	s := ship(t, asShipped)
	settle := s.join(t, s.url(), adapter.Config{Durable: []string{"order.>"}})
	js := jsClient(t, s.raw(t))
	whole(t, js, 3)
	dead := s.metaLeader(t)
	other := (dead + 1) % 3
	subscriber := s.join(t, s.url(dead), adapter.Config{App: "billing"})
	got := make(chan adapter.Delivery, 10)
	subscribe(t, subscriber, adapter.Spec{Pattern: "order.placed", Group: "billing", Durable: true, MaxInFlight: 2, Deliver: func(d adapter.Delivery) {
		d.Settle.Ack(func(error) {})
		got <- d
	}})
	publish(t, settle, adapter.Durable, "before", "order.placed")
	receive(t, got)
	if err := settle.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(within(t), "shop")
	if err != nil {
		t.Fatal(err)
	}
	consumer := <-st.ConsumerNames(within(t)).Name()
	// Who asks while there is no leader is not answered.
	lead := func(op string, leader func(context.Context) (*jetstream.ClusterInfo, error)) {
		testkit.Until(t, 3*patience, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if is, err := leader(ctx); err == nil && is.Leader == s.nodes[other].name {
				return true
			}
			_, _ = js.Conn().RequestWithContext(ctx, "$JS.API."+op, fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, s.nodes[other].name))
			return false
		})
	}
	lead("STREAM.LEADER.STEPDOWN.shop", func(ctx context.Context) (*jetstream.ClusterInfo, error) {
		info, err := st.Info(ctx)
		if err != nil {
			return nil, err
		}
		return info.Cluster, nil
	})
	lead("CONSUMER.LEADER.STEPDOWN.shop."+consumer, func(ctx context.Context) (*jetstream.ClusterInfo, error) {
		c, err := st.Consumer(ctx, consumer)
		if err != nil {
			return nil, err
		}
		return c.CachedInfo().Cluster, nil
	})
	publisher := s.join(t, s.url(other), adapter.Config{})
	if s.metaLeader(t) != dead {
		t.Fatal("another node leads the cluster by now: this proves nothing")
	}
	s.nodes[dead].kill()
	for i := range 10 { // more than a pull may bring that stood when it died
		id := fmt.Sprint("after", i)
		publish(t, publisher, adapter.Durable, id, "order.placed")
		for receive(t, got).ID != id {
		}
	}
	if elected := s.answersNames(t, other); elected {
		t.Error("it waited until the cluster had a leader")
	}
}

// answersNames reports whether what only the leader of the cluster says is answered.
func (s *shipped) answersNames(t *testing.T, node int) bool {
	t.Helper()
	urls := strings.Split(s.raw(t), ",")
	nc, err := nats.Connect(urls[node])
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := nc.Request("$JS.API.STREAM.NAMES", nil, time.Second/4)
	return err == nil && strings.Contains(string(m.Data), `"shop"`)
}
