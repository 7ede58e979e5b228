package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// replayAhead is how many copies of a replay wait for a group at most.
const replayAhead = 256

// replaying is how far the replay of a group has come.
type replaying struct {
	filter    string // of subjects
	next, end uint64
}

// Patterns implements [adapter.Replayer].
func (c *conn) Patterns(_ context.Context, group string) ([]string, error) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	var patterns, known []string
	for key := range c.hub.groups {
		switch {
		case !topic.Covers(c.subject(">"), key.pattern):
		case key.group == group:
			patterns = append(patterns, c.topic(key.pattern))
		default:
			known = append(known, key.group)
		}
	}
	if patterns == nil {
		slices.Sort(known)
		return nil, fmt.Errorf("memory: %w: there is no group %q; there are: %s", adapter.ErrNotDurable, group, cmp.Or(strings.Join(slices.Compact(known), ", "), "none"))
	}
	slices.Sort(patterns)
	return patterns, nil
}

// Replay implements [adapter.Replayer].
func (c *conn) Replay(ctx context.Context, req adapter.Replay) (done adapter.Replayed, err error) {
	done, err = c.plan(req)
	for tick := time.Duration(0); err == nil && !req.DryRun && done.Given < done.Events; tick = time.Millisecond {
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			err = context.Cause(ctx)
			continue
		}
		c.giveSome(req, &done)
		if req.Progress != nil {
			req.Progress(done)
		}
	}
	done.Waits = ""
	if err == nil && !req.DryRun {
		done.Next = max(done.Next, done.End+1)
	}
	if err != nil {
		err = fmt.Errorf("memory: replay to group %q of %q: %w", req.Group, req.Pattern, err)
	}
	return done, err
}

func (c *conn) plan(req adapter.Replay) (done adapter.Replayed, err error) {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	done.Stream = c.name()
	g := h.groups[groupKey{req.Group, c.subject(req.Pattern)}]
	if g == nil {
		return done, fmt.Errorf("%w: there is no such group: start it once", adapter.ErrNotDurable)
	}
	r := replaying{next: max(req.From, 1), end: uint64(len(h.log))}
	for seq := range maps.Keys(g.open) {
		r.end = min(r.end, seq-1)
	}
	if req.Resume {
		if g.replay == nil {
			return done, adapter.ErrNoReplay
		}
		r = *g.replay
	} else {
		both, ok := topic.Intersect(req.Pattern, cmp.Or(req.Topics, ">"))
		if !ok {
			return done, fmt.Errorf("no topic matches %q and the group's pattern both", req.Topics)
		}
		r.filter = c.subject(both)
		for _, st := range h.log {
			if st.at.Before(req.Since) {
				r.next = max(r.next, st.seq+1)
			}
			if !req.Until.IsZero() && !st.at.Before(req.Until) {
				r.end = min(r.end, st.seq-1)
			}
		}
	}
	done.Next, done.End = r.next, r.end
	for _, st := range h.log {
		if r.has(st) {
			done.First = cmp.Or(done.First, st.seq)
			done.Events++
		}
	}
	if !req.DryRun && done.Events > 0 {
		g.replay = &r
	}
	return done, nil
}

func (r *replaying) has(st *stored) bool {
	return st.only == nil && r.next <= st.seq && st.seq <= r.end && topic.Match(r.filter, st.subject)
}

// giveSome gives as many as the group has room for.
func (c *conn) giveSome(req adapter.Replay, done *adapter.Replayed) {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[groupKey{req.Group, c.subject(req.Pattern)}]
	r := g.replay
	for room := replayAhead - len(g.queue); r.next <= r.end; r.next++ {
		st := h.log[r.next-1]
		if !r.has(st) {
			continue
		}
		if room--; room < 0 {
			done.Waits = "the group has not taken what waits for it"
			break
		}
		m := st.msg
		m.Header = maps.Clone(m.Header)
		if m.Header == nil {
			m.Header = map[string]string{}
		}
		m.Header[adapter.ReplayHeader] = fmt.Sprint(st.seq)
		g.wait(h.store(st.subject, m, g))
		g.dispatch()
		done.Given++
		done.Waits = ""
	}
	done.Next = r.next
}
