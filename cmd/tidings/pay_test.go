//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/worker"
)

// An order is what pay handles.
type order struct {
	ID    string
	Takes time.Duration
}

// runPay is the service of examples/deploying. What it does it notes in a file, a
// line each, for the test to read.
func runPay() {
	if err := pay(); err != nil {
		fmt.Fprintln(os.Stderr, "pay:", err)
		os.Exit(1)
	}
}

func pay() error {
	journal, err := os.OpenFile("/var/lib/pay/journal", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	note := func(what string) { fmt.Fprintf(journal, "%d %s\n", os.Getpid(), what) }
	bus, err := tidings.New(tidings.Options{App: "pay", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return err
	}
	var web web
	web.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	note("starts")
	defer note("ends")
	return worker.Run(context.Background(), worker.Options{Bus: bus, Shutdown: web.end, Setup: func(ctx context.Context) error {
		if err := mayGoOn(ctx); err != nil {
			return err
		}
		if err := bus.Attach(ctx, ""); err != nil {
			return err
		}
		_, err := bus.Subscribe(ctx, "order.*", func(ctx context.Context, e tidings.Event) error {
			var o order
			if err := e.Decode(&o); err != nil {
				return tidings.Permanent(err)
			}
			note("begins " + o.ID)
			select {
			case <-time.After(o.Takes):
				note("ends " + o.ID)
				return nil
			case <-ctx.Done():
				note("is cut short in " + o.ID)
				return ctx.Err()
			}
		}, &tidings.SubscribeOptions{Durable: true})
		return errors.Join(err, web.begin())
	}})
}

// mayGoOn waits for the file that PAY_AWAITS names, if any: a start can be slow.
func mayGoOn(ctx context.Context) error {
	file := os.Getenv("PAY_AWAITS")
	if file == "" {
		return nil
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Clean(file)); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A web serves on the sockets that were passed by that name.
type web struct {
	http.Server
	listeners []net.Listener
	serving   []*loop.Loop
	busy      atomic.Int64 // connections whose request was not answered yet
}

func (w *web) begin() error {
	sockets, err := worker.Listeners()
	w.listeners = sockets["web"]
	w.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			w.busy.Add(1)
		case http.StateClosed:
			w.busy.Add(-1)
		}
	}
	w.SetKeepAlivesEnabled(false) // each connection is one request
	for _, l := range w.listeners {
		w.serving = append(w.serving, loop.Go(func(context.Context) { _ = w.Serve(l) }))
	}
	return err
}

// end answers what was accepted before it shuts the server down: Shutdown closes a
// connection whose request it has not begun to read.
func (w *web) end(ctx context.Context) error {
	for i, l := range w.listeners {
		l.Close()
		if err := w.serving[i].Wait(ctx); err != nil {
			return err
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for w.busy.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.Shutdown(ctx)
}
