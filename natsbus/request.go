package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
)

// Headers of requests and of what comes back.
const (
	hRequest = "tidings-request"  // of a Tidings process: it is told who has no reply
	hNone    = "tidings-no-reply" // why; the message is no reply
)

// How long "nobody is there" is not believed after a reconnection, and how often it
// is asked again then: subscribers come back at their own pace, see reconnectDelay.
const (
	believeAfter = 2 * time.Second
	askAgain     = 50 * time.Millisecond
)

// A request waits for replies until it is stopped.
type request struct {
	c     *conn
	msg   *nats.Msg
	topic string
	token string

	mu      sync.Mutex // held while reply runs, so that it does not once stop has returned
	reply   func(adapter.Reply)
	again   *time.Timer
	stopped bool
}

// Request implements [adapter.Requester].
func (c *conn) Request(_ context.Context, m *adapter.Message, reply func(adapter.Reply)) (stop func(), err error) {
	q := &request{c: c, topic: m.Topic, reply: reply, msg: c.encodeRequest(m)}
	if err := c.enlist(q); err != nil {
		return nil, err
	}
	id := ""
	if m.Numbered {
		id = m.ID
	}
	if err := c.sendLive(q.msg, q.topic, id); err != nil {
		q.stop()
		return nil, err
	}
	return q.stop, nil
}

func (c *conn) enlist(q *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Load() {
		return errClosed
	}
	c.asked[q] = struct{}{}
	q.token = c.mux.expect(q.heard)
	q.msg.Reply = c.mux.subject(q.token)
	return nil
}

func (c *conn) encodeRequest(m *adapter.Message) *nats.Msg {
	msg := c.addr.form.encode(c.subject(m.Topic), m, adapter.Live)
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	if msg.Header[hRequest] = []string{"1"}; c.addr.form == structured {
		msg.Header[hMode] = []string{typeCEJS} // as write does where there are headers
	}
	return msg
}

func (q *request) heard(msg *nats.Msg) {
	if noResponders(msg) {
		if q.later() {
			return
		}
		q.tell(adapter.Reply{Err: adapter.ErrNobody})
		return
	}
	q.tell(q.read(msg))
}

// later asks once more after a while, if the subscribers may be on their way back.
func (q *request) later() bool {
	back := q.c.backAt.Load()
	if back == nil || time.Since(*back) > believeAfter {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.stopped {
		q.again = time.AfterFunc(askAgain, func() {
			if err := q.c.sendLive(q.msg, q.topic, ""); err != nil {
				q.tell(adapter.Reply{Err: fmt.Errorf("%w: %w", adapter.ErrNobody, err)})
			}
		})
	}
	return true
}

// read makes a Reply of what has come.
func (q *request) read(msg *nats.Msg) adapter.Reply {
	for k, v := range msg.Header {
		if strings.EqualFold(k, hNone) && len(v) > 0 {
			why, err := unpct(v[0])
			return adapter.Reply{Err: errors.Join(err, errors.New(why))}
		}
	}
	var a answer
	if len(msg.Header) == 0 && json.Unmarshal(msg.Data, &a) == nil && a.Stream != "" && (a.Seq > 0 || a.Error != nil) {
		return adapter.Reply{Err: fmt.Errorf("stream %s stores what is asked on %s, and answers to that: ask on a subject of no stream", a.Stream, q.msg.Subject)}
	}
	reply := new(adapter.Message)
	if err := decodeInto(reply, q.topic, msg.Header, msg.Data); err != nil {
		return adapter.Reply{Err: fmt.Errorf("natsbus: %s: a reply from %q cannot be decoded: %w", q.topic, reply.Source, err)}
	}
	return adapter.Reply{Message: reply}
}

func (q *request) tell(a adapter.Reply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return
	}
	q.stopped = errors.Is(a.Err, adapter.ErrNobody) || errors.Is(a.Err, adapter.ErrClosed) // nothing comes after these
	q.reply(a)
}

func (q *request) stop() {
	q.c.mux.forget(q.token)
	q.mu.Lock()
	q.stopped = true
	if q.again != nil {
		q.again.Stop()
	}
	q.mu.Unlock()
	q.c.mu.Lock()
	delete(q.c.asked, q)
	q.c.mu.Unlock()
}

// requests are those that wait for replies and that f picks.
func (c *conn) requests(f func(*request) bool) (qs []*request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for q := range c.asked {
		if f(q) {
			qs = append(qs, q)
		}
	}
	return qs
}

// doubtRequests says that the connection was lost: a reply may come still, from who has
// the request, or none.
func (c *conn) doubtRequests() {
	for _, q := range c.requests(func(*request) bool { return true }) {
		q.tell(adapter.Reply{Err: fmt.Errorf("natsbus: the connection to %s was lost meanwhile: %w", c.addr.public, adapter.ErrInDoubt)})
	}
}

// deny ends requests that the server has refused.
func (c *conn) deny(subject string) {
	for _, q := range c.requests(func(q *request) bool { return q.msg.Subject == subject }) {
		q.tell(adapter.Reply{Err: fmt.Errorf("%w: %w", adapter.ErrNobody, denied(subject))})
	}
}

// unask ends all requests when the adapter closes.
func (c *conn) unask() {
	for _, q := range c.requests(func(*request) bool { return true }) {
		q.tell(adapter.Reply{Err: errClosed})
	}
}

// replier replies to who has published a live message; it is nil if that was no
// request. A message that is to be stored has a subject for replies too, where the
// acknowledgement goes.
func (c *conn) replier(m *nats.Msg) func(adapter.Reply) error {
	ours := false
	for k := range m.Header {
		switch {
		case len(k) > 5 && strings.EqualFold(k[:5], "Nats-"):
			return nil
		case strings.EqualFold(k, hRequest):
			ours = true
		}
	}
	subject, topic := m.Reply, c.topic(m.Subject)
	return func(a adapter.Reply) error {
		switch {
		case a.Message != nil:
			return c.sendLive(c.addr.form.encode(subject, a.Message, adapter.Live), topic, "")
		case ours:
			why := strings.ToValidUTF8(fmt.Sprintf("%.1000s", fmt.Sprint(a.Err)), "")
			return c.sendLive(&nats.Msg{Subject: subject, Header: nats.Header{hNone: {pct(why)}}}, topic, "")
		}
		return nil
	}
}
