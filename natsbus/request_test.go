package natsbus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// request sends a request with its topic for an id, and returns how to wait for what
// comes back first.
func request(t *testing.T, a adapter.Adapter, topic string) (first func() adapter.Reply) {
	t.Helper()
	got := make(chan adapter.Reply, 100)
	m := &adapter.Message{ID: topic, Topic: topic, Source: "//shop/1", Time: time.Now()}
	stop, err := a.(adapter.Requester).Request(within(t), m, func(r adapter.Reply) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return func() (r adapter.Reply) {
		t.Helper()
		select {
		case r = <-got:
		case <-time.After(patience):
			t.Fatalf("%s: no reply in %v", topic, patience)
		}
		return r
	}
}

// After an outage a responder may be back later than who asks.
func TestRequestWaitsForTheResponderToComeBack(t *testing.T) {
	srv := testkit.Server(t)
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	shop, pricing := open(t, srv.URL(), adapter.Config{}), open(t, proxy.URL(), adapter.Config{App: "pricing"})
	subscribe(t, pricing, adapter.Spec{Pattern: "price.of", Group: "g", Deliver: func(d adapter.Delivery) {
		if err := d.Reply(adapter.Reply{Message: &d.Message}); err != nil {
			t.Error(err)
		}
	}})
	proxy.Cut()
	testkit.Until(t, patience, func() bool { return srv.Running().NumClients() == 1 })
	if r := request(t, shop, "price.of")(); !errors.Is(r.Err, adapter.ErrNobody) {
		t.Errorf("nobody was there, and no outage: %+v", r)
	}
	srv.Restart()
	testkit.Until(t, patience, func() bool { s := shop.Stats(); return s.Disconnects == 1 && s.Connected })
	first := request(t, shop, "price.of")
	testkit.Until(t, patience, func() bool { return natsbus.WillRetry(shop) })
	proxy.Mend()
	if r := first(); r.Message == nil || r.Message.ID != "price.of" {
		t.Errorf("%+v", r)
	}
}

func TestRequestWithoutPermissionEndsAtOnce(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"secret.>"}}}}}
	}).URL()
	a := open(t, strings.Replace(url, "nats://", "nats://u:p@", 1), adapter.Config{})
	if r := request(t, a, "secret.x")(); !errors.Is(r.Err, adapter.ErrNobody) || !strings.Contains(r.Err.Error(), `no permission to publish to "secret.x"`) {
		t.Errorf("%+v", r)
	}
}
