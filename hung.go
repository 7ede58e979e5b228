package tidings

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// hungHandlers looks at the workers from time to time while any of them has
// events, and names handlers that do not return. It costs handlers nothing: what
// it compares is the count that workers keep anyway.
type hungHandlers struct {
	bus   *Bus
	awake atomic.Bool
	mu    sync.Mutex // one look at a time
	timer *time.Timer
	over  bool
}

// watched is what was seen of one worker; guarded by hungHandlers.mu.
type watched struct {
	begun uint64
	since time.Time
	hung  *Hung
}

// wake makes sure that somebody looks; called for each batch that is taken.
func (h *hungHandlers) wake() {
	if h.awake.Load() || h.awake.Swap(true) {
		return
	}
	h.later()
}

func (h *hungHandlers) later() {
	every := h.bus.hungPeriod()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.timer = time.AfterFunc(every, h.look)
	}
}

// stop ends it for good.
func (h *hungHandlers) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	if h.timer != nil {
		h.timer.Stop()
	}
}

// look sleeps again once all workers are idle or known to hang.
func (h *hungHandlers) look() {
	if h.scan() {
		h.later()
		return
	}
	h.awake.Store(false)
	if h.scan() { // a worker that took events in between has seen it awake
		h.wake()
	}
}

// scan reports whether there is anything left to wait for.
func (h *hungHandlers) scan() (busy bool) {
	subs, _, _ := h.bus.members()
	var found []*worker
	h.mu.Lock()
	for _, s := range subs {
		for _, w := range s.workers {
			known := w.watch.hung
			busy = !h.over && h.check(w) || busy
			if w.watch.hung != nil && known == nil {
				found = append(found, w)
			}
		}
	}
	h.mu.Unlock()
	for _, w := range found {
		h.tell(w)
	}
	return busy
}

// tell is called with no lock held.
func (h *hungHandlers) tell(w *worker) {
	hung := h.of(w)
	if hung == nil {
		return // it has returned after all
	}
	h.bus.inside(func() {
		h.bus.opts.Logger.Warn("tidings: a handler does not return; its subscription waits for it",
			append(w.sub.logged(), "topic", hung.Event.Topic(), "id", hung.Event.ID(),
				"subscribed_at", w.sub.where(), "since", hung.Since, "stack", string(hung.Stack))...)
	})
}

// check compares one worker with what was seen of it last; whether to look again.
func (h *hungHandlers) check(w *worker) (wait bool) {
	e, begun, running := w.current()
	seen := &w.watch
	switch {
	case !running:
		seen.hung, seen.since = nil, time.Time{}
		return false
	case seen.begun != begun || seen.since.IsZero() || w.paused.Load():
		seen.begun, seen.since, seen.hung = begun, time.Now(), nil
		return true
	case seen.hung != nil:
		return false
	case time.Since(seen.since) < w.sub.opts.HungAfter:
		return true
	}
	seen.hung = &Hung{Event: e, Since: seen.since, Stack: stackOf(w.goroutine.Load())}
	w.sub.counts.hung.Add(1)
	return false
}

// current is the event whose handler runs. Workers change their batch under the
// queue's lock only.
func (w *worker) current() (e Event, begun uint64, running bool) {
	defer w.queue.lock().mu.Unlock()
	begun = w.begun.Load()
	i := int(begun - (w.taken - uint64(len(w.batch)))) // how many of the batch have begun
	if !w.busy || i == 0 {
		return Event{}, begun, w.busy
	}
	return w.batch[i-1].event, begun, true
}

// hungPeriod is often enough for the least patient subscription.
func (b *Bus) hungPeriod() time.Duration {
	least := 4 * time.Second
	subs, _, _ := b.members()
	for _, s := range subs {
		least = min(least, s.opts.HungAfter)
	}
	return max(least/4, 10*time.Millisecond)
}

// stackOf finds one goroutine in a dump of all: the runtime has no call for one.
func stackOf(goroutine uint64) []byte {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		n := runtime.Stack(buf, true)
		if n == size && size < 1<<24 {
			continue
		}
		head := fmt.Appendf(nil, "goroutine %d [", goroutine)
		for stack := range bytes.SplitSeq(buf[:n], []byte("\n\n")) {
			if bytes.HasPrefix(stack, head) {
				return bytes.Clone(stack)
			}
		}
		return nil
	}
}
