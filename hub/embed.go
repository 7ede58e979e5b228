package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/natsbus"
)

func init() { adapter.Register("embed", openEmbedded) }

// How long things of an embedded hub may take, and how often they are looked at.
const (
	embedOpen  = 20 * time.Second       // if the caller's context has no end
	embedLook  = 10 * time.Millisecond  // while an Open waits for a hub to answer
	embedIdle  = time.Second            // for a lock that nobody seems to have let go
	embedDial  = time.Second            // to a port of this machine
	embedAgain = 500 * time.Millisecond // after a start that failed
	embedStop  = 30 * time.Second
)

// openEmbedded is the opener of embed:DIR. The first process of this machine that
// opens a directory runs the hub of it, the others connect to that one, and when it
// goes, one of them takes its place. See the package comment.
func openEmbedded(ctx context.Context, raw string, cfg adapter.Config) (adapter.Adapter, error) {
	dir, query, err := parseEmbed(raw)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, embedOpen)
		defer cancel()
	}
	n, err := join(dir, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("hub: embed: %w", err)
	}
	a, err := n.open(ctx, query, cfg)
	if err != nil {
		n.leave()
		return nil, fmt.Errorf("hub: embed: %w", err)
	}
	return a, nil
}

// parseEmbed takes embed:DIR[?KEY=VALUE&…] apart. The keys are those of a nats:// URL,
// but for what says where the hub is and how one is let in.
func parseEmbed(raw string) (dir, query string, err error) {
	dir, query, _ = strings.Cut(strings.TrimPrefix(raw, "embed:"), "?")
	dir = strings.TrimPrefix(dir, "//")
	if dir == "" {
		return "", "", errors.New("hub: embed: the URL names no directory: it looks like embed:DIR, as in embed:./hub")
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return "", "", errors.New("hub: embed: the URL's part after ? cannot be read: it looks like KEY=VALUE&KEY=VALUE")
	}
	for _, key := range []string{"token-file", "user-file", "nkey", "creds"} {
		if q.Has(key) {
			return "", "", fmt.Errorf("hub: embed: the URL has %s, which the directory itself says: leave it out, or connect with a nats:// URL", key)
		}
	}
	return dir, query, nil
}

// A node is what a process has of an embedded hub: it runs it, or waits to.
type node struct {
	dir  string
	log  *slog.Logger
	wake chan struct{} // somebody has to dial
	run  *loop.Loop

	users int // of this process; guarded by nodes

	mu    sync.Mutex
	tried chan struct{} // closed when it is known whether this process runs the hub
	err   error         // of the last start, nil if somebody runs the hub
}

// nodes are those of this process, by directory.
var nodes = struct {
	sync.Mutex
	of map[string]*node
}{of: map[string]*node{}}

// join makes the caller a user of the directory's hub.
func join(dir string, log *slog.Logger) (*node, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // one lock, one node
		return nil, err
	}
	nodes.Lock()
	defer nodes.Unlock()
	n := nodes.of[dir]
	if n == nil {
		n = &node{dir: dir, log: log, wake: make(chan struct{}, 1), tried: make(chan struct{})}
		if n.log == nil {
			n.log = slog.New(slog.DiscardHandler)
		}
		n.run = loop.Go(n.serve)
		nodes.of[dir] = n
	}
	n.users++
	return n, nil
}

// leave is the end of a user. The last one of a process stops the hub, if it runs
// here, and waits for that, so that the next process can take it over.
func (n *node) leave() {
	nodes.Lock()
	n.users--
	last := n.users == 0
	if last {
		delete(nodes.of, n.dir)
	}
	nodes.Unlock()
	if last {
		n.run.StopAndWait()
	}
}

// mutantForgets is a defect that the drill must catch by name: who takes the hub over
// begins with an empty store. See package mutant.
const mutantForgets = "takeover-forgets"

// forget is that defect, unless somebody runs the hub.
func (n *node) forget() {
	if r, err := Find(n.dir); err == nil && r == nil {
		_ = os.Rename(filepath.Join(n.dir, "store"), filepath.Join(n.dir, fmt.Sprint("store-before-", os.Getpid())))
	}
}

