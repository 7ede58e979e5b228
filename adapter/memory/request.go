package memory

import (
	"context"
	"errors"
	"sync"

	"github.com/tidings-go/tidings/adapter"
)

// A request waits for replies until it is stopped.
type request struct {
	c       *conn
	mu      sync.Mutex // held while reply runs, so that it does not once stop has returned
	reply   func(adapter.Reply)
	stopped bool
}

// Request implements [adapter.Requester].
func (c *conn) Request(_ context.Context, m *adapter.Message, reply func(adapter.Reply)) (stop func(), err error) {
	q := &request{c: c, reply: reply}
	c.mu.Lock()
	if c.closed.Load() {
		c.mu.Unlock()
		return nil, errClosed
	}
	c.asked[q] = struct{}{}
	c.mu.Unlock()
	c.hub.mu.Lock()
	n, full := c.hub.publishLive(c.subject(m.Topic), travelling(m), q.replied)
	c.hub.mu.Unlock()
	dropped(full)
	if n == 0 {
		q.heard(adapter.Reply{Err: adapter.ErrNobody})
	}
	return q.stop, nil
}

// replied takes what another process says: of its errors, the text.
func (q *request) replied(a adapter.Reply) error {
	if a.Err != nil {
		a.Err = errors.New(a.Err.Error())
	}
	q.heard(a)
	return nil
}

func (q *request) heard(a adapter.Reply) {
	if a.Message != nil {
		m := travelling(a.Message)
		a.Message = &m
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return
	}
	q.stopped = errors.Is(a.Err, adapter.ErrNobody) || errors.Is(a.Err, adapter.ErrClosed) // nothing comes after these
	q.reply(a)
}

func (q *request) stop() {
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.c.mu.Lock()
	delete(q.c.asked, q)
	q.c.mu.Unlock()
}
