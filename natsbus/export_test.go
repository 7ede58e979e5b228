package natsbus

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// SetAckWait changes the ack wait of the consumers that are opened until the test
// ends. No subscription may be open.
func SetAckWait(t testing.TB, d time.Duration) {
	before := ackWait
	ackWait = d
	t.Cleanup(func() { ackWait = before })
}

// SetLagOld changes how long what was heard of a lag is believed, until the test
// ends. No subscription may be open.
func SetLagOld(t testing.TB, d time.Duration) {
	before := lagOld
	lagOld = d
	t.Cleanup(func() { lagOld = before })
}

// Dials is how often the connection was begun.
func Dials(a adapter.Adapter) uint64 { return a.(*conn).dials.Load() }

// StopAt has f called at each named point of spooling.
func StopAt(f func(point string)) { stopAt = f }

// SetSpoolClock sets the clock of the spools that are opened from now on.
func SetSpoolClock(now func() time.Time) { spoolNow = now }

// Deafen takes the subscription's inbox away behind its back: it is alive, its
// pulls are served, and it hears nothing.
func Deafen(s adapter.Subscription) error { return s.(*durable).subscription().Unsubscribe() }

// MaxReconnects is what nats.go was told.
func MaxReconnects(a adapter.Adapter) int { return a.(*conn).nc.Opts.MaxReconnect }

// Received is how many messages the connection got: events, answers and the rest.
func Received(a adapter.Adapter) uint64 { return a.(*conn).nc.Stats().InMsgs }

// Dialed has the subscription believe that a connection was begun just now, of
// which nobody has told it yet; after what before asks of it, and before any answer
// to that.
func Dialed(s adapter.Subscription, before func()) {
	d := s.(*durable)
	d.inOneTurn(before, func() { d.c.dials.Add(1) })
}

// Late has the subscription find the answer to what before asks of it late, and
// repeat the question; the answer to that one is lost.
func Late(s adapter.Subscription, before func()) {
	d := s.(*durable)
	d.inOneTurn(before, func() {
		d.line.asked.at = time.Time{}
		d.repeatLine(time.Millisecond)
		d.c.mux.forget(d.line.asked.token)
	})
}

// inOneTurn has the loop do what before posts, and then f, with nothing between.
func (d *durable) inOneTurn(before, f func()) {
	held, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d.post(func() { close(held); <-goOn })
	<-held
	before()
	d.post(func() { f(); close(done) })
	close(goOn)
	<-done
}

// Bounds of what waits.
const (
	MaxItems = maxItems
	MaxBytes = maxBytes
)

// Batches has every outbox believe that batches win, from 32 events on, or never do.
func Batches(a adapter.Adapter, win bool) {
	w := a.(*conn).w
	w.call(func() {
		for _, o := range w.boxes {
			o.pace = pace{each: time.Hour, eachAt: time.Now().Add(time.Hour)}
			o.pace.batches[size(batchFrom)] = 1
			if !win {
				o.pace.closed = time.Now().Add(time.Hour)
			}
		}
	})
}

// TakesBatches reports whether any stream does.
func TakesBatches(a adapter.Adapter) bool {
	w := a.(*conn).w
	takes := false
	w.call(func() { takes = slices.ContainsFunc(w.boxes, func(o *outbox) bool { return o.batches }) })
	return takes
}

// Held calls f n times concurrently, such that so many events wait before the first is
// written.
func Held(a adapter.Adapter, n, wait int, f func(i int)) {
	w := a.(*conn).w
	held, goOn := make(chan struct{}), make(chan struct{})
	w.post(note{kind: noteDo, do: func() { close(held); <-goOn }})
	<-held
	before := w.buffered()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	for w.buffered() < before+wait {
		runtime.Gosched()
	}
	close(goOn)
	wg.Wait()
}

// BeforeDown calls f when the writer is about to learn that cut has broken the
// connection, and does nothing else.
func BeforeDown(a adapter.Adapter, cut, f func()) {
	w := a.(*conn).w
	hold := func(held, goOn chan struct{}) {
		w.post(note{kind: noteDo, do: func() { close(held); <-goOn }})
	}
	down := func() bool {
		w.notes.mu.Lock()
		defer w.notes.mu.Unlock()
		return slices.ContainsFunc(w.notes.items, func(n note) bool { return n.kind == noteDown })
	}
	held, goOn := make(chan struct{}), make(chan struct{})
	hold(held, goOn)
	<-held
	next, finish := make(chan struct{}), make(chan struct{})
	hold(next, finish) // taken together with what cut brings
	for cut(); !down(); {
		runtime.Gosched()
	}
	close(goOn)
	<-next
	defer close(finish)
	f()
}

// Queued is how many durable events the writer has not taken yet.
func Queued(a adapter.Adapter) int {
	w := a.(*conn).w
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.keep.items)
}

// Unacked is how many durable events were written and not acknowledged.
func Unacked(a adapter.Adapter) (n int) {
	w := a.(*conn).w
	w.call(func() {
		for _, o := range w.boxes {
			n += len(o.unacked)
		}
	})
	return n
}

// Waiting is how many events have no outcome because their stream is full.
func Waiting(a adapter.Adapter) int {
	f := &a.(*conn).full
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.items)
}

// HoldKeeper has whoever asks for room in a full stream wait.
func HoldKeeper(a adapter.Adapter) {
	c := a.(*conn)
	c.keeper.run.StopAndWait()
	c.keeper = &keeper{c: c, asks: make(chan ask), run: loop.Go(func(ctx context.Context) { <-ctx.Done() })}
}

// WillRetry reports whether a request of the adapter found nobody and will be sent
// again.
func WillRetry(a adapter.Adapter) bool {
	return len(a.(*conn).requests(func(q *request) bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.again != nil
	})) > 0
}

// SetMarkEvery changes how often publishers say how much they have sent, and how long
// members are waited for, until the test ends. Nothing may be open.
func SetMarkEvery(t testing.TB, d time.Duration) {
	every, wait := markEvery, tallyWait
	markEvery, tallyWait = d, d
	t.Cleanup(func() { markEvery, tallyWait = every, wait })
}

// Subscriptions is how many the connection has at the server.
func Subscriptions(a adapter.Adapter) int { return a.(*conn).nc.NumSubscriptions() }

// Counted is how many events are known to have been sent to a live subscription.
func Counted(s adapter.Subscription) (sent uint64) {
	h := s.(*live).holes
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.runs {
		if r.base != nil {
			sent += r.last.Sent - r.base.Sent
		}
	}
	return sent
}

// SetPending bounds what waits for a live subscription.
func SetPending(s adapter.Subscription, n int) error {
	return s.(*live).sub.SetPendingLimits(n, -1)
}

// SetWatch changes how often connections that are opened from now on are looked at, and
// when outages are spoken of, until the test ends.
func SetWatch(t testing.TB, interest time.Duration, outage ...time.Duration) {
	was := watchedAt
	if watchedAt.interest = interest; len(outage) > 0 {
		watchedAt.outage = outage
	}
	t.Cleanup(func() { watchedAt = was })
}

// Answers are the subjects of what a connection asked for: ours, and that of nats.go.
func Answers(a adapter.Adapter) []string {
	return []string{a.(*conn).mux.sub.Subject, a.(*conn).answers()}
}

// WayOut is what the log says to do about an error of the connection.
func WayOut(err error) string { return (&address{}).wayOut(err) }

// ReconnectDelay is how long is waited before the n-th try.
func ReconnectDelay(loopback bool, n int) time.Duration { return reconnectDelay(loopback, n) }
