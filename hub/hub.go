package hub

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/internal/loop"
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
	// Expose allows an Addr that other machines can reach.
	Expose bool
	// TLS, if set, is what clients must speak. Without it an exposed hub sends
	// its token and events in clear, and warns that it does.
	TLS *tls.Config
	// Monitor is the host:port of nats-server's HTTP monitoring, off if empty.
	// It asks for no password, so only loopback is allowed. Port 0 takes any.
	Monitor string
	// MaxStore and MaxMemory bound, in bytes, what all streams together may
	// keep on disk and in memory; DefaultMaxStore and DefaultMaxMemory if 0.
	MaxStore, MaxMemory int64
	// Logger gets the hub's and the server's logs; slog.Default() if nil.
	Logger *slog.Logger
}

// A Hub is a running broker. Its methods may be called concurrently.
type Hub struct {
	dir     *dir
	srv     *server.Server
	log     *serverLog
	url     string
	monitor string

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
// directory is not writable or belongs to a running hub, the token file can be
// read by others, or a port is taken; the error names which.
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
	port, err := cfg.choosePort(d)
	if err != nil {
		return nil, err
	}
	if err := cfg.monitorFree(); err != nil {
		return nil, err
	}
	h := &Hub{dir: d, log: newServerLog(cfg.Logger, d.token)}
	if h.srv, err = server.NewServer(cfg.server(d, port)); err != nil {
		return nil, err
	}
	h.srv.SetLogger(h.log, cfg.Logger.Enabled(ctx, slog.LevelDebug), false)
	if err := h.serve(ctx, cfg); err != nil {
		h.srv.Shutdown()
		h.srv.WaitForShutdown()
		return nil, err
	}
	h.running = loop.Go(h.run)
	if cfg.Expose && cfg.TLS == nil {
		cfg.Logger.Warn("hub: reachable from other machines without TLS: its token and events can be read on the way; set Options.TLS", "addr", h.srv.Addr())
	}
	cfg.Logger.Info("hub: ready", "url", h.url, "monitor", h.monitor)
	return h, nil
}

// serve starts the server and publishes where it is.
func (h *Hub) serve(ctx context.Context, cfg config) error {
	h.srv.Start() // returns once it listens, or after a call of Fatalf
	select {
	case err := <-h.log.fatal:
		return err
	default:
	}
	// Start has listened by now; this costs one look, not a wait.
	if !h.srv.ReadyForConnections(time.Second) || !h.srv.JetStreamEnabled() {
		return fmt.Errorf("nats-server on %s did not become ready; its log says why", cfg.Addr)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped while it started: %w", err)
	}
	h.log.ready.Store(true)
	port := h.srv.Addr().(*net.TCPAddr).Port
	h.url = cfg.clientURL(h.dir, port)
	if a := h.srv.MonitorAddr(); a != nil {
		h.monitor = "http://" + a.String()
	}
	return h.dir.announce(h.url, port)
}

// run owns the server from ready to stopped.
func (h *Hub) run(ctx context.Context) {
	select {
	case <-ctx.Done():
	case h.err = <-h.log.fatal:
	}
	h.err = errors.Join(h.err, h.dir.retract())
	h.stopped.Clients = h.srv.NumClients()
	h.srv.Shutdown()
	h.srv.WaitForShutdown()
	// Only now: whoever gets the lock opens the store.
	h.err = errors.Join(h.err, h.dir.close())
}

// URL is what clients of this machine connect with:
// nats://HOST:PORT?token-file=DIR/token. It contains no secret.
func (h *Hub) URL() string { return h.url }

// MonitorURL is the root of nats-server's HTTP monitoring, "" if it is off.
func (h *Hub) MonitorURL() string { return h.monitor }

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
// background; the process should not exit before Done is closed. Further calls
// return the same result.
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

// config is Options, checked and complete.
type config struct {
	Options
	host        string
	port        int
	monitorHost string
	monitorPort int
}

