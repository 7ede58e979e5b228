// Package memory joins buses of one process without a broker: it is the
// reference adapter, and a transport for tests. Importing it registers the
// scheme "mem"; all that opens the same mem:NAME is joined.
//
// It keeps every promise of package adapter, the durable ones too, for as long
// as the process lives: what is durable is kept under NAME when all have closed,
// and nothing is ever written to a disk.
package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

func init() { adapter.Register("mem", Open) }

// maxQueued bounds what waits for one live subscription.
const maxQueued = 65536

var (
	hubsMu sync.Mutex
	hubs   = map[string]*hub{}

	errClosed = fmt.Errorf("memory: %w", adapter.ErrClosed)
)

// A hub is what all adapters of one name share. Nothing of the caller's runs
// while mu is held.
type hub struct {
	mu     sync.Mutex
	routes []string // patterns that are kept
	log    []*stored
	groups map[groupKey]*group
	live   []*subscription

	letters []*letter
	given   map[givenKey]bool
	later   map[laterKey]*time.Timer
}

type groupKey struct{ group, pattern string }

// stored is one durable message.
type stored struct {
	seq     uint64
	subject string
	at      time.Time
	msg     adapter.Message
	only    *group // nil: for everybody
}

// store keeps a message. It is called with mu held.
func (h *hub) store(subject string, msg adapter.Message, only *group) *stored {
	st := &stored{seq: uint64(len(h.log) + 1), subject: subject, at: time.Now(), msg: msg, only: only}
	h.log = append(h.log, st)
	return st
}

// A group is a durable group: what waits for it, in order, and who takes it.
type group struct {
	queue   []*task
	members []*subscription
	open    map[uint64]bool // places of what it has not settled
	replay  *replaying      // the one that was begun last
}

// wait adds a message to what waits.
func (g *group) wait(st *stored) {
	g.open[st.seq] = true
	g.queue = append(g.queue, &task{stored: st})
}

// A task is one message for one group.
type task struct {
	*stored
	attempt int
	begun   int // since there was an outcome
}

func hubOf(name string) *hub {
	hubsMu.Lock()
	defer hubsMu.Unlock()
	h := hubs[name]
	if h == nil {
		h = &hub{groups: map[groupKey]*group{}, given: map[givenKey]bool{}, later: map[laterKey]*time.Timer{}}
		hubs[name] = h
	}
	return h
}

// conn is one adapter.
type conn struct {
	hub     *hub
	cfg     adapter.Config
	url     string
	closed  atomic.Bool
	dropped atomic.Uint64

	mu    sync.Mutex
	subs  map[*subscription]struct{}
	asked map[*request]struct{} // that wait for replies
}

// Open joins the hub that url names; it is the [adapter.Opener] of this package.
func Open(ctx context.Context, url string, cfg adapter.Config) (adapter.Adapter, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("memory: %w", context.Cause(ctx))
	}
	name, ok := strings.CutPrefix(url, "mem:")
	if !ok || name == "" {
		return nil, errors.New(`memory: the URL is not of the form mem:NAME`)
	}
	c := &conn{hub: hubOf(name), cfg: cfg, url: url,
		subs: map[*subscription]struct{}{}, asked: map[*request]struct{}{}}
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	for _, p := range cfg.Durable {
		if s := c.subject(p); !slices.Contains(c.hub.routes, s) {
			c.hub.routes = append(c.hub.routes, s)
		}
	}
	return c, nil
}

// name is that of the hub.
func (c *conn) name() string { return strings.TrimPrefix(c.url, "mem:") }

func (c *conn) subject(s string) string {
	if c.cfg.Prefix == "" {
		return s
	}
	return c.cfg.Prefix + "." + s
}

func (c *conn) topic(s string) string {
	if c.cfg.Prefix == "" {
		return s
	}
	return strings.TrimPrefix(s, c.cfg.Prefix+".")
}

// Caps implements [adapter.Adapter].
func (c *conn) Caps() adapter.Caps { return adapter.Caps{Durable: true, Delay: true} }

// Publish implements [adapter.Adapter]. Every subscription has the message
// when it returns.
func (c *conn) Publish(ctx context.Context, m *adapter.Message, class adapter.Class) error {
	if c.closed.Load() {
		return errClosed
	}
	subject, msg := c.subject(m.Topic), travelling(m)
	if class == adapter.Durable && ctx.Err() != nil {
		return fmt.Errorf("memory: %s: not sent: %w", m.Topic, context.Cause(ctx))
	}
	if !m.NotBefore.IsZero() {
		return c.delay(subject, msg, class)
	}
	c.hub.mu.Lock()
	full, err := c.hub.publish(subject, msg, class)
	c.hub.mu.Unlock()
	dropped(full)
	return err
}

// travelling is a copy of a message as another process would get it.
func travelling(m *adapter.Message) adapter.Message {
	msg := *m
	msg.Served = slices.Clone(m.Served)
	msg.Time = m.Time.Round(0) // a monotonic reading does not travel
	return msg
}

// PublishAsync implements [adapter.AsyncPublisher]: nothing here takes time.
func (c *conn) PublishAsync(ctx context.Context, m *adapter.Message, class adapter.Class, done func(error)) error {
	if err := c.Publish(ctx, m, class); err != nil {
		return err
	}
	done(nil)
	return nil
}

// dropped tells of subscriptions that had no room.
func dropped(full []*subscription) {
	for _, s := range full {
		s.c.dropped.Add(1)
		s.c.report(fmt.Errorf("memory: %s: an event was dropped: the subscription did not keep up with %d waiting", s.spec.Pattern, maxQueued))
	}
}

