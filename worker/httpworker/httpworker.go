//go:build unix

// Package httpworker runs an HTTP server as a worker: under `tidings run`, systemd
// or by hand.
//
// # Promises
//
// [Run] accepts connections once every subscription of the bus works, and then says
// READY. Told to stop, it accepts no more, answers every request on the connections
// that it has accepted, and only then lets the bus drain.
//
// http.Server.Shutdown does less: it closes connections that are kept open for a next
// request, which may be under way by then, and drops a request that it reads once it
// has begun, even the first of a connection. Clients try again what is idempotent, and
// a POST has failed. Run leaves connections open for [Options.Linger] and answers what
// comes with "Connection: close", after which no client sends on them. So a request
// can fail for one reason only: its connection was idle for all of Linger, and it
// crossed with the close. HTTP/1.1 has no way to announce that. A client that gives up
// idle connections sooner never fails.
//
// Without a socket from a supervisor it listens on the server's own Addr.
package httpworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/worker"
)

// DefaultLinger is [Options.Linger] if that is 0.
const DefaultLinger = 5 * time.Second

// Options say how to serve. The zero value of each field works.
type Options struct {
	// Options of the worker. Its Shutdown is called first: to stop what makes
	// requests last, such as streams.
	worker.Options
	// Sockets are the names of the inherited sockets to serve on; all of them if
	// empty. The others are closed: inherit them by sdnotify.Listeners yourself if
	// you need them, and give this server's by Listeners.
	Sockets []string
	// Listeners, if any, are served on, and sockets are not inherited here.
	Listeners []net.Listener
	// Linger is how long connections without a request stay open once the worker was
	// told to stop; at most half of what DrainTimeout leaves. It ends sooner if
	// there are none. Negative: as http.Server.Shutdown does it.
	Linger time.Duration
}

// A server is one Run.
type server struct {
	*http.Server
	Options
	fail      func(error) // ends the worker
	failed    atomic.Pointer[error]
	listeners []net.Listener
	serving   []*loop.Loop
	draining  atomic.Bool
	open      atomic.Int64  // connections
	none      chan struct{} // holds a token when open has become 0
}

// Run serves until ctx ends, the worker is told to stop, or serving fails, and
// returns once it has drained: nil if nothing was left. It takes over srv's Handler
// and ConnState, and calls what was set there. With a TLSConfig it serves TLS. Call
// it once, from main.
func Run(ctx context.Context, srv *http.Server, o Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &server{Server: srv, Options: o, none: make(chan struct{}, 1)}
	s.fail = func(err error) { s.failed.CompareAndSwap(nil, &err); cancel(err) }
	s.watch()
	o.Options.Serve, o.Options.Shutdown = s.begin, s.end
	err := worker.Run(ctx, o.Options)
	if failed := s.failed.Load(); failed != nil {
		err = errors.Join(*failed, err)
	}
	return err
}

// watch counts connections, and has answers say when their connection ends.
func (s *server) watch() {
	next, changed := s.Handler, s.ConnState
	if next == nil {
		next = http.DefaultServeMux
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
	s.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			if s.open.Add(-1) == 0 {
				select {
				case s.none <- struct{}{}:
				default:
				}
			}
		}
		if changed != nil {
			changed(c, state)
		}
	}
}

// begin is [worker.Options.Serve].
func (s *server) begin(ctx context.Context) error {
	if s.Options.Serve != nil {
		if err := s.Options.Serve(ctx); err != nil {
			return err
		}
	}
	var err error
	if s.listeners, err = s.inherit(); err != nil {
		return err
	}
	for _, l := range s.listeners {
		s.serving = append(s.serving, loop.Go(func(context.Context) {
			serve := s.Server.Serve
			if s.TLSConfig != nil {
				serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
			}
			if err := serve(l); !s.draining.Load() && !errors.Is(err, http.ErrServerClosed) {
				s.fail(fmt.Errorf("httpworker: serve on %s: %w", l.Addr(), err))
			}
		}))
	}
	return nil
}

// inherit returns what to serve on.
func (s *server) inherit() ([]net.Listener, error) {
	if len(s.Listeners) > 0 {
		return s.Listeners, nil
	}
	byName, err := sdnotify.Listeners()
	if err != nil {
		return nil, err
	}
	var wanted []net.Listener
	for _, name := range s.Sockets {
		if len(byName[name]) == 0 && len(byName) > 0 {
			return nil, fmt.Errorf("httpworker: no socket %q was inherited: start the master with --listen %s=tcp://HOST:PORT", name, name)
		}
		wanted = append(wanted, byName[name]...)
		delete(byName, name)
	}
	for _, ls := range byName {
		for _, l := range ls {
			if len(s.Sockets) == 0 {
				wanted = append(wanted, l)
			} else if err := l.Close(); err != nil {
				return nil, fmt.Errorf("httpworker: close a socket that is not served: %w", err)
			}
		}
	}
	if len(wanted) > 0 {
		return wanted, nil
	}
	addr := s.Addr
	if addr == "" {
		return nil, errors.New("httpworker: no socket was inherited, and the server has no Addr: start it under tidings run --listen, or set Addr")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("httpworker: no socket was inherited, and the server's Addr cannot be listened on: %w", err)
	}
	return []net.Listener{l}, nil
}

// end is [worker.Options.Shutdown].
func (s *server) end(ctx context.Context) error {
	var err error
	if s.Options.Shutdown != nil {
		err = s.Options.Shutdown(ctx)
	}
	s.draining.Store(true)
	for _, l := range s.listeners {
		l.Close() // to others who have the socket it means nothing
	}
	for _, l := range s.serving {
		<-l.Done() // what was accepted is counted by now
	}
	s.linger(ctx)
	if down := s.Server.Shutdown(ctx); down != nil {
		err = errors.Join(err, fmt.Errorf("httpworker: %d connections still have requests that are not answered: %w", s.open.Load(), down), s.Close())
	}
	return err
}

// linger waits until no connection is left, or for long enough.
func (s *server) linger(ctx context.Context) {
	d := cmp.Or(s.Linger, DefaultLinger)
	if end, bounded := ctx.Deadline(); bounded {
		d = min(d, time.Until(end)/2)
	}
	enough := time.NewTimer(d)
	defer enough.Stop()
	for s.open.Load() > 0 {
		select {
		case <-s.none:
		case <-enough.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
