package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// An event that was written and not acknowledged is in doubt. It is sent again with
// its id, and the stream knows ids for a while, its deduplication window. When half of
// that is over since it was first written, it is looked up before: the window counts
// from when it was stored, and sending takes time as well.

// A lookup reads which of the events in doubt are stored.
type lookup struct {
	box   *outbox
	fence string // where its answer goes; empty: it was answered
	asked time.Time
	items []*item
	from  uint64 // the first sequence at which one of them can be

	// What came of it.
	found   map[string]uint64 // ids, and where
	end     uint64            // read up to here
	trimmed bool              // not all that was there could be read
	err     error
}

const (
	lookChunk   = 1000
	lookTimeout = 30 * time.Second
)

// doubtful reports whether an event is in doubt for too long to be sent again as it is.
func (o *outbox) doubtful(it *item, now time.Time) bool {
	return it.inDoubt() && now.Sub(it.first) > o.window/2 && !broken(mutantNoLookup)
}

// mustLook reports whether one that was written here is.
func (o *outbox) mustLook(now time.Time) bool {
	return slices.ContainsFunc(o.unacked, func(it *item) bool { return o.doubtful(it, now) })
}

// nextDoubtful reports whether the next to be written is: what lay in a spool may have
// been written by a process before. It may come while others are looked up.
func (o *outbox) nextDoubtful(now time.Time) bool {
	return len(o.fresh) > 0 && o.doubtful(o.fresh[0], now)
}

func (it *item) inDoubt() bool { return !it.first.IsZero() && it.state.Load() <= written }

// fenceID is what no event has as its id.
const fenceID = "tidings fence"

// lookUp begins to look; notes say what comes of it. What was written may still lie in
// the server, before a stream that is slow, and be stored after it was looked for in vain:
// so a fence goes the same way first. It is the oldest event in doubt once more, on the
// condition that the last one stored has the id fenceID, so it is not stored; but what the
// stream says to it, it says when all before that is dealt with (nats-server's stream.go,
// processJetStreamMsg). It returns how long there is nothing to do.
func (o *outbox) lookUp(now time.Time) time.Duration {
	if o.w.c.dials.Load() != o.w.dials {
		return writeRetry // a new connection; the note that it is up will come
	}
	l := &lookup{box: o, found: map[string]uint64{}, asked: now}
	all := slices.Concat(o.unacked, o.fresh)
	oldest := all[slices.IndexFunc(all, (*item).inDoubt)]
	l.fence = o.w.c.mux.expect(func(m *nats.Msg) { o.w.post(note{kind: noteDo, do: func() { o.fenced(l, m) }}) })
	o.look = l
	h := maps.Clone(oldest.msg.Header)
	maps.DeleteFunc(h, func(k string, _ []string) bool { return k == hBatch || k == hBatchPlace || k == hBatchCommit })
	h[nats.ExpectedLastMsgIdHdr] = []string{fenceID}
	err := o.w.c.nc.PublishMsg(&nats.Msg{Subject: oldest.msg.Subject, Reply: o.w.c.mux.subject(l.fence), Header: h, Data: oldest.msg.Data})
	switch {
	case err == nil:
		return lookTimeout
	case permanent(err): // it is as large as can be
		o.search(l)
		return lookTimeout
	}
	o.endLook()
	return writeRetry
}

// endLook forgets what is under way.
func (o *outbox) endLook() {
	if o.look != nil && o.look.fence != "" {
		o.w.c.mux.forget(o.look.fence)
	}
	o.look = nil
}

// fenced takes the answer to a fence.
func (o *outbox) fenced(l *lookup, m *nats.Msg) {
	if o.look != l || l.fence == "" {
		return
	}
	now := time.Now()
	var a answer
	if noResponders(m) || json.Unmarshal(m.Data, &a) == nil && a.Error != nil && (unavailable(a.Error.ErrCode) || a.Error.ErrCode == jsDuplicateNow) {
		o.endLook()
		o.later(now)
		return
	}
	o.answered(now)
	o.search(l)
}

