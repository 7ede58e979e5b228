package natsbus

import (
	"context"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Target is a transport URL, for tools that look at a broker as any client sees it:
// server by server, without reconnecting, and with nothing declared. It holds the URL's
// secrets and shows none.
type Target struct{ addr *address }

// ParseTarget takes a transport URL apart. Its errors repeat no secret.
func ParseTarget(url string) (*Target, error) {
	addr, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	return &Target{addr}, nil
}

// String is the URL without credentials and parameters.
func (t *Target) String() string { return t.addr.public }

// GoString is String: what prints a Target in full must not print its secrets.
func (t *Target) GoString() string { return t.addr.public }

// Servers returns the servers that the URL names, as scheme://host:port. The slice is
// the caller's.
func (t *Target) Servers() []string { return slices.Clone(t.addr.servers) }

// Settings are what the URL declares of the app's stream.
func (t *Target) Settings() Settings { return t.addr.settings }

// Loopback reports whether every server is on this machine.
func (t *Target) Loopback() bool { return t.addr.loopback }

// Bare names the secret that the URL itself holds, where "ps" or /proc may show it;
// empty: it holds none, but perhaps the name of a file.
func (t *Target) Bare() string {
	switch {
	case t.addr.token != "":
		return "a token"
	case t.addr.password != "":
		return "a password"
	}
	return ""
}

// Connect connects to one of Servers with the URL's credentials, once: a connection that
// breaks is not made again. ctx bounds the attempt. Its errors say the way out, as those
// of [Open] do.
func (t *Target) Connect(ctx context.Context, server string, more ...nats.Option) (*nats.Conn, error) {
	one := *t.addr
	one.public = server // in errors
	return one.once(ctx, server, append([]nats.Option{nats.IgnoreDiscoveredServers()}, more...)...)
}

// DeadStream is the name of the stream that holds the dead letters; it is made when the
// first event dies.
func (a *Admin) DeadStream() string { return a.c.deadStream() }

// Unsafe says how a stream differs from what durable events need, whatever is declared.
func Unsafe(cfg jetstream.StreamConfig) []Difference {
	_, diffs := Settings{}.settle(cfg)
	return diffs
}
