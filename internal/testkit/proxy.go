package testkit

import (
	"testing"

	"github.com/tidings-go/tidings/internal/proxy"
)

// A Proxy stands between clients and a server.
type Proxy struct{ *proxy.Proxy }

// A Direction is one of the two in which bytes flow.
type Direction = proxy.Direction

// What [proxy.Proxy] is told.
const (
	ToServer = proxy.ToServer
	ToClient = proxy.ToClient
	Stopped  = proxy.Stopped
)

// Through starts a proxy to the server at an address, until the test ends.
func Through(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := proxy.New(func() (string, error) { return target, nil })
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	t.Cleanup(p.Close)
	return &Proxy{p}
}

// URL is where clients connect instead.
func (p *Proxy) URL() string { return "nats://" + p.Addr() }
