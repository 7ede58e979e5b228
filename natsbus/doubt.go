package natsbus

import (
	"context"
	"errors"
	"fmt"
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

// lookUp begins to look; a note says what came of it.
func (o *outbox) lookUp() {
	l := &lookup{box: o, found: map[string]uint64{}}
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
	o.look = l
	if !certain || o.stream == "" {
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