// publish hands a message to everybody and returns the subscriptions that had
// no room. It is called with mu held.
func (h *hub) publish(subject string, msg adapter.Message, class adapter.Class) (full []*subscription, err error) {
	if class == adapter.Durable {
		if !slices.ContainsFunc(h.routes, func(p string) bool { return topic.Covers(p, subject) }) {
			return nil, fmt.Errorf("memory: %s: %w: name it in Config.Durable", subject, adapter.ErrNotDurable)
		}
		st := h.store(subject, msg, nil)
		for key, g := range h.groups {
			if topic.Match(key.pattern, subject) {
				g.wait(st)
				g.dispatch()
			}
		}
	}
	_, full = h.publishLive(subject, msg, nil)
	return full, nil
}

// publishLive gives each subscription without a group a copy, and one member of
// each group another. It returns how many have it, and which had no room.
func (h *hub) publishLive(subject string, msg adapter.Message, reply func(adapter.Reply) error) (n int, full []*subscription) {
	served := map[groupKey]bool{}
	for i := 0; i < len(h.live); i++ {
		s := h.live[i]
		key := groupKey{s.spec.Group, s.subject}
		if !topic.Match(s.subject, subject) || served[key] {
			continue
		}
		if s.spec.Group != "" {
			served[key] = true
			// The others of the group are first next time.
			h.live = append(append(h.live[:i:i], h.live[i+1:]...), s)
			i--
		}
		m := msg
		m.Topic = s.c.topic(subject)
		if s.put(handed{d: adapter.Delivery{Message: m, Attempt: 1, Reply: reply}}, maxQueued) {
			n++
		} else {
			full = append(full, s)
		}
	}
	return n, full
}

// dispatch gives what waits to the members that have room. It is called with
// the hub's mu held.
func (g *group) dispatch() {
	for len(g.queue) > 0 {
		i := slices.IndexFunc(g.members, func(s *subscription) bool { return len(s.taken) < s.limit() })
		if i < 0 {
			return
		}
		s, t := g.members[i], g.queue[0]
		g.members = append(slices.Delete(g.members, i, i+1), s)
		g.queue = g.queue[1:]
		t.attempt++
		x := &settler{s: s, t: t}
		s.taken[t] = x
		m := t.msg
		m.Topic = s.c.topic(t.subject)
		s.put(handed{d: adapter.Delivery{Message: m, Sequence: t.seq, Attempt: t.attempt, Settle: x}}, 0)
	}
}

// again puts a task back in its place.
func (g *group) again(t *task) {
	i, _ := slices.BinarySearchFunc(g.queue, t.seq, func(a *task, seq uint64) int {
		switch {
		case a.seq < seq:
			return -1
		case a.seq > seq:
			return 1
		}
		return 0
	})
	g.queue = slices.Insert(g.queue, i, t)
	g.dispatch()
}

// Subscribe implements [adapter.Adapter].
func (c *conn) Subscribe(_ context.Context, spec adapter.Spec) (adapter.Subscription, error) {
	s := newSubscription(c, spec)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return nil, errClosed
	}
	if err := c.hub.join(s); err != nil {
		return nil, err
	}
	c.subs[s] = struct{}{}
	s.start()
	return s, nil
}

func (h *hub) join(s *subscription) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !s.spec.Durable {
		h.live = append(h.live, s)
		return nil
	}
	if !slices.ContainsFunc(h.routes, func(p string) bool { return topic.Covers(p, s.subject) }) {
		return fmt.Errorf("memory: %q: %w: name it in Config.Durable of the publisher", s.spec.Pattern, adapter.ErrNotDurable)
	}
	key := groupKey{s.spec.Group, s.subject}
	g := h.groups[key]
	if g == nil {
		g = &group{open: map[uint64]bool{}}
		for _, st := range h.log {
			if st.only == nil && topic.Match(s.subject, st.subject) {
				g.wait(st)
			}
		}
		h.groups[key] = g
	}
	s.group = g
	g.members = append(g.members, s)
	g.dispatch()
	return nil
}

// leave takes a subscription out: it gets nothing more.
func (h *hub) leave(s *subscription) {
	is := func(o *subscription) bool { return o == s }
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live = slices.DeleteFunc(h.live, is)
	if s.group != nil {
		s.group.members = slices.DeleteFunc(s.group.members, is)
	}
}

// Stats implements [adapter.Adapter].
func (c *conn) Stats() adapter.Stats {
	return adapter.Stats{Connected: !c.closed.Load(), URL: c.url, Dropped: c.dropped.Load()}
}

func (c *conn) report(err error) {
	if c.cfg.Logger != nil {
		c.cfg.Logger.Error(err.Error())
	}
	if c.cfg.OnError != nil {
		c.cfg.OnError(err)
	}
}

// Drain implements [adapter.Adapter]. Nothing waits between Publish and the
// subscriptions, so it is the same as Close.
func (c *conn) Drain(context.Context) error { return c.Close() }

// Close implements [adapter.Adapter].
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed.Store(true)
	subs, asked := c.subs, slices.Collect(maps.Keys(c.asked))
	c.subs = map[*subscription]struct{}{}
	c.mu.Unlock()
	for s := range subs {
		s.cut()
	}
	for _, q := range asked {
		q.heard(adapter.Reply{Err: errClosed})
	}
	return nil
}
