package natsbus_test

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// cluster starts n servers that know each other, and waits until their JetStream
// answers.
func cluster(t *testing.T, n int) string {
	t.Helper()
	var ports []int
	var routes []*url.URL
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
	}
	var urls []string
	for i, port := range ports {
		b := testkit.Server(t, func(o *server.Options) {
			o.ServerName = fmt.Sprint("node", i)
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}
			o.Routes = routes
		})
		urls = append(urls, strings.TrimPrefix(b.URL(), "nats://"))
	}
	return "nats://" + strings.Join(urls, ",")
}

// On a cluster a stream has three copies, and fewer only where there are fewer
// servers, which is said.
func TestStreamsOfACluster(t *testing.T) {
	for _, c := range []struct{ servers, copies int }{{3, 3}, {2, 1}} {
		t.Run(fmt.Sprint(c.servers), func(t *testing.T) {
			url := cluster(t, c.servers)
			var log logged
			cfg := log.config()
			cfg.App, cfg.Durable = "shop", []string{"order.>"}
			var a adapter.Adapter
			testkit.Until(t, 2*patience, func() (ok bool) {
				var err error
				a, err = natsbus.Open(within(t), url, cfg)
				return err == nil
			})
			defer func() { _ = a.Close() }()
			if n := streamInfo(t, jsClient(t, url), "shop").Config.Replicas; n != c.copies {
				t.Errorf("%d copies on %d servers", n, c.servers)
			}
			if said := log.has("cannot hold three copies"); said != (c.copies == 1) {
				t.Errorf("the warning was given: %v", said)
			}
			publish(t, a, adapter.Durable, "1", "order.placed")
		})
	}
}
