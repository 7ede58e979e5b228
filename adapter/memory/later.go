package memory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// A message that waits for its time is known by these.
type laterKey struct{ subject, id string }

// delay keeps a message until it is due. One of the same topic and id that waits
// gives way.
func (c *conn) delay(subject string, msg adapter.Message, class adapter.Class) error {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if class != adapter.Durable || !slices.ContainsFunc(h.routes, func(p string) bool { return topic.Covers(p, subject) }) {
		return fmt.Errorf("memory: %s: only durable events can be delayed: %w: name it in Config.Durable", msg.Topic, adapter.ErrNotDurable)
	}
	key := laterKey{subject, msg.ID}
	if old := h.later[key]; old != nil {
		old.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(msg.NotBefore), func() {
		h.mu.Lock()
		if h.later[key] != timer {
			h.mu.Unlock()
			return // cancelled or replaced at this moment
		}
		delete(h.later, key)
		full, _ := h.publish(subject, msg, class) // the route was there
		h.mu.Unlock()
		dropped(full)
	})
	h.later[key] = timer
	return nil
}

// Cancel implements [adapter.Canceler].
func (c *conn) Cancel(_ context.Context, topic, id string) (bool, error) {
	if c.closed.Load() {
		return false, errClosed
	}
	h, key := c.hub, laterKey{c.subject(topic), id}
	h.mu.Lock()
	defer h.mu.Unlock()
	timer := h.later[key]
	if timer == nil {
		return false, nil
	}
	timer.Stop()
	delete(h.later, key)
	return true, nil
}
