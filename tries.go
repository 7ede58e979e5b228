package tidings

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// maxTries bounds the durable events whose failures are remembered. A broker has
// fewer than that in delivery for a process.
const maxTries = 100_000

// triesKept is how long one is remembered of which nothing more was heard: another
// process of the group may have handled it.
const triesKept = time.Hour

// tries counts what the handlers of durable events did, by the event's place in
// its stream: what the broker counts are deliveries, and those are no failures. It
// belongs to the bus and outlives subscriptions and connections, not the process.
type tries struct {
	n  atomic.Int64 // len(m): most buses have none, and then no lock is taken
	mu sync.Mutex
	m  map[tryKey]*try
}

// tryKey has the event's id too: a stream that is made anew counts from 1 again.
type tryKey struct {
	group, pattern string
	seq            uint64
	id             string
}

// try is what is known of one event.
type try struct {
	failures    int
	first, last time.Time
	letter      *adapter.DeadLetter // it was given up, and its letter is not stored yet
}

func (s *Subscription) tryKey(e Event) tryKey {
	return tryKey{s.opts.Group, s.pattern, e.r.seq, e.ID()}
}

func (t *tries) find(k tryKey) (found try) {
	if t.n.Load() == 0 {
		return found
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.m[k]; x != nil {
		found = *x
	}
	return found
}

// failed counts one more failure.
func (t *tries) failed(k tryKey) try {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.get(k, now)
	x.failures++
	x.last = now
	return *x
}

// giveUp remembers the letter of an event until it is stored.
func (t *tries) giveUp(k tryKey, l *adapter.DeadLetter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.get(k, time.Now()).letter = l
}

// get is called with mu held.
func (t *tries) get(k tryKey, now time.Time) *try {
	x := t.m[k]
	if x == nil {
		t.makeRoom(now)
		x = &try{first: now, last: now}
		t.m[k] = x
		t.n.Store(int64(len(t.m)))
	}
	return x
}

// makeRoom forgets what is old, or else anything: an event that is forgotten gets
// more attempts than it should.
func (t *tries) makeRoom(now time.Time) {
	if t.m == nil {
		t.m = map[tryKey]*try{}
	}
	if len(t.m) < maxTries {
		return
	}
	for k, x := range t.m {
		if now.Sub(x.last) > triesKept {
			delete(t.m, k)
		}
	}
	for k := range t.m {
		if len(t.m) < maxTries {
			return
		}
		delete(t.m, k)
	}
}

func (t *tries) forget(k tryKey) {
	if t.n.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, k)
	t.n.Store(int64(len(t.m)))
}
