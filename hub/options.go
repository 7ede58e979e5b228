package hub

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
)

// What Options' zero values mean.
const (
	DefaultAddr      = "127.0.0.1:4222"
	DefaultMaxStore  = 10 << 30
	DefaultMaxMemory = 256 << 20
)

// Options say where a hub lives and how much it may take. Only Dir is needed.
type Options struct {
	// Dir holds everything of the hub's; it is made with mode 0700 if missing.
	Dir string
	// Addr is the host:port for clients, DefaultAddr if empty. Port 0 takes any
	// free port, and the same one again at the next start on Dir if it is still
	// free.
	Addr string
	// Expose allows an Addr that other machines can reach, and listeners of Config
	// that they can.
	Expose bool
	// Users is a file that says who may do what; see docs/hub.md. Without it there is
	// one token, whose owner may everything.
	Users string
	// Config is a configuration file of nats-server, for what this package has no
	// option for. Dir is its store all the same, and what can be reached from other
	// machines needs Expose and authentication.
	Config string
	// TLSCert and TLSKey are files of the certificate that clients are shown, and
	// TLSCA is one of the CAs of certificates that they must show in turn. They are
	// looked at for each new connection. Without TLS an exposed hub sends its secrets
	// and events in clear, and warns that it does.
	TLSCert, TLSKey, TLSCA string
	// TLS, if set, is what clients must speak, instead of those files.
	TLS *tls.Config
	// Monitor is the host:port of nats-server's HTTP monitoring, off if empty.
	// It asks for no password, so only loopback is allowed. Port 0 takes any.
	Monitor string
	// Health is the host:port of /healthz, /readyz and /metrics, off if empty. Only
	// loopback is allowed, as for Monitor. Port 0 takes any.
	Health string
	// MaxStore and MaxMemory bound, in bytes, what all streams together may
	// keep on disk and in memory; DefaultMaxStore and DefaultMaxMemory if 0.
	MaxStore, MaxMemory int64
	// MaxPayload is the largest message in bytes, with its headers, 1 MiB if 0;
	// MaxConnections is how many clients there may be, 65536 if 0.
	MaxPayload     int64
	MaxConnections int
	// Downgrade opens a store that was written last by a nats-server of a newer minor
	// version, which is refused otherwise: what that one wrote may be lost.
	Downgrade bool
	// Logger gets the hub's and the server's logs; slog.Default() if nil.
	Logger *slog.Logger
}

// maxPayload is what nats-server takes at most: it must be sendable at once.
const maxPayload = 64 << 20

// config is Options, checked and complete but for what Config says.
type config struct {
	Options
	tls     *tls.Config // of TLS, or of the files
	host    string      // empty: Options do not say
	port    int
	monitor address
	health  address
}

// An address is one that was split; its host is empty if there is none.
type address struct {
	host string
	port int
}

func (a address) String() string { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

func (o Options) check() (config, error) {
	c := config{Options: o}
	c.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Dir == "" {
		return c, errors.New("Options.Dir is empty: name the directory that holds the hub's store")
	}
	if err := c.checkLimits(); err != nil {
		return c, err
	}
	if o.Addr == "" && o.Config == "" {
		c.Addr = DefaultAddr
	}
	if c.Addr != "" {
		a, err := splitAddr("Addr", c.Addr)
		if err != nil {
			return c, err
		}
		c.host, c.port = a.host, a.port
		if !o.Expose && !isLoopback(c.host) {
			return c, fmt.Errorf("Options.Addr %s can be reached from other machines: use 127.0.0.1, or set Options.Expose (and TLS) if that is meant", c.Addr)
		}
	}
	var err error
	if c.monitor, err = loopbackAddr("Monitor", o.Monitor); err != nil {
		return c, err
	}
	if c.health, err = loopbackAddr("Health", o.Health); err != nil {
		return c, err
	}
	c.tls, err = o.tlsConfig(c.Logger)
	return c, err
}

func (c *config) checkLimits() error {
	switch {
	case c.MaxStore < 0, c.MaxMemory < 0:
		return fmt.Errorf("Options.MaxStore and MaxMemory must not be negative (%d, %d)", c.MaxStore, c.MaxMemory)
	case c.MaxPayload < 0, c.MaxPayload > maxPayload:
		return fmt.Errorf("Options.MaxPayload is %d: want at most %d bytes (64MiB), or 0 for 1 MiB; send a reference to what is larger", c.MaxPayload, maxPayload)
	case c.MaxConnections < 0, c.MaxConnections > math.MaxInt32:
		return fmt.Errorf("Options.MaxConnections is %d: want a number of clients, or 0 for 65536", c.MaxConnections)
	}
	return nil
}

// loopbackAddr is for what asks for no password.
func loopbackAddr(field, addr string) (address, error) {
	if addr == "" {
		return address{}, nil
	}
	a, err := splitAddr(field, addr)
	if err == nil && !isLoopback(a.host) {
		err = fmt.Errorf("the address Options.%s %s can be reached from other machines and asks for no password: use 127.0.0.1", field, addr)
	}
	return a, err
}

func splitAddr(field, addr string) (address, error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return address{}, fmt.Errorf("cannot use Options.%s %q: it is not host:port: %w", field, addr, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return address{}, fmt.Errorf("cannot use Options.%s %q: the port must be a number from 0 to 65535", field, addr)
	}
	return address{host, int(port)}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
