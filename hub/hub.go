package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Hub is a running broker. Its methods may be called concurrently.
type Hub struct {
	dir     *dir
	cfg     config
	srv     *server.Server
	log     *serverLog
	addr    string // host:port for clients of this machine
	monitor string
	guard   *guard
	health  *healthServer

	reloading sync.Mutex // held while the server gets other options
	built     atomic.Pointer[built]

	running *loop.Loop
	stopped Stopped // written before running ends
	err     error   // written before running ends
}

// Stopped tells what stopping a hub did.
type Stopped struct {
	Clients int // client connections that were open and got closed
}

// Start starts a hub and returns once clients can connect and streams are
// restored. ctx bounds the start only; opening the store cannot be interrupted,
// so a ctx that ends meanwhile takes effect right after it.
//
// It fails, leaving nothing behind but files, when an option is wrong, the
// directory is not writable or belongs to a running hub, a file of secrets can be
// read by others, the users file, the configuration or a certificate is wrong, what
// listens can be reached from other machines without being meant to, or a port is
// taken; the error names which.
func Start(ctx context.Context, o Options) (*Hub, error) {
	cfg, err := o.check()
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("hub: not started: %w", err)
	}
	d, err := openDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	h, err := start(ctx, d, cfg)
	if err != nil {
		return nil, fmt.Errorf("hub: %w", errors.Join(err, d.close()))
	}
	return h, nil
}

// start does the part of Start that needs the directory's lock; the caller
// lets the lock go if it fails.
func start(ctx context.Context, d *dir, cfg config) (*Hub, error) {
	b, err := cfg.build(d)
	if err != nil {
		return nil, err
	}
	if b.opts.Port, err = cfg.choosePort(d, b.opts); err != nil {
		return nil, err
	}
	if err := cfg.monitorFree(); err != nil {
		return nil, err
	}
	if err := d.claimStore(cfg.Logger, cfg.Downgrade); err != nil {
		return nil, err
	}
	h := &Hub{dir: d, cfg: cfg, log: newServerLog(cfg.Logger, b.secrets)}
	h.guard = &guard{h: h}
	h.built.Store(b)
	if h.srv, err = server.NewServer(b.opts.Clone()); err != nil {
		return nil, err
	}
	h.srv.SetLogger(h.log, cfg.Logger.Enabled(ctx, slog.LevelDebug), false)
	if err := h.serve(ctx); err != nil {
		h.srv.Shutdown()
		h.srv.WaitForShutdown()
		return nil, err
	}
	h.running = loop.Go(h.run)
	h.warn(b)
	cfg.Logger.Info("hub: ready", present("url", h.URL(), "monitor", h.monitor, "health", h.HealthURL())...)
	return h, nil
}

// present is the pairs whose second is not empty, for a log.
func present(pairs ...string) (args []any) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			args = append(args, pairs[i], pairs[i+1])
		}
	}
	return args
}

// serve starts the server and publishes where it is.
func (h *Hub) serve(ctx context.Context) error {
	h.srv.Start() // returns once it listens, or after a call of Fatalf
	select {
	case err := <-h.log.fatal:
		return err
	default:
	}
	// Start has listened by now; this costs one look, not a wait.
	if !h.srv.ReadyForConnections(time.Second) || !h.srv.JetStreamEnabled() {
		return fmt.Errorf("nats-server on %s did not become ready; its log says why", h.srv.Addr())
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped while it started: %w", err)
	}
	h.log.ready.Store(true)
	h.guard.look()
	port := h.srv.Addr().(*net.TCPAddr).Port
	h.addr = net.JoinHostPort(nearHost(h.built.Load().opts.Host), strconv.Itoa(port))
	if a := h.srv.MonitorAddr(); a != nil {
		h.monitor = "http://" + a.String()
	}
	if err := h.startHealth(); err != nil {
		return err
	}
	if err := h.dir.announce(h.URL(), port); err != nil {
		h.health.stop()
		return err
	}
	return nil
}

// run owns the server from ready to stopped.
func (h *Hub) run(ctx context.Context) {
	watching := loop.Go(h.guard.run)
	select {
	case <-ctx.Done():
	case h.err = <-h.log.fatal:
	}
	h.guard.stop()
	h.err = errors.Join(h.err, h.dir.retract())
	h.stopped.Clients = h.srv.NumClients()
	watching.StopAndWait() // it may be starting JetStream again
	h.shutdown(h.err == nil)
	h.health.stop()
	// Only now: whoever gets the lock opens the store.
	h.err = errors.Join(h.err, h.dir.close())
}

