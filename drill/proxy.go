package drill

import (
	"context"
	"net"
	"net/url"
	"sync"

	"github.com/tidings-go/tidings/internal/loop"
)

// A proxy is what one publisher reaches the hub by. It can lose what the hub answers.
type proxy struct {
	l   net.Listener
	hub func() string // its URL
	run *loop.Loop

	mu    sync.Mutex
	loses bool
	conns []net.Conn
	loops []*loop.Loop
}

func newProxy(hub func() string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{l: l, hub: hub}
	p.run = loop.Go(p.accept)
	return p, nil
}

// url is the hub's by way of the proxy.
func (p *proxy) url() (string, error) {
	u, err := url.Parse(p.hub())
	if err != nil {
		return "", err
	}
	u.Host = p.l.Addr().String()
	return u.String(), nil
}

// lose has answers vanish, or pass again.
func (p *proxy) lose(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loses = on
}

func (p *proxy) accept(context.Context) {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		hub, err := p.dial()
		if err != nil {
			_ = client.Close() // as if nobody were there
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, hub)
		p.loops = append(p.loops,
			loop.Go(func(context.Context) { pass(client, hub, func() bool { return false }) }),
			loop.Go(func(context.Context) { pass(hub, client, p.losing) }))
		p.mu.Unlock()
	}
}

func (p *proxy) dial() (net.Conn, error) {
	u, err := url.Parse(p.hub())
	if err != nil {
		return nil, err
	}
	return net.Dial("tcp", u.Host)
}

func (p *proxy) losing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loses
}

// pass ends both connections with the first of them.
func pass(from, to net.Conn, loses func() bool) {
	defer func() { _, _ = from.Close(), to.Close() }()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !loses() {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return // io.EOF, or the other one has ended it
		}
	}
}

func (p *proxy) close() {
	if p == nil {
		return
	}
	_ = p.l.Close()
	p.run.StopAndWait()
	for _, c := range p.conns {
		_ = c.Close()
	}
	for _, l := range p.loops {
		l.StopAndWait()
	}
}
