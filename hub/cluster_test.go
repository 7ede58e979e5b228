package hub

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

// freePorts are some that nobody listens on.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// A hub in a cluster says that it leaves, and goes on serving its clients until they
// have gone to another.
func TestStopLeavesACluster(t *testing.T) {
	routes := freePorts(t, 3)
	node := func(i int) *Hub {
		return mustStart(t, Options{Dir: t.TempDir(), Config: configFile(t, fmt.Sprintf(`
port: -1
server_name: n%d
cluster { name: c, listen: "127.0.0.1:%s", routes: ["nats://127.0.0.1:%s", "nats://127.0.0.1:%s", "nats://127.0.0.1:%s"] }
authorization { user: u, password: p }`, i, routes[i], routes[0], routes[1], routes[2]))})
	}
	a, b, c := node(0), node(1), node(2)
	testkit.Until(t, patience, func() bool { return a.srv.NumRoutes() > 0 && b.srv.NumRoutes() > 0 && c.srv.NumRoutes() > 0 })
	told := make(chan struct{}, 1)
	nc, err := nats.Connect(a.URL()+","+b.URL(), nats.DontRandomize(), nats.UserInfo("u", "p"), nats.LameDuckModeHandler(func(*nats.Conn) { told <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if !strings.HasSuffix(nc.ConnectedUrl(), a.addr) {
		t.Fatal("it is connected to", nc.ConnectedUrl())
	}
	stop := loop.Go(func(context.Context) { mustStop(t, a) })
	received(t, told)
	testkit.Until(t, patience, func() bool { return nc.IsConnected() && strings.HasSuffix(nc.ConnectedUrl(), b.addr) })
	<-stop.Done()
}
