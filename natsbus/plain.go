package natsbus

import (
	"context"
	"fmt"
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
	auth, err := (&credentials{a: addr, complain: func(error) {}}).options()
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
	opts := append([]nats.Option{nats.Name(name), nats.Timeout(timeout), nats.NoReconnect()}, auth...)
	nc, err := nats.Connect(strings.Join(addr.servers, ","), opts...)
	if err != nil {
		return nil, (&conn{addr: addr}).connectError(err)
	}
	return nc, nil
}
