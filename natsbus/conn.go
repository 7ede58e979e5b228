package natsbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

func init() {
	adapter.Register("nats", Open)
	adapter.Register("tls", Open)
}

// Limits of waiting where the caller's context has no end of its own.
const (
	dialTimeout      = 2 * time.Second
	subscribeTimeout = 10 * time.Second
	drainTimeout     = 30 * time.Second
	placeAgain       = 2 * time.Second
)

var errClosed = fmt.Errorf("natsbus: %w", adapter.ErrClosed)

// conn is an open connection. The writer owns what goes out, each subscription
// owns what comes in; what is here is shared and guarded by mu or atomic.
type conn struct {
	cfg    adapter.Config
	log    *slog.Logger
	addr   *address
	server Place
	over   sync.Once // of server.Closed
	nc     *nats.Conn
	js     jetstream.JetStream
	mux    *mux
	w      *writer
	link   *link
	login  *credentials
	entry  *entry
	keeper *keeper // nil without durable routes
	later  *later
	full   fullItems
	dials  atomic.Uint64

	forgetful atomic.Pointer[[]string]  // subjects whose streams forget what has expired
	placings  atomic.Pointer[[]placing] // of the durable routes
	placed    chan struct{}             // closed once these are known
	spool     *spooling                 // nil: there is none
	spoolers  *spools

	maxPayload  atomic.Int64
	disconnects atomic.Uint64
	inDoubt     atomic.Uint64
	possible    atomic.Uint64 // durable events sent again that may be stored
	dropped     atomic.Uint64
	stalls      atomic.Uint64
	lastError   atomic.Pointer[error]
	backAt      atomic.Pointer[time.Time] // when the connection came back last; nil: it was never lost
	closing     atomic.Bool
	late        atomic.Bool   // there was no connection yet
	inOrder     atomic.Bool   // acknowledgements are taken in the order in which they are sent
	deadThere   atomic.Bool   // the stream of dead letters was seen
	untold      chan struct{} // it does not say which subscriptions it has
	watching    *loop.Loop

	mu      sync.Mutex
	subs    map[member]struct{}
	denied  map[string]error // by the subject or "subject queue" of a refused SUB
	settled map[string]*memory
	seen    map[string]bool                     // consumers whose settings this process has settled
	asking  map[*string]context.CancelCauseFunc // calls of JetStream's API that run
	asides  []*loop.Loop                        // what subscriptions that have ended left to do
	asked   map[*request]struct{}               // that wait for answers
	orphans *loop.Loop                          // looks for groups that nobody takes from
}

// A member is an open subscription, as the connection sees it.
type member interface {
	linkUp()                       // the connection is back
	cut()                          // the adapter was closed: let go, at once
	slow(*nats.Subscription) int   // how many more were dropped, if the subscription is its own
	listens() []*nats.Subscription // what the server must have
	revive(*nats.Subscription)     // the server does not have that one
}

// Open connects to NATS; it is the [adapter.Opener] of this package.
func Open(ctx context.Context, url string, cfg adapter.Config) (adapter.Adapter, error) {
	return Follow(ctx, url, Place{}, cfg)
}

// A Place tells of a server of this machine that does not stay where it is.
type Place struct {
	// Where is asked at each dial for its host:port; an error is as if nobody listened
	// there. It does not block. nil: where the URL says.
	Where func() (string, error)
	// Closed is called once, when the adapter has been drained or closed; it may block.
	// It is not called when Follow fails.
	Closed func()
}

// Follow is Open for such a server. What else the URL says, its token-file as well,
// holds wherever the server is.
func Follow(ctx context.Context, url string, p Place, cfg adapter.Config) (adapter.Adapter, error) {
	closed := p.Closed
	p.Closed = nil
	c, err := openConn(ctx, url, p, cfg)
	if err != nil {
		return nil, err
	}
	c.server.Closed = closed
	return c, nil
}

