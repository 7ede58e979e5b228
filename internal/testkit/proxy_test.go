package testkit_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

// echo is a server that sends back what it gets, behind a proxy, and a client of it.
func echo(t *testing.T) (p *testkit.Proxy, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p = testkit.Through(t, l.Addr().String())
	client, err = net.Dial("tcp", strings.TrimPrefix(p.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	run := loop.Go(func(context.Context) { _, _ = io.Copy(server, server) })
	t.Cleanup(func() { _ = server.Close(); run.StopAndWait() })
	return p, client
}

// What is slowed down takes its time, and what is stopped comes once it may; nothing of
// it is lost.
func TestSlow(t *testing.T) {
	p, client := echo(t)
	text, got := strings.Repeat("x", 10_000), make([]byte, 10_000)
	for _, c := range []struct {
		rate  int
		least time.Duration
	}{{0, 0}, {100_000, 100 * time.Millisecond}, {testkit.Stopped, 50 * time.Millisecond}, {0, 0}} {
		p.Slow(testkit.ToServer, c.rate)
		began := time.Now()
		if _, err := io.WriteString(client, text); err != nil {
			t.Fatal(err)
		}
		if c.rate == testkit.Stopped {
			if err := client.SetReadDeadline(began.Add(c.least)); err != nil {
				t.Fatal(err)
			}
			if n, err := client.Read(got); err == nil {
				t.Errorf("%d bytes came through", n)
			}
			if err := client.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			p.Slow(testkit.ToServer, 0)
		}
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < c.least {
			t.Errorf("at %d bytes a second it took %v", c.rate, took)
		}
	}
}
