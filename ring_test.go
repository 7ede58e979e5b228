package tidings

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// reader is what one queue of a ring should do: a slice of its own.
type reader struct {
	q       *queue
	w       *worker
	waiting []uint64
	hand    []uint64
	ever    uint64
	idle    <-chan struct{} // asked for when it was not
	closed  bool
}

// rings is several queues that read one ring, or had.
type rings struct {
	bound uint64
	host  *host
	next  uint64
	all   []*reader
}

func (m *rings) join() *reader {
	r := &reader{q: newQueue(int(m.bound), nil)}
	r.w = &worker{queue: r.q, limit: 3, alone: true}
	if m.host == nil {
		m.host = &host{ring: r.q.ring.Load()}
	}
	m.host.take(r.q)
	m.all = append(m.all, r)
	return r
}

// publish offers one event to each ring that there is.
func (m *rings) publish(t *rapid.T) {
	m.next++
	done := map[*ring]bool{}
	for _, x := range m.all {
		r := x.q.ring.Load()
		if done[r] {
			continue
		}
		done[r] = true
		h := &share{ring: r}
		h.see()
		room := true
		for _, y := range m.all {
			if y.q.ring.Load() == r && (y.closed || uint64(len(y.waiting)+len(y.hand)) >= m.bound) {
				room = false
			}
		}
		if ok := h.offer(t.Context(), &Event{num: m.next}); ok != room {
			t.Fatalf("offer %d: %v with room %v", m.next, ok, room)
		}
		for _, y := range m.all {
			if room && y.q.ring.Load() == r {
				y.waiting = append(y.waiting, m.next)
				y.ever++
			}
		}
	}
}

// Queues that share a ring do, each, what a slice of their own would do; whoever
// leaves takes along what it has not had, and disturbs nobody.
func TestSharedRingAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &rings{bound: uint64(rapid.IntRange(1, 20).Draw(t, "bound"))}
		for range rapid.IntRange(1, 4).Draw(t, "readers") {
			m.join()
		}
		some := func(t *rapid.T) *reader { return rapid.SampledFrom(m.all).Draw(t, "reader") }
		numbers := func(items []item) (n []uint64) {
			for _, it := range items {
				n = append(n, it.event.num)
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": m.publish,
			"join":    func(*rapid.T) { m.join() },
			"take": func(t *rapid.T) {
				x := some(t)
				if len(x.waiting) == 0 && !x.closed {
					t.Skip("would wait")
				}
				x.hand = nil
				if ok := x.q.take(x.w); ok != (len(x.waiting) > 0) {
					t.Fatalf("take: %v of %v", ok, x.waiting)
				}
				n := len(x.w.batch)
				x.hand, x.waiting = x.waiting[:n], x.waiting[n:]
			},
			"part": func(t *rapid.T) { some(t).q.part() },
			"close": func(t *rapid.T) {
				x := some(t)
				x.q.close()
				x.closed = true
			},
			"clear": func(t *rapid.T) {
				x := some(t)
				if got := numbers(x.q.clear()); !slices.Equal(got, x.waiting) {
					t.Fatalf("clear: %v of %v", got, x.waiting)
				}
				x.waiting, x.closed = nil, true
			},
			"": func(t *rapid.T) {
				for i, x := range m.all {
					if got := numbers(x.w.batch); !slices.Equal(got, x.hand) {
						t.Fatalf("reader %d has %v in hand, not %v", i, got, x.hand)
					}
					if n := x.q.len(); n != len(x.waiting) {
						t.Fatalf("reader %d: %d wait, not %v", i, n, x.waiting)
					}
					x.checkIdle(t)
					x.q.ring.Load().check(t)
				}
			},
		})
	})
}

func (x *reader) checkIdle(t *rapid.T) {
	idle, ever := x.q.whenIdle()
	if ever != x.ever {
		t.Fatalf("accepted %d events, not %d", ever, x.ever)
	}
	none := len(x.waiting)+len(x.hand) == 0
	if (idle == closedChan) != none {
		t.Fatalf("idle %v with %v and %v", !none, x.waiting, x.hand)
	}
	if !none {
		x.idle = idle
	} else if x.idle != nil {
		select {
		case <-x.idle:
		default:
			t.Fatal("who waits for the queue to be idle is not told")
		}
	}
}

// check looks for what is not seen from outside: that nothing is kept alive, and
// that what is counted is right.
func (r *ring) check(t *rapid.T) {
	low, atLow := r.tail, 0
	for i, q := range r.readers {
		low = min(low, q.head)
		if q.at != i || q.ring.Load() != r {
			t.Fatalf("reader %d believes to be number %d", i, q.at)
		}
	}
	for _, q := range r.readers {
		if q.head == low {
			atLow++
		}
	}
	if r.low != low || r.atLow != atLow {
		t.Fatalf("low is %d with %d readers there, not %d with %d", r.low, r.atLow, low, atLow)
	}
	kept := 0
	for _, it := range r.items {
		if it != (item{}) {
			kept++
		}
	}
	if kept != int(r.tail-r.low) {
		t.Fatalf("%d items are kept, %d are needed", kept, r.tail-r.low)
	}
}

// A view that was made before a queue joined others, or left them, does not offer
// to who is there now as if nothing had happened.
func TestAViewNoticesThatQueuesHaveMoved(t *testing.T) {
	e := &Event{r: &record{}}
	seen := func(q *queue) *share {
		h := &share{ring: q.ring.Load()}
		h.see()
		return h
	}
	a, b := newQueue(8, nil), newQueue(8, nil)
	alone, other := seen(a), seen(b)
	if !a.ring.Load().take(b) {
		t.Fatal("an idle queue may not join")
	}
	if alone.offer(t.Context(), e) || other.offer(t.Context(), e) {
		t.Error("offered to the readers of a ring that one has joined, or to the ring that it has left")
	}
	both := seen(a)
	if !both.offer(t.Context(), e) || a.len() != 1 || b.len() != 1 {
		t.Errorf("%d and %d events wait, want 1 for each", a.len(), b.len())
	}
	b.part()
	if both.offer(t.Context(), e) {
		t.Error("offered to the readers of a ring that one has left")
	}
	if a.ring.Load().take(b) {
		t.Error("a queue that has left its ring joins one again")
	}
}

// A topic whose queues have moved is looked up once more, and only once.
func TestAViewIsMadeAnewOnce(t *testing.T) {
	b, err := New(Options{App: "rings"})
	if err != nil {
		t.Fatal(err)
	}
	h := func(context.Context, Event) error { return nil }
	var subs []*Subscription
	for range 3 {
		s, err := b.Subscribe(t.Context(), "x", h, nil)
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, s)
	}
	views := map[*view]bool{}
	e, err := b.entry("x")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if i == 5 {
			subs[1].lanes[0].part()
		}
		if err := b.Publish(t.Context(), "x", i); err != nil {
			t.Fatal(err)
		}
		views[e.current()] = true
	}
	if len(views) != 2 {
		t.Errorf("%d views, want one before and one after a queue has left", len(views))
	}
	b.remove(subs[0]) // as its Drain does first, while publishers still have the view
	if ReadOneRing(subs[0], subs[2]) || subs[2].host.ring.take(subs[0].lanes[0]) {
		t.Error("a subscription that ends shares a ring")
	}
	b.mu.Lock()
	b.subs[subs[0]] = struct{}{} // for Drain to find
	b.mu.Unlock()
	if err := b.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}