// search looks for what is in doubt still.
func (o *outbox) search(l *lookup) {
	o.w.c.mux.forget(l.fence)
	l.fence = ""
	certain := true
	for _, it := range slices.Concat(o.unacked, o.fresh) {
		if it.inDoubt() {
			certain = certain && it.certain
			if from := it.after + 1; len(l.items) == 0 || from < l.from {
				l.from = from
			}
			l.items = append(l.items, it)
		}
	}
	if len(l.items) == 0 || !certain || o.stream == "" {
		l.trimmed = true
		o.w.post(note{kind: noteDo, do: func() { o.looked(l) }})
		return
	}
	o.w.c.aside(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		l.err = l.read(ctx)
		o.w.post(note{kind: noteDo, do: func() { o.looked(l) }})
	})
}

// read reads the ids of all that was stored since. What is there is seen, whoever
// purges meanwhile: the first sequence is asked for at the end.
func (l *lookup) read(ctx context.Context) error {
	stopAt("looking")
	c, want := l.box.w.c, map[string]bool{}
	for _, it := range l.items {
		want[it.id()] = true
	}
	for seq := l.from; ; {
		part, err := c.read(ctx, l.box.stream, reading{subject: ">", from: seq, n: lookChunk, headers: true})
		if err != nil {
			return err
		}
		for i, m := range part.msgs {
			if id := m.Headers().Get(nats.MsgIdHdr); want[id] {
				l.found[id] = part.seqs[i]
			}
		}
		if part.left == 0 {
			break
		}
		seq = part.next
	}
	info, err := c.streamInfo(ctx, l.box.stream)
	if err != nil {
		return err
	}
	l.end, l.trimmed = info.State.LastSeq, info.State.FirstSeq > l.from || !info.Created.Equal(l.box.created)
	return nil
}

// looked goes on with what was found: what is stored is done, the rest is certain not
// to be, or reported.
func (o *outbox) looked(l *lookup) {
	if o.look != l {
		return // the connection was lost meanwhile
	}
	now := time.Now()
	o.look = nil
	var refused *refusal
	switch {
	case errors.As(l.err, &refused):
		l.trimmed = true
	case l.err != nil:
		o.w.c.log.Warn("natsbus: events in doubt could not be looked up; they wait until that is done", "stream", o.stream, "events", len(l.items), "err", l.err)
		o.later(now)
		return
	}
	o.stored(l.end)
	var doubled []string
	for _, it := range l.items {
		if !it.inDoubt() {
			continue
		}
		if seq, ok := l.found[it.id()]; ok {
			it.stream, it.seq = o.stream, seq
			o.w.finish(it, nil)
			continue
		}
		if it.absent = !l.trimmed; l.trimmed {
			doubled = append(doubled, it.id())
		}
		it.first, it.open, it.lost = time.Time{}, 0, false
	}
	if len(doubled) > 0 {
		o.w.c.doubled(o.stream, doubled, l.err)
	}
	o.compact()
	o.ask(now)
}

// maxNamed bounds the ids that one line names.
const maxNamed = 20

// doubled reports events that are sent though they may be stored already.
func (c *conn) doubled(stream string, ids []string, cause error) {
	c.possible.Add(uint64(len(ids)))
	if cause == nil {
		cause = errors.New("a part of what was stored since is purged already")
	}
	names := strings.Join(ids[:min(len(ids), maxNamed)], " ")
	if n := len(ids) - maxNamed; n > 0 {
		names += fmt.Sprintf(" and %d more", n)
	}
	c.report(fmt.Errorf("natsbus: stream %s: %d events are sent again though they may be stored: handlers may get them twice, with the same ids: %s: they were in doubt for longer than the stream remembers ids, and could not be looked up: %w",
		stream, len(ids), names, cause))
}
