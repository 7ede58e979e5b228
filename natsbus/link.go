package natsbus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A link knows whether the connection is up. It is our own copy: asking
// nats.go takes a lock that its writer holds while the broker hangs.
type link struct {
	mu      sync.Mutex
	up      bool
	at      time.Time // when up became what it is
	closed  bool
	changed chan struct{} // closed at the next change
}

func newLink() *link { return &link{changed: make(chan struct{})} }

func (l *link) set(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up != up || l.at.IsZero() {
		l.up, l.at = up, time.Now()
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.up, l.closed, l.at = false, true, time.Now()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) state() (up, closed bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up, l.closed, l.changed
}

func (l *link) since() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

func (l *link) isUp() bool {
	up, _, _ := l.state()
	return up
}

// wait returns once the connection is up.
func (l *link) wait(ctx context.Context) error {
	for {
		up, closed, changed := l.state()
		switch {
		case up:
			return nil
		case closed:
			return errClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A dialer counts the connections that were begun. nats.go tells of a
// reconnection on a goroutine of its own, later; the count changes before a
// byte can be written to the new connection.
type dialer struct {
	net.Dialer
	begun  *atomic.Uint64
	before func()
	// patient: the first connection may come later. nats.go tries again only if the
	// connection was refused, and looks for that in the error's text.
	patient bool
	where   func() (string, error) // if not nil, says what to dial
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.begun.Add(1)
	d.before()
	conn, err := d.dial(network, address)
	if err != nil && d.patient && !errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("as good as connection refused: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: conn}, nil
}

func (d *dialer) dial(network, address string) (net.Conn, error) {
	if d.where != nil {
		var err error
		if address, err = d.where(); err != nil {
			return nil, err
		}
	}
	return d.Dialer.Dial(network, address)
}

// Reconnecting. On loopback a refused connection costs nothing, and a broker
// that restarts is back within milliseconds.
const (
	reconnectLoopback     = 40 * time.Millisecond
	reconnectLoopbackSlow = 200 * time.Millisecond
	reconnectFirst        = 50 * time.Millisecond
	reconnectCap          = 1500 * time.Millisecond
)

// reconnectDelay is how long to wait before trying all servers for the n-th
// time, with jitter so that the processes of a site do not come all at once.
func reconnectDelay(loopback bool, n int) time.Duration {
	var d time.Duration
	switch {
	case loopback && n <= 250:
		d = reconnectLoopback
	case loopback:
		d = reconnectLoopbackSlow
	default:
		d = min(reconnectFirst<<min(n, 8), reconnectCap)
	}
	return d/2 + rand.N(d/2)
}

// grace is how long nothing is published after a reconnection. The publisher's
// connection usually comes back before the subscribers' do, and what it sends
// then reaches nobody: 4 1xx of 10 0xx events were lost to that with the
// defaults of nats.go.
func grace(loopback bool) time.Duration {
	if loopback {
		return reconnectLoopback + 20*time.Millisecond
	}
	return 250 * time.Millisecond
}
