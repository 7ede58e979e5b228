package natsbus

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Connect is a plain connection to the server of a transport URL, with the credentials
// of that URL, for tools that speak to the server itself. It does not reconnect.
func Connect(ctx context.Context, url, name string) (*nats.Conn, error) {
	addr, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	return addr.once(ctx, strings.Join(addr.servers, ","), nats.Name(name))
}

// once connects to one of the servers, and does not do so again.
func (a *address) once(ctx context.Context, servers string, more ...nats.Option) (*nats.Conn, error) {
	auth, err := (&credentials{a: a, complain: func(error) {}}).options()
	if err != nil {
		return nil, err
	}
	timeout := dialTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end))
	}
	if ctx.Err() != nil || timeout <= 0 {
		return nil, fmt.Errorf("natsbus: connect: %w", context.Cause(ctx))
	}
	opts := append([]nats.Option{nats.Timeout(timeout), nats.SetCustomDialer(&net.Dialer{Timeout: timeout}), nats.NoReconnect()}, auth...)
	nc, err := nats.Connect(servers, append(opts, more...)...)
	if err != nil {
		return nil, (&conn{addr: a}).connectError(err)
	}
	return nc, nil
}