func openConn(ctx context.Context, url string, p Place, cfg adapter.Config) (*conn, error) {
	addr, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	c := &conn{
		cfg: cfg, addr: addr, server: p, log: cfg.Logger, link: newLink(),
		subs: map[member]struct{}{}, denied: map[string]error{}, settled: map[string]*memory{},
		seen: map[string]bool{}, asking: map[*string]context.CancelCauseFunc{}, asked: map[*request]struct{}{},
		untold: make(chan struct{}, 1),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.w, c.later, c.placed = newWriter(c), newLater(c), make(chan struct{})
	c.placings.Store(new([]placing))
	c.forgetful.Store(new([]string))
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	up := c.link.isUp() // it may go, or come, meanwhile
	if up {
		if err := c.ensureStreams(ctx, c.addr.manage); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.placeRoutes(ctx, func(f func()) { f() }) // it does not run yet
		close(c.placed)
		stopAt("placed")
	}
	if err := c.openSpool(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.w.start()
	c.watching = c.watch()
	if len(cfg.Durable) > 0 {
		c.keeper = startKeeper(c)
	}
	if up {
		c.later.start()
	} else {
		c.spool.leave()
		c.aside(c.placeLater)
	}
	return c, nil
}

// placeLater does what Open could not do without a broker.
func (c *conn) placeLater(ctx context.Context) {
	for ctx.Err() == nil {
		if c.link.wait(ctx) != nil {
			return
		}
		err := c.ensureStreams(ctx, c.addr.manage)
		if err == nil {
			c.placeRoutes(ctx, c.w.call)
			c.later.start()
			close(c.placed)
			return
		}
		c.report(fmt.Errorf("natsbus: events wait in the spool: %w", err))
		select {
		case <-time.After(placeAgain):
		case <-ctx.Done():
		}
	}
}

func (c *conn) connect(ctx context.Context) error {
	c.entry = &entry{c: c}
	c.login = &credentials{a: c.addr, complain: c.entry.tell}
	auth, err := c.login.options()
	if err != nil {
		return err
	}
	timeout := dialTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end))
	}
	if ctx.Err() != nil || timeout <= 0 {
		return fmt.Errorf("natsbus: connect: %w", context.Cause(ctx))
	}
	opts := append(c.options(timeout), auth...)
	if c.spools() {
		opts = append(opts, nats.RetryOnFailedConnect(true), nats.ConnectHandler(func(nc *nats.Conn) {
			if c.late.Swap(false) {
				c.onReconnect(nc)
			}
		}))
	}
	if c.nc, err = nats.Connect(strings.Join(c.addr.servers, ","), opts...); err != nil {
		return c.connectError(err)
	}
	c.login.nc.Store(c.nc)
	if c.nc.IsConnected() {
		c.maxPayload.Store(c.nc.MaxPayload())
		c.inOrder.Store(alone(c.nc))
		c.link.set(true)
	} else {
		c.late.Store(true)
		c.log.Warn("natsbus: no NATS server answers yet: durable events go to the spool until one does", "url", c.addr.public)
	}
	if c.mux, err = newMux(c.nc); err == nil {
		c.js, err = jetstream.New(c.nc)
	}
	if err != nil {
		c.nc.Close()
		return fmt.Errorf("natsbus: %w", err)
	}
	return nil
}

// alone reports whether the server has JetStream itself and is in no cluster.
func alone(nc *nats.Conn) bool {
	has, _ := nc.ConnectedServerJetStream()
	return has && nc.ConnectedClusterName() == ""
}

// options are those whose defaults were measured to lose or to block.
func (c *conn) options(timeout time.Duration) []nats.Option {
	return []nats.Option{
		nats.Name(c.cfg.App + "/" + c.cfg.Instance),
		nats.Timeout(timeout),
		nats.SetCustomDialer(&dialer{Dialer: net.Dialer{Timeout: timeout}, begun: &c.dials, before: c.login.beforeDial, patient: c.spools(), where: c.server.Where}),
		nats.MaxReconnects(-1),      // the default gives up after two minutes, for good
		nats.IgnoreAuthErrorAbort(), // so do two refused credentials in a row
		nats.ReconnectBufSize(-1),   // it is thrown away when the flush after a reconnection fails; ours is not
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(2 * time.Second), // a hung broker would hold the writer for a minute
		nats.ReconnectOnFlusherError(),
		nats.DrainTimeout(drainTimeout),
		nats.CustomReconnectDelay(func(n int) time.Duration {
			c.entry.look(c.login.nc.Load())
			return reconnectDelay(c.addr.loopback, n)
		}),
		nats.DisconnectErrHandler(c.onDisconnect),
		nats.ReconnectHandler(c.onReconnect),
		nats.ReconnectErrHandler(c.onTry),
		nats.ErrorHandler(c.onError),
		nats.ClosedHandler(c.onClosed),
		nats.LameDuckModeHandler(func(*nats.Conn) {
			c.log.Info("natsbus: the server is about to stop and asks its clients to go elsewhere", "url", c.addr.public)
		}),
	}
}