func (o Options) check() (config, error) {
	c := config{Options: o}
	c.Addr = cmp.Or(o.Addr, DefaultAddr)
	c.MaxStore = cmp.Or(o.MaxStore, DefaultMaxStore)
	c.MaxMemory = cmp.Or(o.MaxMemory, DefaultMaxMemory)
	c.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Dir == "" {
		return c, errors.New("Options.Dir is empty: name the directory that holds the hub's store")
	}
	if c.MaxStore < 0 || c.MaxMemory < 0 {
		return c, fmt.Errorf("Options.MaxStore and MaxMemory must not be negative (%d, %d)", o.MaxStore, o.MaxMemory)
	}
	var err error
	if c.host, c.port, err = splitAddr("Addr", c.Addr); err != nil {
		return c, err
	}
	if !o.Expose && !isLoopback(c.host) {
		return c, fmt.Errorf("Options.Addr %s can be reached from other machines: use 127.0.0.1, or set Options.Expose (and TLS) if that is meant", c.Addr)
	}
	if o.Monitor == "" {
		return c, nil
	}
	if c.monitorHost, c.monitorPort, err = splitAddr("Monitor", o.Monitor); err != nil {
		return c, err
	}
	if !isLoopback(c.monitorHost) {
		return c, fmt.Errorf("Options.Monitor %s can be reached from other machines and asks for no password: use 127.0.0.1", o.Monitor)
	}
	return c, nil
}

func splitAddr(field, addr string) (string, int, error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("cannot use Options.%s %q: it is not host:port: %w", field, addr, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("cannot use Options.%s %q: the port must be a number from 0 to 65535", field, addr)
	}
	return host, int(port), nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// choosePort returns the port to listen on, server.RANDOM_PORT for any.
// nats-server opens its store before it listens: finding a taken port
// beforehand keeps a mistake in an address from touching the data.
func (c config) choosePort(d *dir) (int, error) {
	if c.port != 0 {
		return c.port, portFree("Addr", c.host, c.port)
	}
	last := d.lastPort()
	if last == 0 {
		return server.RANDOM_PORT, nil
	}
	if err := portFree("Addr", c.host, last); err != nil {
		c.Logger.Warn("hub: the port of the last run is taken, clients that remember it must look again", "port", last)
		return server.RANDOM_PORT, nil
	}
	return last, nil
}

func (c config) monitorFree() error {
	if c.Monitor == "" || c.monitorPort == 0 {
		return nil
	}
	return portFree("Monitor", c.monitorHost, c.monitorPort)
}

func portFree(field, host string, port int) error {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; stop what listens there or set Options.%s", addr, err, field)
	}
	return l.Close()
}

func (c config) server(d *dir, port int) *server.Options {
	o := &server.Options{
		ServerName:         "tidings-hub",
		Host:               c.host,
		Port:               port,
		Authorization:      d.token,
		TLSConfig:          c.TLS,
		JetStream:          true,
		StoreDir:           d.store(),
		SyncAlways:         true,
		JetStreamMaxStore:  c.MaxStore,
		JetStreamMaxMemory: c.MaxMemory,
		NoSigs:             true, // signals are the program's, not the broker's
	}
	if name, err := os.Hostname(); err == nil {
		o.ServerName += "-" + name
	}
	if c.Monitor != "" {
		o.HTTPHost, o.HTTPPort = c.monitorHost, c.monitorPort
		if c.monitorPort == 0 {
			o.HTTPPort = server.RANDOM_PORT
		}
	}
	return o
}

// clientURL is for clients on this machine, who can read the token file: of an
// address that means every interface they need loopback.
func (c config) clientURL(d *dir, port int) string {
	host := c.host
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	// A path reads better with its slashes, and a query may hold them.
	file := strings.ReplaceAll(url.QueryEscape(d.tokenFile()), "%2F", "/")
	return "nats://" + net.JoinHostPort(host, strconv.Itoa(port)) + "?token-file=" + file
}
