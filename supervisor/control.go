//go:build unix

package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/loop"
)

// ControlPath is where `tidings run` puts the control socket of a master with
// this pid file, if it is not told otherwise.
func ControlPath(pidFile string) string { return pidFile + ".sock" }

// maxBody bounds what comes with a request: a command line.
const maxBody = 1 << 20

// A request is asked over the control socket and answered by the master's
// goroutine.
type request struct {
	row    *requestRow // nil: for the status
	body   []byte
	answer chan answer // has room for one
}

type answer struct {
	status Status
	done   Done
	err    error
}

// A control is the master's control socket: HTTP, so that curl can ask it too.
type control struct {
	base string // as configured
	path string // base, or base.oldbin while a new master has base
	asks chan<- request
	gone chan struct{} // closed when the master answers no more
	http *http.Server
	loop *loop.Loop
}

// openControl listens on path. The empty path listens nowhere.
func openControl(path string, asks chan<- request, log *slog.Logger) (*control, error) {
	c := &control{base: path, path: path, asks: asks, gone: make(chan struct{})}
	if path == "" {
		return c, nil
	}
	if n := len(path) + len(OldSuffix); n > maxPath {
		return nil, fmt.Errorf("supervisor: control socket %s: %d bytes with %s, and %d are the most that every system takes: choose a shorter path", path, n, OldSuffix, maxPath)
	}
	f, err := listenOn(address{"control", "unix", path})
	if err != nil {
		return nil, fmt.Errorf("supervisor: control socket: %w", err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err == nil {
		// Whoever connects before this is asked who he is all the same.
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("supervisor: control socket %s: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.serveStatus)
	mux.HandleFunc("POST /{request}", c.serveRequest)
	guarded := guard{mux, log, []uint32{0, uint32(os.Geteuid())}}
	c.http = &http.Server{Handler: guarded, ConnContext: withPeer, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	c.loop = loop.Go(func(context.Context) { _ = c.http.Serve(l) }) // ends with close
	return c, nil
}

// close lets requests that were answered reach who asked, and refuses the rest.
func (c *control) close() {
	if c.http == nil {
		return
	}
	close(c.gone)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.http.Shutdown(ctx) != nil {
		c.http.Close() // somebody does not read his answer
	}
	<-c.loop.Done()
	os.Remove(c.path)
}

// makeWay moves the socket to base.oldbin, for a new master to take base.
func (c *control) makeWay() error {
	if c.path != "" {
		if err := os.Rename(c.base, c.base+OldSuffix); err != nil {
			return fmt.Errorf("supervisor: control socket: %w", err)
		}
		c.path = c.base + OldSuffix
	}
	return nil
}

// putBack takes base again after the new master has died.
func (c *control) putBack() error {
	if c.path == c.base {
		return nil
	}
	if conn, err := net.Dial("unix", c.base); err == nil {
		conn.Close()
		return fmt.Errorf("supervisor: control socket %s was taken by a live process: this master stays at %s", c.base, c.path)
	}
	if err := os.Rename(c.path, c.base); err != nil {
		return fmt.Errorf("supervisor: control socket: %w", err)
	}
	c.path = c.base
	return nil
}

// ask has the master's goroutine answer.
func (c *control) ask(ctx context.Context, row *requestRow, body []byte) answer {
	r := request{row, body, make(chan answer, 1)}
	select {
	case c.asks <- r:
	case <-c.gone:
		return answer{err: errEnding}
	case <-ctx.Done():
		return answer{err: ctx.Err()}
	}
	return <-r.answer // at once: the master has it
}

var errEnding = errors.New("this master is ending")

func (c *control) serveStatus(w http.ResponseWriter, r *http.Request) {
	a := c.ask(r.Context(), nil, nil)
	if a.err == nil {
		measure(a.status.Workers)
	}
	reply(w, a.status, a.err)
}

func (c *control) serveRequest(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("request")
	i := slices.IndexFunc(requestTable, func(row requestRow) bool { return row.name == name })
	if i < 0 {
		http.Error(w, fmt.Sprintf("no request %q: there are %s", name, strings.Join(requestNames(), ", ")), http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a := c.ask(r.Context(), &requestTable[i], body)
	reply(w, a.done, a.err)
}

// reply writes v as JSON, or why there is none as text.
func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // to one who is gone
}

// A guard admits only some users, whatever the mode of the socket's file.
type guard struct {
	http.Handler
	log  *slog.Logger
	uids []uint32
}

// peerKey is of the context of a connection: the user at its other end, or an error.
type peerKey struct{}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	uid, err := uidOf(conn)
	if err != nil {
		return context.WithValue(ctx, peerKey{}, err)
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// ServeHTTP answers one who is admitted.
func (g guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer := r.Context().Value(peerKey{})
	if uid, known := peer.(uint32); known && slices.Contains(g.uids, uid) {
		g.Handler.ServeHTTP(w, r)
		return
	}
	g.log.Warn("control socket: refused", "user", peer, "admitted", g.uids)
	http.Error(w, fmt.Sprintf("this master answers to users %v, not to %v", g.uids, peer), http.StatusForbidden)
}

func uidOf(conn net.Conn) (uid uint32, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	if failed := raw.Control(func(fd uintptr) { uid, err = peerUID(int(fd)) }); failed != nil {
		return 0, failed
	}
	return uid, err
}

// A Control speaks to a master over its control socket. Its methods may be
// called concurrently; each makes a connection of its own.
type Control struct{ Path string }

// Status asks how the master is.
func (c Control) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "status", nil, &s)
}

// Request asks for what [Requests] lists, and returns once the master has begun
// it. Each request counts, unlike a signal in a burst. An error says why the
// master refuses.
func (c Control) Request(ctx context.Context, name string) (d Done, err error) {
	return d, c.do(ctx, http.MethodPost, name, nil, &d)
}

// Deploy has the master start new workers beside the old ones, and returns once it
// has begun. [Status.Deploy] shows how it goes; the master goes through with it
// even if nobody looks. An error says why it refuses: one deploy at a time.
func (c Control) Deploy(ctx context.Context, ask DeployRequest) (d Done, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, "deploy", body, &d)
}

// Abort takes the deploy that is under way back, unless it is decided already.
func (c Control) Abort(ctx context.Context) (d Done, err error) {
	return d, c.do(ctx, http.MethodPost, "abort", nil, &d)
}

func (c Control) do(ctx context.Context, method, name string, body []byte, into any) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Path)
	}}
	r, err := http.NewRequestWithContext(ctx, method, "http://master/"+name, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("supervisor: control socket %s: %w", c.Path, err)
	}
	resp, err := transport.RoundTrip(r)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("supervisor: no master at control socket %s: %w", c.Path, err)
	case err != nil:
		return fmt.Errorf("supervisor: control socket %s: %w", c.Path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("supervisor: %s, asked at %s: %w", name, c.Path, err)
	}
	return nil
}