// report hands on what has no caller.
func (c *conn) report(err error) {
	c.log.Error("natsbus: "+strings.TrimPrefix(err.Error(), "natsbus: "), "url", c.addr.public)
	if c.cfg.OnError != nil {
		c.cfg.OnError(err)
	}
}

// drop counts what was given up, and says why.
func (c *conn) drop(n int, err error) {
	c.dropped.Add(uint64(n))
	c.report(err)
}

func (c *conn) dropSlow(sub *nats.Subscription, n int) {
	c.drop(n, fmt.Errorf("natsbus: %s: %d events dropped: the subscription did not keep up and its buffer was full", sub.Subject, n))
}

func (c *conn) onDisconnect(_ *nats.Conn, err error) {
	c.link.set(false)
	if c.closing.Load() && err == nil {
		return
	}
	cause := cmp.Or(err, errClosedByServer)
	c.failed(cause)
	n := c.disconnects.Add(1)
	c.w.post(note{kind: noteDown})
	c.doubtRequests()
	c.log.Warn("natsbus: connection lost; reconnecting", "url", c.addr.public, "cause", cause, "count", n)
}

// onClosed says that nats.go has given up, as it does when a server ends a connection with
// an error that it does not know.
func (c *conn) onClosed(nc *nats.Conn) {
	if !c.closing.Load() {
		c.report(fmt.Errorf("natsbus: the connection to %s is closed for good, restart this process: %w", c.addr.public, cmp.Or(nc.LastError(), nats.ErrConnectionClosed)))
	}
}

func (c *conn) onReconnect(nc *nats.Conn) {
	c.inOrder.Store(alone(nc))
	c.maxPayload.Store(nc.MaxPayload())
	c.entry.over()
	c.link.set(true)
	c.backAt.Store(new(time.Now()))
	c.w.post(note{kind: noteUp})
	for _, m := range c.members() {
		m.linkUp()
	}
	c.log.Info("natsbus: connected again", "url", c.addr.public, "count", c.disconnects.Load())
}

func (c *conn) members() []member {
	c.mu.Lock()
	defer c.mu.Unlock()
	ms := make([]member, 0, len(c.subs))
	for m := range c.subs {
		ms = append(ms, m)
	}
	return ms
}

// What nats-server says about a refused subject.
var (
	reDenied = regexp.MustCompile(`(?i)permissions violation for (subscription|publish) to "([^"]*)"`)
	reQueue  = regexp.MustCompile(`using queue "([^"]*)"`)
)

func (c *conn) onError(_ *nats.Conn, sub *nats.Subscription, err error) {
	switch {
	case errors.Is(err, nats.ErrSlowConsumer):
		for _, m := range c.members() {
			if n := m.slow(sub); n > 0 {
				c.dropSlow(sub, n)
			}
		}
	case errors.Is(err, nats.ErrPermissionViolation):
		c.onDenied(err)
	case refusesLogin(err):
		c.failed(err) // what is in the files by now may be let in; if not, entry says so
	case writeFailed(err):
		c.failed(err) // the connection is being given up: onDisconnect says so
	default:
		c.report(fmt.Errorf("natsbus: %w", err))
	}
}

func (c *conn) onDenied(err error) {
	m := reDenied.FindStringSubmatch(err.Error())
	if m == nil {
		c.report(fmt.Errorf("natsbus: %w", err))
		return
	}
	if strings.EqualFold(m[1], "publish") {
		if api, told := c.refused(m[2]); api {
			if !told {
				c.report(fmt.Errorf("natsbus: %w", &refusal{m[2]}))
			}
			return
		}
		if counting(m[2]) {
			c.w.muteMarks.Store(true) // nobody misses anything then
			return
		}
		if m[2] == interestSubject {
			select {
			case c.untold <- struct{}{}:
			default:
			}
			return
		}
		c.w.post(note{kind: noteDenied, subject: m[2]})
		c.drop(1, denied(m[2]))
		c.deny(m[2])
		return
	}
	if counting(m[2]) {
		c.log.Info("natsbus: without permission to subscribe to this it is not known which live events are lost", "subject", m[2])
		return
	}
	key := deniedKey(err)
	c.mu.Lock()
	c.denied[key] = err
	c.mu.Unlock()
	c.report(fmt.Errorf("natsbus: no permission to subscribe to %q: allow it for this user on the server", m[2]))
}

func denied(subject string) error {
	return fmt.Errorf("natsbus: no permission to publish to %q: allow it for this user on the server", subject)
}

