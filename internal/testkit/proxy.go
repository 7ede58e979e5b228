package testkit

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Proxy stands between clients and a server, and takes away what a network can
// take away. Its methods may be called concurrently.
type Proxy struct {
	l      net.Listener
	target string
	run    *loop.Loop

	mu      sync.Mutex
	cut     bool
	lose    [2]bool // what is read in a direction is not passed on
	rate    [2]int  // bytes a second; 0: as fast as can be
	changed chan struct{}
	conns   map[net.Conn]bool
	loops   []*loop.Loop
}

// Stopped is a rate at which nothing passes.
const Stopped = -1

// A Direction is one of the two in which bytes flow.
type Direction int

const (
	ToServer Direction = iota
	ToClient
)

// Through starts a proxy to the server at an address, until the test ends.
func Through(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	p := &Proxy{l: l, target: target, conns: map[net.Conn]bool{}, changed: make(chan struct{})}
	p.run = loop.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// URL is where clients connect instead.
func (p *Proxy) URL() string { return "nats://" + p.l.Addr().String() }

// Lose has what flows in a direction vanish, or flow again. What has vanished does not
// come later: end the connections before they are used again.
func (p *Proxy) Lose(d Direction, lose bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose[d] = lose
}

// Slow has so many bytes a second flow in a direction; 0 is as many as can be, and
// with [Stopped] none do. What does not flow waits where it is, as with a network or a
// reader that is slow: some of it in buffers of the kernel, and the rest in the sender.
func (p *Proxy) Slow(d Direction, rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate[d] = rate
	p.tell()
}

// tell says that something has changed. mu is held.
func (p *Proxy) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut ends all connections and refuses others, until Mend.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.tell()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Mend is as if nothing had been.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.lose, p.rate = false, [2]bool{}, [2]int{}
	p.tell()
}

func (p *Proxy) accept(context.Context) {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.join(client, server)
	}
}

func (p *Proxy) join(client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		_, _ = client.Close(), server.Close()
		return
	}
	p.conns[client], p.conns[server] = true, true
	p.loops = append(p.loops,
		loop.Go(func(ctx context.Context) { p.pass(ctx, client, server, ToServer) }),
		loop.Go(func(ctx context.Context) { p.pass(ctx, server, client, ToClient) }))
}

func (p *Proxy) pass(ctx context.Context, from, to net.Conn, d Direction) {
	defer p.end(from, to)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if lose := p.delay(ctx, d, n); !lose && n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// delay waits as long as n bytes take, and says whether they are to be lost.
func (p *Proxy) delay(ctx context.Context, d Direction, n int) (lose bool) {
	began := time.Now()
	for {
		p.mu.Lock()
		lose, rate, cut, changed := p.lose[d], p.rate[d], p.cut, p.changed
		p.mu.Unlock()
		wait := time.Hour
		if rate > 0 {
			wait = time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate)))
		}
		if rate == 0 || wait <= 0 || cut || ctx.Err() != nil {
			return lose
		}
		select {
		case <-time.After(wait):
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (p *Proxy) end(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(p.conns, c)
	}
}

func (p *Proxy) close() {
	_ = p.l.Close()
	p.run.StopAndWait()
	p.Cut()
	p.mu.Lock()
	loops := p.loops
	p.mu.Unlock()
	for _, l := range loops {
		l.StopAndWait()
	}
}
