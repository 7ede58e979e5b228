package natsbus

import (
	"cmp"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// A server that is alone takes the acknowledgements of a consumer in the order in
// which one connection brings them, and answers one when it has taken it (in
// nats-server: consumer.processInboundAcks). So not each has to ask for an answer:
// what was written before one that is answered was taken too. One question is
// under way at a time; for events of 128 bytes that saves a third of consuming
// them.
//
// In a cluster it may be another server by then, and there each asks for itself.

// A line is what was written on one connection and waits to be confirmed, in order.
type line struct {
	acks   []*ack // no question covers them yet
	dials  uint64 // connections begun before the first of them was written
	asked  *question
	misses int         // how often in a row an answer was late
	open   []*question // asked and not answered, that one included
}

// A question covers acknowledgements that were written before it on its own
// connection. So its answer confirms them whenever it comes, also when they were
// written again since: else a server that is slow to answer would never be heard.
type question struct {
	token string
	acks  []*ack
	at    time.Time
}

// maxQuestions bounds those that may still be answered.
const maxQuestions = 16

// lineUp writes a final outcome without a question of its own.
func (d *durable) lineUp(a *ack) {
	if len(d.line.acks) == 0 {
		d.line.dials = d.c.dials.Load()
	}
	if a.lined = d.c.nc.Publish(a.reply, a.body) == nil; !a.lined {
		return // the connection is down: repeated when it is back
	}
	d.line.acks = append(d.line.acks, a)
	if d.line.asked == nil {
		d.askLine()
	}
}

// askLine asks whether the whole line was taken: it acknowledges one of its events
// once more, which changes nothing for one that is settled, and is answered in turn.
// It is that with the highest sequence: a server that has lost its latest deliveries
// by a kill -9 takes no acknowledgement of them, and does not answer that one either.
func (d *durable) askLine() {
	l := &d.line
	q := &question{acks: l.acks, at: time.Now()}
	q.token = d.c.mux.expect(func(m *nats.Msg) {
		d.post(func() { d.answered(q, !noResponders(m)) })
	})
	if l.open = append(l.open, q); len(l.open) > maxQuestions {
		d.drop(l.open[0])
	}
	last := slices.MaxFunc(l.acks, func(a, b *ack) int { return cmp.Compare(a.seq, b.seq) })
	err := d.c.nc.PublishRequest(last.reply, d.c.mux.subject(q.token), bodyAck)
	l.asked, l.acks = q, nil
	// No connection was begun since before the first was written: all went the same
	// way. Otherwise some may be lost, and all are repeated.
	if err != nil || d.c.dials.Load() != l.dials {
		d.drop(q)
		d.cutLine()
	}
}

// answered takes an answer. ok: the consumer is there.
func (d *durable) answered(q *question, ok bool) {
	l := &d.line
	d.drop(q)
	current := l.asked == q
	switch {
	case !ok && current:
		d.cutLine()
	case ok:
		l.misses = 0
		for _, a := range q.acks {
			d.endAck(a, nil)
		}
		if current {
			if l.asked = nil; len(l.acks) > 0 {
				d.askLine()
			}
		}
	}
}

// repeatLine writes again what the question under way covers, if its answer is
// late. The longer the server takes, the longer it is given: what is written again
// is more work for it.
func (d *durable) repeatLine(older time.Duration) {
	l := &d.line
	if l.asked == nil || time.Since(l.asked.at) < older<<l.misses {
		return
	}
	l.misses = min(l.misses+1, 3)
	var again []*ack
	for _, a := range l.asked.acks {
		if a.lined = a.lined && d.c.nc.Publish(a.reply, a.body) == nil; a.lined {
			again = append(again, a)
		}
	}
	l.asked, l.acks = nil, append(again, l.acks...)
	if len(l.acks) > 0 {
		d.askLine()
	}
}

func (d *durable) drop(q *question) {
	d.c.mux.forget(q.token)
	d.line.open = slices.DeleteFunc(d.line.open, func(o *question) bool { return o == q })
}

// cutLine ends the line. Its acknowledgements are repeated as those are that nobody
// answers, unless a question that covers them still is.
func (d *durable) cutLine() {
	l := &d.line
	if l.asked != nil {
		l.acks = append(l.asked.acks, l.acks...)
	}
	for _, a := range l.acks {
		a.lined = false
	}
	l.asked, l.acks = nil, nil
}

// endLine forgets all questions.
func (d *durable) endLine() {
	d.cutLine()
	for len(d.line.open) > 0 {
		d.drop(d.line.open[0])
	}
}
