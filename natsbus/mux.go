package natsbus

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
)

// A mux receives every answer that this process waits for on one subscription:
// a subscription for each would cost the server more than the answer does, and
// jetstream's own is cleared when the connection breaks.
type mux struct {
	prefix string // with the last dot
	sub    *nats.Subscription
	last   atomic.Uint64
	mu     sync.Mutex
	waits  map[string]func(*nats.Msg)
}

func newMux(nc *nats.Conn) (*mux, error) {
	m := &mux{prefix: nc.NewInbox() + ".", waits: map[string]func(*nats.Msg){}}
	sub, err := nc.Subscribe(m.prefix+"*", m.receive)
	if err != nil {
		return nil, err
	}
	m.sub = sub
	// Only answers to what we sent arrive here; none may be dropped.
	return m, sub.SetPendingLimits(-1, -1)
}

func (m *mux) receive(msg *nats.Msg) {
	token := strings.TrimPrefix(msg.Subject, m.prefix)
	m.mu.Lock()
	f := m.waits[token]
	m.mu.Unlock()
	if f != nil {
		f(msg)
	}
}

// expect returns a token whose answers go to f, on the mux's goroutine, until
// forget.
func (m *mux) expect(f func(*nats.Msg)) string {
	token := strconv.FormatUint(m.last.Add(1), 36)
	m.mu.Lock()
	m.waits[token] = f
	m.mu.Unlock()
	return token
}

func (m *mux) forget(token string) {
	m.mu.Lock()
	delete(m.waits, token)
	m.mu.Unlock()
}

func (m *mux) subject(token string) string { return m.prefix + token }

// noResponders reports whether an answer says that nobody is there.
func noResponders(msg *nats.Msg) bool {
	return len(msg.Data) == 0 && msg.Header.Get("Status") == "503"
}