// serve runs the hub whenever nobody else does.
func (n *node) serve(ctx context.Context) {
	for ctx.Err() == nil {
		if mutant.On(mutantForgets) {
			n.forget()
		}
		h, err := Start(ctx, Options{Dir: n.dir, Addr: "127.0.0.1:0", Logger: n.log})
		var taken *InUseError
		wait := embedIdle
		switch {
		case err == nil:
			n.settled(nil)
			n.log.Info("hub: embed: this process runs the hub", "dir", n.dir)
			n.host(ctx, h)
			wait = 0
		case errors.As(err, &taken):
			n.settled(nil)
		case ctx.Err() == nil:
			wait, err = embedAgain, errors.Unwrap(err) // without the name of the package
			if n.settled(err) {
				n.log.Error("hub: embed: no process runs the hub, and this one cannot", "dir", n.dir, "err", err)
			}
		}
		select {
		case <-n.wake:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// host runs a hub until it is told to stop or fails.
func (n *node) host(ctx context.Context, h *Hub) {
	select {
	case <-h.Done():
		n.log.Error("hub: embed: the hub of this process has stopped; it is started again", "dir", n.dir, "err", h.Err())
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), embedStop)
		defer cancel()
		if _, err := h.Stop(ctx); err != nil {
			n.log.Error("hub: embed: stop", "err", err)
		}
	}
}

// settled notes how a start went, and reports whether that is news.
func (n *node) settled(err error) (news bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	news = err != nil && (n.err == nil || n.err.Error() != err.Error())
	n.err = err
	select {
	case <-n.tried:
	default:
		close(n.tried)
	}
	return news
}

// failed is why nobody runs the hub, nil if somebody does.
func (n *node) failed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// where is what natsbus dials. Whoever dials has no connection: perhaps it is this
// process's turn.
func (n *node) where() (string, error) {
	select {
	case n.wake <- struct{}{}:
	default:
	}
	u, err := n.address()
	if err != nil {
		return "", err
	}
	return u.Host, nil
}

// address is the hub's URL as the directory has it: of the hub that runs, or of one
// that was killed.
func (n *node) address() (*url.URL, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, "address"))
	if err != nil {
		return nil, fmt.Errorf("the hub of %s is not ready: %w", n.dir, err)
	}
	u, err := url.Parse(strings.TrimSpace(string(b)))
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s cannot be read: remove it, and start the hub again", filepath.Join(n.dir, "address"))
	}
	return u, nil
}

// open connects as soon as there is a hub to connect to.
func (n *node) open(ctx context.Context, query string, cfg adapter.Config) (adapter.Adapter, error) {
	select {
	case <-n.tried:
	case <-ctx.Done():
		return nil, fmt.Errorf("the hub of %s is being started: %w", n.dir, context.Cause(ctx))
	}
	for tries := 0; ; {
		if err := n.failed(); err != nil {
			return nil, err
		}
		u, err := n.answering(ctx)
		if err == nil {
			tries++
			var a adapter.Adapter
			if a, err = natsbus.Follow(ctx, with(u, query), natsbus.Place{Where: n.where, Closed: sync.OnceFunc(n.leave)}, cfg); err == nil {
				return a, nil
			}
			// It may have gone just now; but what it refuses again it means.
			if tries == 3 {
				return nil, err
			}
		}
		select {
		case <-time.After(embedLook):
		case <-ctx.Done():
			return nil, fmt.Errorf("no hub of %s answers: %w", n.dir, errors.Join(context.Cause(ctx), err))
		}
	}
}

// answering returns where a hub listens.
func (n *node) answering(ctx context.Context) (*url.URL, error) {
	addr, err := n.where()
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: embedDial}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.Close()
	return n.address()
}

// with adds what the caller says to what the directory says.
func with(u *url.URL, query string) string {
	s := u.String()
	switch {
	case query == "":
		return s
	case u.RawQuery == "":
		return s + "?" + query
	}
	return s + "&" + query
}
