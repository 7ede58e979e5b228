package memory

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// maxLetters bounds the dead letters of a hub.
const maxLetters = 100_000

// A letter is a dead letter and whom to give its event again.
type letter struct {
	adapter.DeadLetter
	subject string
	key     groupKey
}

// Begin implements [adapter.Settler].
func (x *settler) Begin(deaths func(int, error)) {
	h := x.s.c.hub
	h.mu.Lock()
	n := x.t.begun
	x.t.begun++
	h.mu.Unlock()
	deaths(n, nil)
}

// Dead implements [adapter.Settler].
func (x *settler) Dead(l *adapter.DeadLetter, confirmed func(error)) {
	s, h := x.s, x.s.c.hub
	err := fmt.Errorf("memory: event %d was handed back before it became a dead letter: %w", x.t.seq, adapter.ErrClosed)
	x.settle(func() {
		key := groupKey{s.spec.Group, s.subject}
		l.ID = fmt.Sprintf("%s:%d:%s|%s", s.c.name(), x.t.seq, key.group, key.pattern)
		l.Event, l.Stream, l.Sequence, l.Deliveries = x.t.msg, s.c.name(), x.t.seq, x.t.attempt
		l.Event.Topic = s.c.topic(x.t.subject)
		if err = h.bury(&letter{DeadLetter: *l, subject: x.t.subject, key: key}); err != nil {
			x.after(letterAgain)
			return
		}
		x.done()
	})
	confirmed(err)
}

// bury keeps a letter. It is called with mu held.
func (h *hub) bury(l *letter) error {
	switch {
	case slices.ContainsFunc(h.letters, func(o *letter) bool { return o.ID == l.ID }):
		return nil
	case len(h.letters) >= maxLetters:
		return fmt.Errorf("memory: %w: %d dead letters: redrive or drop some", adapter.ErrFull, maxLetters)
	}
	h.letters = append(h.letters, l)
	return nil
}

// of reports whether a letter is of the adapter's prefix.
func (c *conn) of(l *letter) bool { return topic.Match(c.subject(">"), l.subject) }

// Letters implements [adapter.DeadLetters].
func (c *conn) Letters(context.Context) iter.Seq2[*adapter.DeadLetter, error] {
	return func(yield func(*adapter.DeadLetter, error) bool) {
		c.hub.mu.Lock()
		letters := slices.Clone(c.hub.letters)
		c.hub.mu.Unlock()
		for _, l := range letters {
			if out := l.DeadLetter; c.of(l) && !yield(&out, nil) {
				return
			}
		}
	}
}

// Letter implements [adapter.DeadLetters].
func (c *conn) Letter(_ context.Context, id string) (*adapter.DeadLetter, error) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	i, err := c.find(id)
	if err != nil {
		return nil, err
	}
	out := c.hub.letters[i].DeadLetter
	return &out, nil
}

// find is called with the hub's mu held.
func (c *conn) find(id string) (int, error) {
	i := slices.IndexFunc(c.hub.letters, func(l *letter) bool { return l.ID == id && c.of(l) })
	if i < 0 {
		return i, fmt.Errorf("memory: %w: %q", adapter.ErrNoLetter, id)
	}
	return i, nil
}

// Redeliver implements [adapter.DeadLetters].
func (c *conn) Redeliver(_ context.Context, id string) error {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := c.find(id)
	if err != nil {
		return err
	}
	l := h.letters[i]
	if err := h.give(l.subject, l.Event, l.key); err != nil {
		return fmt.Errorf("memory: redrive %s: %w", id, err)
	}
	h.letters = slices.Delete(h.letters, i, i+1)
	return nil
}

// Drop implements [adapter.DeadLetters].
func (c *conn) Drop(_ context.Context, id string) error {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	i, err := c.find(id)
	if err == nil {
		c.hub.letters = slices.Delete(c.hub.letters, i, i+1)
	}
	return err
}

// Give implements [adapter.Giver].
func (c *conn) Give(_ context.Context, m *adapter.Message, group, pattern, key string) error {
	to := groupKey{group, c.subject(pattern)}
	if !topic.Match(pattern, m.Topic) {
		return fmt.Errorf("memory: give %s to group %q: its pattern %q does not match the topic", m.Topic, group, pattern)
	}
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	once := givenKey{to, key}
	if h.given[once] {
		return nil
	}
	if err := h.give(c.subject(m.Topic), *m, to); err != nil {
		return fmt.Errorf("memory: give %s to group %q: %w", m.Topic, group, err)
	}
	h.given[once] = true
	return nil
}

type givenKey struct {
	to  groupKey
	key string
}

// give stores a message for one group alone. It is called with mu held.
func (h *hub) give(subject string, m adapter.Message, to groupKey) error {
	g := h.groups[to]
	if g == nil {
		return fmt.Errorf("%w: there is no group %q of %q: start it once", adapter.ErrNotDurable, to.group, to.pattern)
	}
	g.wait(h.store(subject, m, g))
	g.dispatch()
	return nil
}
