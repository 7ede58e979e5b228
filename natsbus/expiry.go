package natsbus

import (
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// hTTL tells nats-server to forget a message by itself.
const hTTL = "Nats-TTL"

// addTTL has the server forget a message when it has expired, where its stream can do
// that. It counts in whole seconds, at least one.
func (c *conn) addTTL(msg *nats.Msg, m *adapter.Message) {
	if m.Expires.IsZero() || !slices.ContainsFunc(*c.forgetful.Load(), func(p string) bool { return topic.Covers(p, msg.Subject) }) {
		return
	}
	ttl := max(time.Until(m.Expires), time.Second)
	msg.Header[hTTL] = []string{(ttl + time.Second - 1).Truncate(time.Second).String()}
}
