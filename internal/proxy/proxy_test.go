package proxy_test

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that sends back what it gets, behind a proxy, and a client of it.
func echo(t *testing.T) (p *proxy.Proxy, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p, err = proxy.New(func() (string, error) { return l.Addr().String(), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	client, err = net.Dial("tcp", p.Addr())
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
	}{{0, 0}, {100_000, 100 * time.Millisecond}, {proxy.Stopped, 50 * time.Millisecond}, {0, 0}} {
		p.Slow(proxy.ToServer, c.rate)
		began := time.Now()
		if _, err := io.WriteString(client, text); err != nil {
			t.Fatal(err)
		}
		if c.rate == proxy.Stopped {
			if err := client.SetReadDeadline(began.Add(c.least)); err != nil {
				t.Fatal(err)
			}
			if n, err := client.Read(got); err == nil {
				t.Errorf("%d bytes came through", n)
			}
			if err := client.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			p.Slow(proxy.ToServer, 0)
		}
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < c.least {
			t.Errorf("at %d bytes a second it took %v", c.rate, took)
		}
	}
}

// What is delayed arrives in order and whole, later; more of it may be on its way.
func TestDelay(t *testing.T) {
	p, client := echo(t)
	const delay = 50 * time.Millisecond
	p.Delay(proxy.ToServer, delay)
	p.Delay(proxy.ToClient, delay)
	began := time.Now()
	var sent strings.Builder
	for i := range 100 {
		line := strconv.Itoa(i) + "\n"
		sent.WriteString(line)
		if _, err := io.WriteString(client, line); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, sent.Len())
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != sent.String() {
		t.Errorf("got %q", got)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("it took %v", took)
	}
}

// Who is cut off is told so, and can come back.
func TestCut(t *testing.T) {
	p, client := echo(t)
	if got := p.Clients(); len(got) != 1 || got[0] != client.LocalAddr().String() {
		t.Errorf("clients: %v", got)
	}
	p.Cut()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("still connected")
	}
	if c, err := net.Dial("tcp", p.Addr()); err == nil { // taken by the kernel, and ended
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("connected")
		}
		_ = c.Close()
	}
	p.Mend()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}
