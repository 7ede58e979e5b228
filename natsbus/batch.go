package natsbus

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// Bounds of a batch. The server's own are 1000 messages, and in a cluster what it
// proposes at once.
const (
	batchMost  = 1000
	batchBytes = 4 << 20
	batchExtra = 128 // of headers, at most
)

// A batch is what one commit stores, or nothing of it. nats-server syncs a batch
// once and single events each, from 2.15.2 on; but each batch costs some
// milliseconds, so when to use it is measured (see [pace]).
//
// The failure of a batch is never that of its members: they go singly then, in their
// order and with their ids, and each has its own outcome. An error of any other kind
// than that of the store says that nothing of it was stored. It is staged by the leader,
// in its memory if there are copies, and another leader that gets its end has no
// beginning of it (stream.go, processJetStreamAtomicBatchMsg). One that died with the
// end in hand may have stored all of it, and nobody answers.
type batch struct {
	box   *outbox
	id    string
	items []*item
	token string
	at    time.Time
}

// writeBatch writes what waits as one batch. False: there is nothing to make one of,
// or the connection is gone; nothing was stored then, and all is as before.
func (o *outbox) writeBatch(now time.Time) bool {
	b := &batch{box: o, id: nuid.Next(), at: now}
	size := 0
	for _, it := range o.fresh {
		if len(b.items) == batchMost || size+it.size > batchBytes && size > 0 || !o.fits(it) {
			break
		}
		if it.state.CompareAndSwap(queued, written) {
			b.items = append(b.items, it)
			size += it.size
		}
	}
	if len(b.items) < 2 || !b.write() {
		b.undone()
		return false
	}
	o.fresh = slices.DeleteFunc(o.fresh, func(it *item) bool {
		if it.state.Load() == gone {
			o.w.finish(it, nil)
		}
		return it.state.Load() != queued
	})
	o.batch, o.unacked, o.heard = b, slices.Clone(b.items), now
	return true
}

// fits reports whether an item can be part of a batch. What was written before goes
// singly: one known id has the whole batch refused.
func (o *outbox) fits(it *item) bool {
	return it.first.IsZero() && int64(it.size+batchExtra) <= o.w.c.maxPayload.Load()
}

func (b *batch) write() bool {
	id := []string{b.id}
	for i, it := range b.items {
		it.batch = b
		b.box.mark(it)
		h := it.msg.Header
		h[hBatch], h[hBatchPlace] = id, []string{strconv.Itoa(i + 1)}
		it.msg.Reply = ""
		if i == len(b.items)-1 {
			h[hBatchCommit] = []string{"1"}
			b.token = b.box.w.c.mux.expect(func(m *nats.Msg) { b.box.w.post(note{kind: noteDo, do: func() { b.answered(m) }}) })
			it.msg.Reply = b.box.w.c.mux.subject(b.token)
		}
		if !b.box.w.write(it) || it.state.Load() == done {
			b.forget()
			return false // without its end nothing of it is stored
		}
		it.open++
		if i == len(b.items)/2 {
			stopAt("half a batch")
		}
	}
	stopAt("a batch")
	return true
}

// undone says that nothing was stored by it.
func (b *batch) undone() {
	for _, it := range b.items {
		if it.open = max(it.open-1, 0); it.unsent() {
			b.box.unwritten(it)
		}
	}
}

func (b *batch) forget() {
	if b.token != "" {
		b.box.w.c.mux.forget(b.token)
	}
}

// dissolve makes an item a single one.
func (it *item) dissolve() {
	it.batch = nil
	delete(it.msg.Header, hBatch)
	delete(it.msg.Header, hBatchPlace)
	delete(it.msg.Header, hBatchCommit)
}

// answered takes what the stream says of a batch, perhaps long after its members
// were sent singly.
func (b *batch) answered(m *nats.Msg) {
	o, now := b.box, time.Now()
	var a answer
	err := json.Unmarshal(m.Data, &a)
	if err == nil && a.Error == nil && a.Count == len(b.items) {
		b.stored(a, now)
		return
	}
	if o.batch != b {
		return
	}
	b.forget()
	o.answered(now)
	switch {
	case noResponders(m), a.Error != nil && unavailable(a.Error.ErrCode):
		b.undone()
		for _, it := range b.items {
			it.nobody.Store(true)
		}
		o.later(now)
		return
	case a.Error != nil && a.Error.ErrCode == jsNoBatches:
		o.batches = false
	default:
		o.pace.refused(now)
	}
	if broken(mutantBatchTaken) && a.Error != nil && a.Error.ErrCode == jsBatchDuplicate {
		b.stored(answer{Stream: o.stream, Seq: o.last.Load()}, now)
		return
	}
	if a.Error != nil && a.Error.ErrCode != jsStoreFailed { // that may come of the last of them
		b.undone()
	}
	o.batch, o.probing = nil, false
	o.again = slices.Clone(o.unacked)
}

func (b *batch) stored(a answer, now time.Time) {
	o := b.box
	b.forget()
	o.stored(a.Seq)
	o.answered(now)
	if o.batch == b {
		o.batch = nil
		o.pace.batched(len(b.items), len(o.fresh), b.at, now)
	}
	for i, it := range b.items {
		if it.state.Load() == spooledState {
			continue // it is sent again, from there
		}
		it.stream, it.seq = a.Stream, a.Seq-uint64(len(b.items)-1-i)
		o.w.finish(it, nil)
	}
	o.compact()
}
