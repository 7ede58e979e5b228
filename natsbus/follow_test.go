package natsbus_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// An adapter finds a server that comes back elsewhere, and tells once when it is closed.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	first := testkit.Server(t, func(o *server.Options) { o.StoreDir = dir })
	var addr atomic.Pointer[string]
	move := func(b *testkit.Broker) { addr.Store(new(strings.TrimPrefix(b.URL(), "nats://"))) }
	move(first)
	closed := 0
	a, err := natsbus.Follow(t.Context(), "nats://127.0.0.1:1", natsbus.Place{
		Where: func() (string, error) {
			if at := addr.Load(); at != nil {
				return *at, nil
			}
			return "", errors.New("nowhere")
		},
		Closed: func() { closed++ },
	}, adapter.Config{App: "shop", Instance: "1", Durable: []string{"order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	publish := func(id string) {
		t.Helper()
		if err := a.Publish(t.Context(), &adapter.Message{ID: id, Topic: "order.placed", Source: "//shop/1", Data: []byte("1")}, adapter.Durable); err != nil {
			t.Fatal(err)
		}
	}
	publish("1")
	addr.Store(nil)
	first.Shutdown()
	testkit.Until(t, patience, func() bool { return !a.Stats().Connected })
	move(testkit.Server(t, func(o *server.Options) { o.StoreDir = dir }))
	publish("2")
	if closed != 0 {
		t.Error("it says that it is closed")
	}
	if err := a.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	_ = a.Close()
	if closed != 1 {
		t.Errorf("it says %d times that it is closed", closed)
	}
}

// Closed is not called for what was never open.
func TestFollowFails(t *testing.T) {
	nowhere := errors.New("nowhere")
	_, err := natsbus.Follow(t.Context(), "nats://127.0.0.1:1", natsbus.Place{
		Where:  func() (string, error) { return "", nowhere },
		Closed: func() { t.Error("it says that it is closed") },
	}, adapter.Config{App: "shop"})
	if err == nil {
		t.Fatal("no error")
	}
}
