package natsbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// The first way of docs/cluster.md, from a hub to a cluster under load: subscribers on
// both, publishers to the new one, and the hub goes when nothing waits there. Each event
// is handled once.
func TestMovingFromAHubToACluster(t *testing.T) {
	const each = 300
	h, err := hub.Start(t.Context(), hub.Options{Dir: t.TempDir(), Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = h.Stop(context.Background()) }()
	c, accepted := newClerk(), map[string]bool{}
	billing := func(url, instance string) (adapter.Adapter, adapter.Subscription) {
		a := open(t, url, adapter.Config{App: "billing", Instance: instance})
		s := subscribe(t, a, adapter.Spec{Pattern: "order.*", Group: "billing", Durable: true, Deliver: c.take})
		if err := s.Ready(within(t)); err != nil {
			t.Fatal(err)
		}
		return a, s
	}
	shop := func(a adapter.Adapter, name string) {
		for i := range each {
			id := fmt.Sprint(name, i)
			publish(t, a, adapter.Durable, id, "order.placed")
			accepted[id] = true
		}
	}
	before := open(t, h.URL(), adapter.Config{Durable: []string{"order.>"}})
	shop(before, "waiting")
	old, oldSub := billing(h.URL(), "old")
	shop(before, "before")

	s := ship(t, asShipped)
	s.join(t, s.url(), adapter.Config{App: "ready"})
	admin, err := natsbus.OpenAdmin(within(t), s.url(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	testkit.Until(t, 3*patience, func() bool {
		_, err := admin.Apply(within(t), natsbus.Declaration{App: "shop", Durable: []string{"order.>"}, Settings: natsbus.Settings{Replicas: 3}})
		return err == nil
	})
	billing(s.url(), "new")
	after := s.join(t, s.url(), adapter.Config{Durable: []string{"order.>"}})
	shop(before, "meanwhile")
	shop(after, "after")
	if err := before.Drain(within(t)); err != nil {
		t.Error(err)
	}
	hubs, err := natsbus.OpenAdmin(within(t), h.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hubs.Close() }()
	testkit.Until(t, patience, func() bool {
		states, err := hubs.Streams(within(t))
		return err == nil && len(states) == 1 && len(states[0].Groups) == 1 && states[0].Groups[0].Waits() == 0
	})
	for _, err := range []error{oldSub.Drain(within(t)), oldSub.Close(within(t)), old.Drain(within(t))} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := h.Stop(within(t)); err != nil {
		t.Error(err)
	}
	shop(after, "without")
	testkit.Until(t, 2*patience, func() bool { return c.count() >= len(accepted) })
	if lost, doubled, again := c.judge(accepted); len(lost)+len(doubled)+len(again) > 0 {
		t.Errorf("of %d: lost %v, doubled %v, again %v", len(accepted), some(lost), some(doubled), some(again))
	}
}

// The second way: a backup of the hub's streams is restored in the cluster, with three
// copies of each, and groups go on where they were.
func TestMovingTheStreamsToACluster(t *testing.T) {
	const each = 200
	h, err := hub.Start(t.Context(), hub.Options{Dir: t.TempDir(), Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = h.Stop(context.Background()) }()
	c, accepted := newClerk(), map[string]bool{}
	shop := func(a adapter.Adapter, name string) {
		for i := range each {
			id := fmt.Sprint(name, i)
			publish(t, a, adapter.Durable, id, "order.placed")
			accepted[id] = true
		}
	}
	spec := adapter.Spec{Pattern: "order.*", Group: "billing", Durable: true, Deliver: c.take}
	before := open(t, h.URL(), adapter.Config{Durable: []string{"order.>"}})
	shop(before, "handled")
	old := subscribe(t, open(t, h.URL(), adapter.Config{App: "billing"}), spec)
	testkit.Until(t, patience, func() bool { return c.count() == len(accepted) })
	if err := old.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	shop(before, "waiting")
	dir := filepath.Join(t.TempDir(), "backup")
	if _, err := hub.Backup(within(t), plain(t, h.URL()), dir); err != nil {
		t.Fatal(err)
	}

	s := ship(t, asShipped)
	s.join(t, s.url(), adapter.Config{App: "ready", Durable: []string{"ready"}}) // somebody leads the cluster
	nc := plain(t, s.url())
	if _, err := hub.Restore(within(t), nc, dir, hub.RestoreOptions{Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if stream, err := js.Stream(within(t), "shop"); err != nil || stream.CachedInfo().Config.Replicas != 3 {
		t.Errorf("%+v: %v", stream.CachedInfo().Config, err)
	}
	subscribe(t, s.join(t, s.url(), adapter.Config{App: "billing"}), spec)
	shop(s.join(t, s.url(), adapter.Config{Durable: []string{"order.>"}}), "after")
	testkit.Until(t, 2*patience, func() bool { return c.count() >= len(accepted) })
	if lost, doubled, again := c.judge(accepted); len(lost)+len(doubled)+len(again) > 0 {
		t.Errorf("of %d: lost %v, doubled %v, again %v", len(accepted), some(lost), some(doubled), some(again))
	}
}

// plain is a connection of nats.go to where a URL of ours leads.
func plain(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := natsbus.Connect(within(t), url, "plain")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