// deniedKey is the subscription that a permission error speaks of, "" if none.
func deniedKey(err error) string {
	if err == nil || !errors.Is(err, nats.ErrPermissionViolation) {
		return ""
	}
	m := reDenied.FindStringSubmatch(err.Error())
	if m == nil || strings.EqualFold(m[1], "publish") {
		return ""
	}
	if q := reQueue.FindStringSubmatch(err.Error()); q != nil {
		return m[2] + " " + q[1]
	}
	return m[2]
}

// subject is where a topic or pattern is on the wire.
func (c *conn) subject(topic string) string {
	if c.cfg.Prefix == "" || strings.HasPrefix(topic, "$") { // our own subjects have no prefix
		return topic
	}
	return c.cfg.Prefix + "." + topic
}

func (c *conn) topic(subject string) string {
	if c.cfg.Prefix == "" {
		return subject
	}
	return strings.TrimPrefix(subject, c.cfg.Prefix+".")
}

// flush returns once the server has answered everything that was written. It
// tries again when the connection breaks meanwhile.
func (c *conn) flush(ctx context.Context) error {
	for {
		if err := c.link.wait(ctx); err != nil {
			return err
		}
		_, _, changed := c.link.state()
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := c.nc.FlushWithContext(try)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("natsbus: the server at %s does not answer: %w", c.addr.public, context.Cause(ctx))
		case c.nc.IsClosed():
			return errClosed
		}
		// The pending PING was dropped with the connection: our own state follows.
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Caps implements [adapter.Adapter].
func (c *conn) Caps() adapter.Caps {
	return adapter.Caps{Durable: true, Delay: c.later.can.Load(), Spool: c.spool != nil}
}

// Stats implements [adapter.Adapter].
func (c *conn) Stats() adapter.Stats {
	s := adapter.Stats{
		Connected: c.link.isUp(), Since: c.link.since(), URL: c.addr.public,
		Disconnects: c.disconnects.Load(), InDoubt: c.inDoubt.Load(), Dropped: c.dropped.Load(),
		Purged: c.keeper.purged(), Buffered: c.w.buffered(), Stalled: c.stalls.Load(),
		Possible: c.possible.Load(), Spooled: c.spoolers.waiting(),
	}
	if err := c.cause(); err != nil {
		s.LastError = err.Error()
	}
	return s
}

// Subscribe implements [adapter.Adapter].
func (c *conn) Subscribe(ctx context.Context, s adapter.Spec) (adapter.Subscription, error) {
	if c.closing.Load() {
		return nil, errClosed
	}
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	if s.Durable {
		return c.subscribeDurable(ctx, s)
	}
	return c.subscribeLive(ctx, s)
}

// withLimit ends a context that has no end of its own.
func withLimit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// Drain implements [adapter.Adapter]. A connection that is down is waited for:
// nats.go's own Drain closes at once then, and 1000 of 1000 buffered events were
// lost.
func (c *conn) Drain(ctx context.Context) error {
	if c.closing.Swap(true) {
		return nil
	}
	ctx, cancel := withLimit(ctx, drainTimeout)
	defer cancel()
	err := c.later.drain(ctx)
	c.spoolers.drain(ctx)
	if !c.spool.isAway() || c.w.buffered() > 0 { // else everything is on the disk
		if idle := c.w.waitIdle(ctx); err == nil {
			err = idle
		}
		if err == nil && (c.link.isUp() || !c.spool.isAway()) {
			err = c.flush(ctx)
		}
	}
	if err != nil {
		if n := c.w.buffered(); n > 0 {
			err = fmt.Errorf("natsbus: drain: %d events were not sent: %w", n, err)
		}
	}
	return errors.Join(err, c.shut())
}

// Close implements [adapter.Adapter].
func (c *conn) Close() error {
	c.closing.Store(true)
	return c.shut()
}

// shut lets go. It may be called by a handler, so it does not wait for any
// subscription's goroutine, only for the writer.
func (c *conn) shut() error {
	for _, m := range c.members() {
		m.cut()
	}
	c.keeper.stop()
	c.stopOrphans()
	c.stopAsides()
	if c.watching != nil { // Open has failed
		c.watching.Stop()
	}
	c.later.cut()
	c.link.close()
	c.unask()
	c.nc.Close()
	c.w.stop()
	c.spoolers.stop()
	if c.server.Closed != nil {
		c.over.Do(c.server.Closed)
	}
	return nil
}

func (c *conn) join(m member) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Load() {
		return errClosed
	}
	c.subs[m] = struct{}{}
	return nil
}

func (c *conn) leave(m member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subs, m)
}