// shutdown stops the server. In a cluster it leaves: its streams get other leaders, and
// its clients have other servers to go to. Alone there is nowhere to go: a lame duck
// closes its clients one after the other, and what the last ones still publish reaches
// nobody (measured: 1 504 of 11 542 live events were lost to that, 6 of 10 035 by a
// quick restart).
func (h *Hub) shutdown(sound bool) {
	if sound && h.srv.NumRoutes() > 0 {
		h.srv.LameDuckShutdown()
	}
	h.srv.Shutdown()
	h.srv.WaitForShutdown()
}

// URL is what tools of this machine connect with, and without Options.Users all
// programs do: nats://HOST:PORT?token-file=DIR/token. It contains no secret. It names
// no credentials when Options.Config says who may connect.
func (h *Hub) URL() string {
	switch b := h.built.Load(); {
	case b.foreign:
		return h.bareURL()
	case b.users != nil:
		return h.userURL(adminName)
	}
	return h.bareURL() + "?token-file=" + readable(h.dir.tokenFile())
}

// A User is one of Options.Users.
type User struct {
	Name string
	// URL is what its programs on this machine connect with. It contains no secret.
	URL string
}

// Users are those of Options.Users, in the order of the file, as it was read last.
func (h *Hub) Users() []User {
	var all []User
	for _, u := range h.built.Load().users {
		to := User{Name: u.name, URL: h.userURL(u.name)}
		if len(u.nkeys) > 0 {
			to.URL = h.bareURL() + "?nkey=FILE_OF_ITS_SEED&inbox=_INBOX." + u.name
		}
		all = append(all, to)
	}
	return all
}

func (h *Hub) userURL(name string) string {
	return h.bareURL() + "?user-file=" + readable(h.dir.userFile(name))
}

func (h *Hub) bareURL() string {
	if h.built.Load().opts.TLSConfig != nil {
		return "tls://" + h.addr
	}
	return "nats://" + h.addr
}

// readable is a path in a query: it reads better with its slashes, and a query may hold
// them.
func readable(path string) string { return strings.ReplaceAll(url.QueryEscape(path), "%2F", "/") }

// nearHost is where clients on this machine find what listens on a host: of an address
// that means every interface they need loopback.
func nearHost(host string) string {
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return host
}

// MonitorURL is the root of nats-server's HTTP monitoring, "" if it is off.
func (h *Hub) MonitorURL() string { return h.monitor }

// HealthURL is the root of /healthz, /readyz and /metrics, "" if they are off.
func (h *Hub) HealthURL() string {
	if h.health == nil {
		return ""
	}
	return h.health.url
}

// Done is closed once the hub has stopped, asked to or not, and its directory
// is free for another.
func (h *Hub) Done() <-chan struct{} { return h.running.Done() }

// Err is nil until Done is closed; then it tells the fault that stopped the
// hub or that stopping met, if any.
func (h *Hub) Err() error {
	select {
	case <-h.running.Done():
		return h.err
	default:
		return nil
	}
}

// Stop closes all connections and the store and frees the directory, and
// waits until that is done or ctx ends. In the second case it goes on in the
// background; the process should not exit before Done is closed. A hub in a cluster
// leaves it first, which takes some seconds, ten at most. Further calls return the same result.
func (h *Hub) Stop(ctx context.Context) (Stopped, error) {
	h.running.Stop()
	if err := h.running.Wait(ctx); err != nil {
		return Stopped{}, fmt.Errorf("hub: %s is still being closed: %w", h.dir.path, err)
	}
	if h.err != nil {
		return h.stopped, fmt.Errorf("hub: %w", h.err)
	}
	return h.stopped, nil
}

// choosePort returns the port to listen on, server.RANDOM_PORT for any.
// nats-server opens its store before it listens: finding a taken port
// beforehand keeps a mistake in an address from touching the data.
func (c config) choosePort(d *dir, o *server.Options) (int, error) {
	if o.Port != 0 {
		return o.Port, portFree("Addr", o.Host, o.Port)
	}
	last := d.lastPort()
	if last == 0 {
		return server.RANDOM_PORT, nil
	}
	if err := portFree("Addr", o.Host, last); err != nil {
		c.Logger.Warn("hub: the port of the last run is taken, clients that remember it must look again", "port", last)
		return server.RANDOM_PORT, nil
	}
	return last, nil
}

func (c config) monitorFree() error {
	if c.Monitor == "" || c.monitor.port == 0 {
		return nil
	}
	return portFree("Monitor", c.monitor.host, c.monitor.port)
}

func portFree(field, host string, port int) error {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; stop what listens there or set Options.%s", addr, err, field)
	}
	return l.Close()
}
