// Package testkit gives tests a real broker and a way to wait for what they
// cannot hear of.
//
// It is for tests of this module only, which a test enforces: it links
// nats-server and package testing.
package testkit

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/internal/loop"
)

// startLimit and stopLimit are far above what a busy machine needs: they turn
// a hang into a failure that names it.
const (
	startLimit = 20 * time.Second
	stopLimit  = 20 * time.Second
)

// A Broker is a nats-server in this process, on loopback, with JetStream on a
// directory of the test's. Its methods fail the test instead of returning
// errors, and must be called by the test's own goroutine.
type Broker struct {
	t    testing.TB
	opts server.Options
	srv  *server.Server
}

// Server starts a broker on a free port and shuts it down when the test ends.
// It asks for no password and, for speed, does not sync each message; change
// may set that and anything else:
//
//	b := testkit.Server(t, func(o *server.Options) { o.SyncAlways = true })
func Server(t testing.TB, change ...func(*server.Options)) *Broker {
	t.Helper()
	b := &Broker{t: t, opts: server.Options{
		ServerName: "testkit",
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		JetStream:  true,
		StoreDir:   t.TempDir(),
		NoSigs:     true,
		NoLog:      true,
	}}
	for _, f := range change {
		f(&b.opts)
	}
	b.Start()
	t.Cleanup(b.Shutdown)
	return b
}

// Start starts the broker again after Shutdown, on the same port and store. It
// does nothing while the broker runs.
func (b *Broker) Start() {
	b.t.Helper()
	if b.srv != nil {
		return
	}
	opts := b.opts // the server writes to its options
	srv, err := server.NewServer(&opts)
	if err != nil {
		b.t.Fatalf("testkit: %v", err)
	}
	srv.SetLogger(failures{b.t}, false, false)
	srv.Start() // returns once it listens
	if !srv.ReadyForConnections(startLimit) {
		srv.Shutdown()
		b.t.Fatalf("testkit: nats-server on %s is not ready after %v", b.addr(), startLimit)
	}
	b.srv = srv
	b.opts.Port = srv.Addr().(*net.TCPAddr).Port
}

// Shutdown stops the broker as SIGTERM does: its connections are closed, its
// store is complete. It does nothing when the broker is down.
func (b *Broker) Shutdown() {
	b.t.Helper()
	if b.srv == nil {
		return
	}
	srv := b.srv
	b.srv = nil
	stop := loop.Go(func(context.Context) { srv.Shutdown(); srv.WaitForShutdown() })
	select {
	case <-stop.Done():
	case <-time.After(stopLimit):
		b.t.Fatalf("testkit: nats-server on %s has not shut down after %v", b.addr(), stopLimit)
	}
}

// Restart is Shutdown and Start.
func (b *Broker) Restart() {
	b.t.Helper()
	b.Shutdown()
	b.Start()
}

// Change changes the options: at once, by a reload, if the broker runs, of which its
// clients are not told; and for when it is started again.
func (b *Broker) Change(change func(*server.Options)) {
	b.t.Helper()
	change(&b.opts)
	if b.srv == nil {
		return
	}
	opts := b.opts
	if err := b.srv.ReloadOptions(&opts); err != nil {
		b.t.Fatalf("testkit: %v", err)
	}
}

// URL is where clients connect: the same over restarts, and while it is down.
func (b *Broker) URL() string { return "nats://" + b.addr() }

// Running is the server itself, for tests that look inside; nil while it is
// down, another one after a restart.
func (b *Broker) Running() *server.Server { return b.srv }

func (b *Broker) addr() string {
	return net.JoinHostPort(b.opts.Host, strconv.Itoa(b.opts.Port))
}

// Until polls cond until it is true and fails the test if that takes longer
// than timeout. It is for what cannot call back (another process, a socket, a
// server's counters): within a process a channel or synctest is exact and
// quicker. cond runs on the test's own goroutine.
func Until(t testing.TB, timeout time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			if !cond() { // it may have come true while the machine was busy
				t.Fatalf("testkit: still not so after %v", timeout)
			}
			return
		}
	}
}
