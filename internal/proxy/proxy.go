// Package proxy stands between clients and a server, for tests and the drill, and takes
// away what a network can take away. It passes TCP on, unchanged and in order, except for
// what it was told to do.
package proxy

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Proxy is one address that leads to a server. Its methods may be called concurrently.
type Proxy struct {
	l      net.Listener
	target func() (string, error)
	run    *loop.Loop

	mu      sync.Mutex
	cut     bool
	way     [2]way
	changed chan struct{}
	conns   map[net.Conn]Direction // of what is written to it
	loops   []*loop.Loop
}

// A way is what becomes of bytes in one direction.
type way struct {
	lose  bool // what is read is not passed on
	rate  int  // bytes a second; 0: as fast as can be
	delay time.Duration
}

// Stopped is a rate at which nothing passes.
const Stopped = -1

// A Direction is one of the two in which bytes flow.
type Direction int

// From the client, and to it.
const (
	ToServer Direction = iota
	ToClient
)

// queued is how many reads of a direction may be on their way.
const queued = 1024

// New starts a proxy on loopback to the server at the address that target returns, which
// is asked for each connection; who gets an error is not let in.
func New(target func() (string, error)) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{l: l, target: target, conns: map[net.Conn]Direction{}, changed: make(chan struct{})}
	p.run = loop.Go(p.accept)
	return p, nil
}

// Addr is the host:port where clients connect instead.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Lose has what flows in a direction vanish, or flow again. What has vanished does not
// come later: end the connections before they are used again.
func (p *Proxy) Lose(d Direction, lose bool) { p.change(func() { p.way[d].lose = lose }) }

// Slow has so many bytes a second flow in a direction; 0 is as many as can be, and
// with [Stopped] none do. What does not flow waits where it is, as with a network or a
// reader that is slow: some of it in buffers of the kernel, and the rest in the sender.
func (p *Proxy) Slow(d Direction, rate int) { p.change(func() { p.way[d].rate = rate }) }

// Delay has what flows in a direction from now on arrive so much later.
func (p *Proxy) Delay(d Direction, by time.Duration) { p.change(func() { p.way[d].delay = by }) }

// Cut ends all connections and refuses others, until Mend.
func (p *Proxy) Cut() {
	p.change(func() {
		p.cut = true
		for c := range p.conns {
			_ = c.Close()
		}
	})
}

// Mend is as if nothing had been.
func (p *Proxy) Mend() { p.change(func() { p.cut, p.way = false, [2]way{} }) }

// change does what f says, and lets everybody know.
func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// Say has the proxy say something of its own, on all connections. Nothing else may
// flow meanwhile, or it lands in the middle of that.
func (p *Proxy) Say(d Direction, words string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, to := range p.conns {
		if to == d {
			_, _ = c.Write([]byte(words)) // a connection may have ended
		}
	}
}

// Clients are the addresses of those that are connected.
func (p *Proxy) Clients() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var addrs []string
	for c, to := range p.conns {
		if to == ToClient {
			addrs = append(addrs, c.RemoteAddr().String())
		}
	}
	return addrs
}

// Close ends it with all connections, and waits until that is done.
func (p *Proxy) Close() {
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

func (p *Proxy) accept(context.Context) {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		server, err := p.dial()
		if err != nil {
			_ = client.Close() // as if nobody were there
			continue
		}
		p.join(client, server)
	}
}

func (p *Proxy) dial() (net.Conn, error) {
	addr, err := p.target()
	if err != nil {
		return nil, err
	}
	return net.Dial("tcp", addr)
}

func (p *Proxy) join(client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		_, _ = client.Close(), server.Close()
		return
	}
	p.conns[client], p.conns[server] = ToClient, ToServer
	p.pass(client, server, ToServer)
	p.pass(server, client, ToClient)
}

// A chunk is what was read at once, and when it is to be there.
type chunk struct {
	due time.Time
	b   []byte
}

// pass begins one direction of a connection. mu is held.
func (p *Proxy) pass(from, to net.Conn, d Direction) {
	chunks := make(chan chunk, queued)
	p.loops = append(p.loops,
		loop.Go(func(ctx context.Context) {
			defer close(chunks)
			p.take(ctx, from, d, chunks)
		}),
		loop.Go(func(ctx context.Context) {
			defer p.end(from, to)
			p.give(ctx, to, chunks)
		}))
}

// take reads until the connection has ended.
func (p *Proxy) take(ctx context.Context, from net.Conn, d Direction, chunks chan<- chunk) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if w := p.hold(ctx, d, n); !w.lose && n > 0 {
			select {
			case chunks <- chunk{time.Now().Add(w.delay), append([]byte(nil), buf[:n]...)}:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// give writes what there is, when it is due.
func (p *Proxy) give(ctx context.Context, to net.Conn, chunks <-chan chunk) {
	for c := range chunks {
		if wait := time.Until(c.due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		if _, err := to.Write(c.b); err != nil {
			return
		}
	}
}

// hold waits as long as n bytes take at the rate, and says what else becomes of them.
func (p *Proxy) hold(ctx context.Context, d Direction, n int) way {
	began := time.Now()
	for {
		p.mu.Lock()
		w, cut, changed := p.way[d], p.cut, p.changed
		p.mu.Unlock()
		wait := time.Hour
		if w.rate > 0 {
			wait = time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(w.rate)))
		}
		if w.rate == 0 || wait <= 0 || cut || ctx.Err() != nil {
			return w
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
