//go:build unix

package httpworker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/worker"
	"github.com/tidings-go/tidings/worker/httpworker"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A run is one [httpworker.Run], with a connection to it.
type run struct {
	t    *testing.T
	addr string
	stop func() // tells the worker
	done chan error
	conn net.Conn
	in   *bufio.Reader
}

func start(t *testing.T, srv *http.Server, o httpworker.Options) *run {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	o.Listeners = []net.Listener{l}
	r := &run{t: t, addr: l.Addr().String(), done: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	running := loop.Go(func(context.Context) { r.done <- httpworker.Run(ctx, srv, withBus(t, o)) })
	t.Cleanup(func() { stop(); <-running.Done() })
	r.conn, err = net.Dial("tcp", r.addr)
	check(t, err)
	t.Cleanup(func() { r.conn.Close() })
	check(t, r.conn.SetDeadline(time.Now().Add(patience)))
	r.in = bufio.NewReader(r.conn)
	return r
}

func withBus(t *testing.T, o httpworker.Options) httpworker.Options {
	t.Helper()
	bus, err := tidings.New(tidings.Options{App: "web"})
	check(t, err)
	o.Bus = bus
	return o
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *run) send() {
	r.t.Helper()
	_, err := io.WriteString(r.conn, "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
	check(r.t, err)
}

// answered reads an answer, and whether it is the connection's last.
func (r *run) answered() (last bool) {
	r.t.Helper()
	resp, err := http.ReadResponse(r.in, nil)
	check(r.t, err)
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "hello" {
		r.t.Errorf("answered %q, %v", text, err)
	}
	return resp.Close
}

// refused waits until the worker accepts no more.
func (r *run) refused() {
	r.t.Helper()
	testkit.Until(r.t, patience, func() bool {
		conn, err := net.Dial("tcp", r.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

func (r *run) ends() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		r.t.Fatalf("it did not end in %v", patience)
		return nil
	}
}

func echo(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }

// A connection that is kept, and one on which nothing was sent yet, are answered
// after the signal, once, and hold up the end no longer.
func TestConnectionsThatAreOpenAreAnswered(t *testing.T) {
	for name, requests := range map[string]int{"kept": 2, "new": 0} {
		t.Run(name, func(t *testing.T) {
			var states atomic.Int32
			srv := &http.Server{Handler: http.HandlerFunc(echo), ConnState: func(net.Conn, http.ConnState) { states.Add(1) }}
			r := start(t, srv, httpworker.Options{Linger: time.Hour, Options: worker.Options{DrainTimeout: time.Hour}})
			for range requests {
				r.send()
				if r.answered() {
					t.Fatal("the connection is closed without a reason")
				}
			}
			if requests == 0 {
				testkit.Until(t, patience, func() bool { return states.Load() > 0 }) // accepted
			}
			r.stop()
			r.refused()
			r.send()
			if !r.answered() {
				t.Error("the client is not told that the connection ends")
			}
			if err := r.ends(); err != nil {
				t.Error(err)
			}
			if states.Load() == 0 {
				t.Error("the server's own ConnState is not called")
			}
		})
	}
}

// A connection that stays idle is closed after Linger; so it is after half of what
// the drain may take.
func TestIdleConnectionsDoNotHoldUpTheEnd(t *testing.T) {
	for name, o := range map[string]httpworker.Options{
		"linger":        {Linger: 10 * time.Millisecond},
		"negative":      {Linger: -1},
		"drain timeout": {Options: worker.Options{DrainTimeout: 40 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &http.Server{Handler: http.HandlerFunc(echo)}, o)
			r.send()
			r.answered()
			r.stop()
			if err := r.ends(); err != nil {
				t.Error(err)
			}
			if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection: %v", err)
			}
		})
	}
}

// What is under way is waited for; if for too long, it is counted.
func TestRequestsUnderWay(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"answered": time.Hour, "too long": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			entered, leave := make(chan struct{}), make(chan struct{})
			h := func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-leave
				echo(w, r)
			}
			var own atomic.Bool
			o := httpworker.Options{Linger: -1, Options: worker.Options{DrainTimeout: timeout, Shutdown: func(context.Context) error { own.Store(true); return nil }}}
			r := start(t, &http.Server{Handler: http.HandlerFunc(h)}, o)
			r.send()
			<-entered
			r.stop()
			r.refused()
			if name == "too long" {
				err := r.ends()
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 connections still have requests") {
					t.Errorf("got %v", err)
				}
				close(leave)
			} else {
				close(leave)
				r.answered()
				if err := r.ends(); err != nil {
					t.Error(err)
				}
			}
			if !own.Load() {
				t.Error("Options.Shutdown was not called")
			}
		})
	}
}

// Serving begins once the worker is ready, and after what the caller does then.
func TestServesOnlyOnceReady(t *testing.T) {
	setup, gate := make(chan struct{}), make(chan struct{})
	var ready atomic.Bool
	o := httpworker.Options{Options: worker.Options{
		Setup: func(context.Context) error { close(setup); <-gate; return nil },
		Serve: func(context.Context) error { ready.Store(true); return nil },
	}}
	r := start(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ready.Load() {
			t.Error("a request was taken before the worker was ready")
		}
		echo(w, r)
	})}, o)
	<-setup
	r.send()
	close(gate)
	r.answered()
	r.stop()
	r.conn.Close()
	if err := r.ends(); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeServedIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer taken.Close()
	addr := taken.Addr().String()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	closed.Close()
	broken := errors.New("no templates")
	for want, c := range map[string]struct {
		addr string
		o    httpworker.Options
	}{
		"no socket was inherited, and the server has no Addr":                            {},
		"no socket was inherited, and the server's Addr cannot be listened on":           {addr: addr},
		fmt.Sprintf("httpworker: serve on %s: accept tcp %[1]s", closed.Addr().String()): {o: httpworker.Options{Listeners: []net.Listener{closed}}},
		broken.Error(): {o: httpworker.Options{Options: worker.Options{Serve: func(context.Context) error { return broken }}}},
	} {
		if err := httpworker.Run(t.Context(), &http.Server{Addr: c.addr}, withBus(t, c.o)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
