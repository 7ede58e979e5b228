package natsbus_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// sids are the subscriptions that a server has of the connection with a name.
func sids(t *testing.T, nc *nats.Conn, name string) map[string]string {
	t.Helper()
	m, err := nc.RequestWithContext(within(t), "$SYS.REQ.SERVER.PING.CONNZ", []byte(`{"subscriptions_detail":true}`))
	if err != nil {
		t.Fatal(err)
	}
	var z struct{ Data server.Connz }
	if err := json.Unmarshal(m.Data, &z); err != nil {
		t.Fatal(err)
	}
	bySubject := map[string]string{}
	for _, c := range z.Data.Conns {
		if c.Name != name {
			continue
		}
		for _, s := range c.SubsDetail {
			bySubject[s.Subject] = s.Sid
		}
	}
	return bySubject
}

// A listener hears one event by each of its subscriptions.
type listener struct {
	t   *testing.T
	got map[string]chan adapter.Delivery
}

func listen(t *testing.T, a adapter.Adapter) *listener {
	t.Helper()
	l := &listener{t, map[string]chan adapter.Delivery{}}
	for name, spec := range map[string]adapter.Spec{
		"group":     {Pattern: "cart.*", Group: "g"},
		"broadcast": {Pattern: "cart.>"},
		"durable":   {Pattern: "order.*", Group: "g", Durable: true},
	} {
		got := make(chan adapter.Delivery, 100)
		l.got[name] = got
		spec.Deliver = func(d adapter.Delivery) {
			if d.Settle != nil {
				d.Settle.Ack(func(error) {})
			}
			got <- d
		}
		subscribe(t, a, spec)
	}
	return l
}

// hears publishes one event of each kind and waits until each subscription has had it.
func (l *listener) hears(from adapter.Adapter, id string) {
	l.t.Helper()
	publish(l.t, from, adapter.Live, id, "cart.seen")
	publish(l.t, from, adapter.Durable, id, "order.placed")
	l.heard(id)
}

// heard waits until each subscription has had an event, and nothing else.
func (l *listener) heard(id string) {
	l.t.Helper()
	for name, got := range l.got {
		if d := receive(l.t, got); d.ID != id {
			l.t.Errorf("%s: event %s, want %s", name, d.ID, id)
		}
	}
}

// A subscription that the server has lost looks like one to which nothing is sent. It
// is found and made anew, whichever it is, and so is a connection that is deaf itself.
func TestADeafSubscriptionIsMadeAnew(t *testing.T) {
	natsbus.SetWatch(t, 50*time.Millisecond)
	srv := lone(t)
	proxy := testkit.Through(t, srv.addr)
	look, err := nats.Connect(srv.url())
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close()
	cfg := adapter.Config{Durable: []string{"order.>"}}
	from := open(t, srv.url(), cfg)
	var log logged
	cfg = log.config()
	cfg.App, cfg.Durable = "ear", []string{"order.>"}
	a, err := natsbus.Open(within(t), proxy.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	l := listen(t, a)
	l.hears(from, "1")

	all := sids(t, look, "ear/one")
	if len(all) < 6 { // and those of marks and tallies
		t.Fatalf("the server has %v", all)
	}
	answers := natsbus.Answers(a)
	deaf := uint64(0)
	for subject, sid := range all {
		if !slices.Contains(answers, subject) {
			deaf++
			proxy.Say(testkit.ToServer, fmt.Sprintf("UNSUB %s\r\n", sid))
		}
	}
	heard := func() bool { return len(sids(t, look, "ear/one")) == len(all) }
	testkit.Until(t, patience, func() bool { return a.Stats().Stalled == deaf && heard() })
	l.hears(from, "2")
	if n := a.Stats().Disconnects; n != 0 {
		t.Errorf("%d disconnects", n)
	}
	if !log.has("cart.*") || !log.has("deaf") {
		t.Error("the log does not say which subscription was deaf")
	}

	for i, subject := range answers {
		was := a.Stats()
		sid, ok := sids(t, look, "ear/one")[subject]
		if !ok {
			t.Fatalf("the server does not have %s", subject)
		}
		proxy.Say(testkit.ToServer, fmt.Sprintf("UNSUB %s\r\n", sid))
		testkit.Until(t, patience, func() bool { return a.Stats().Disconnects > was.Disconnects && a.Stats().Connected && heard() })
		if a.Stats().Stalled == was.Stalled || !log.has("connecting anew") {
			t.Errorf("%s: Stats: %+v", subject, a.Stats())
		}
		l.hears(from, fmt.Sprint(3+i))
	}
}

// Where the server does not say what it has, everything else goes on, and that is said
// once.
func TestInterestThatIsNotTold(t *testing.T) {
	natsbus.SetWatch(t, 10*time.Millisecond)
	srv := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$SYS.>"}}}}}
	})
	var log logged
	cfg := log.config()
	cfg.Durable = []string{"order.>"}
	a, err := natsbus.Open(within(t), strings.Replace(srv.URL(), "nats://", "nats://u:p@", 1), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	testkit.Until(t, patience, func() bool { return log.has("cannot be found") })
	l := listen(t, a)
	for i := range 20 {
		l.hears(a, fmt.Sprint(i))
	}
	if s := a.Stats(); s.Stalled > 0 || s.Disconnects > 0 || s.Dropped > 0 {
		t.Errorf("Stats: %+v", s)
	}
	if n := strings.Count(log.String(), "cannot be found"); n != 1 {
		t.Errorf("said %d times", n)
	}
}
