//go:build unix

package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/worker"
)

var routes = []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}, {Pattern: ">", Class: tidings.Live}}

func openBilling(ctx context.Context) (*tidings.Bus, error) {
	return tidings.Open(ctx, os.Getenv("WORKER_TEST_URL"), tidings.Options{App: "billing", Routes: routes})
}

// durableChild subscribes to one topic durably and to one live.
func durableChild(ctx context.Context) error {
	bus, err := openBilling(ctx)
	if err != nil {
		return err
	}
	serve := func(context.Context) error { return sdnotify.Notify(sdnotify.Status("begins to serve")) }
	return worker.Run(ctx, worker.Options{Bus: bus, Serve: serve, Setup: func(ctx context.Context) error {
		h := func(context.Context, tidings.Event) error { return nil }
		_, err := bus.Subscribe(ctx, "order.placed", h, &tidings.SubscribeOptions{Durable: true})
		_, live := bus.Subscribe(ctx, "cart.*", h, nil)
		return errors.Join(err, live)
	}})
}

// A gate passes connections on to a broker, but no pull until it is opened.
type gate struct {
	listener net.Listener
	opened   chan struct{}
}

func newGate(t *testing.T, broker string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: l, opened: make(chan struct{})}
	var conns sync.WaitGroup
	accepting := loop.Go(func(context.Context) {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", broker)
			if err != nil {
				client.Close()
				continue
			}
			conns.Go(func() { g.pass(server, client); server.Close() })
			conns.Go(func() { _, _ = io.Copy(client, server); client.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); <-accepting.Done(); conns.Wait() })
	return g
}

// pass reads the protocol: a line and, of what publishes, a payload.
func (g *gate) pass(to io.Writer, from io.Reader) {
	in := bufio.NewReader(from)
	for {
		line, err := in.ReadString('\n')
		message := []byte(line)
		if words := strings.Fields(line); len(words) > 2 && (words[0] == "PUB" || words[0] == "HPUB") {
			size, bad := strconv.Atoi(words[len(words)-1])
			payload := make([]byte, size+len("\r\n"))
			_, short := io.ReadFull(in, payload)
			err = errors.Join(err, bad, short)
			message = append(message, payload...)
		}
		// The one by which the permission is asked for is not meant to be understood.
		if strings.Contains(line, "CONSUMER.MSG.NEXT") && !bytes.HasSuffix(message, []byte("\n{\r\n")) {
			select {
			case <-g.opened:
			default:
				message = nil // its sender asks again
			}
		}
		if _, failed := to.Write(message); failed != nil || err != nil {
			return
		}
	}
}

// READY comes when the worker's own pull was answered, and until then STATUS and
// the report name the subscription that is waited for.
func TestSaysWhatItWaitsFor(t *testing.T) {
	broker := testkit.Server(t)
	g := newGate(t, strings.TrimPrefix(broker.URL(), "nats://"))
	p := start(t, "durable", "TIDINGS_WORKER=0", "WORKER_TEST_URL=nats://"+g.listener.Addr().String())
	var reports sdnotify.Reports
	ready, serves := false, false
	await := func(what string, is func(sdnotify.Message, *sdnotify.Report) bool) {
		t.Helper()
		p.await(t, what, func(m sdnotify.Message) bool {
			serves = serves || m.Status == "begins to serve"
			if m.Ready && !serves {
				t.Error("READY before Options.Serve was called")
			}
			ready = ready || m.Ready
			r, err := reports.Take(m)
			if err != nil {
				t.Error(err)
			}
			return is(m, r)
		})
	}
	// The live one alone is ready some time, the durable one is not.
	await("what is waited for", func(m sdnotify.Message, _ *sdnotify.Report) bool {
		return m.Status == "waiting for order.placed (durable, group billing)"
	})
	await("a report", func(_ sdnotify.Message, r *sdnotify.Report) bool {
		if r == nil || len(r.Subscriptions) != 2 {
			return false
		}
		d, l := r.Subscriptions[0], r.Subscriptions[1]
		return d.Pattern == "order.placed" && d.Durable && d.Group == "billing" && !d.Ready && l.Pattern == "cart.*" && !l.Durable && l.Ready
	})
	if ready || serves {
		t.Errorf("before a pull was answered: READY: %v, Serve called: %v", ready, serves)
	}
	close(g.opened)
	await("READY", func(m sdnotify.Message, _ *sdnotify.Report) bool { return m.Ready })
	await("the status when it serves", func(m sdnotify.Message, _ *sdnotify.Report) bool { return m.Status == "serving 2 subscriptions" })
	await("a report of two ready subscriptions", func(_ sdnotify.Message, r *sdnotify.Report) bool {
		return r != nil && r.Subscriptions[0].Ready && r.Subscriptions[1].Ready
	})
	_ = p.Process.Signal(os.Interrupt)
	await("draining", func(m sdnotify.Message, _ *sdnotify.Report) bool { return m.Status == "draining" })
	p.end(t, 0, "clean")
}

// A manager that is gone does not keep a worker from draining.
func TestNobodyToTell(t *testing.T) {
	p := start(t, "sound", "TIDINGS_WORKER=0")
	p.ready(t)
	if err := os.Remove(p.socket); err != nil {
		t.Fatal(err)
	}
	_ = p.stdin.Close()
	_ = p.Process.Signal(os.Interrupt)
	p.end(t, 0, "handled", "clean")
}
