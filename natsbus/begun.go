package natsbus

import (
	"context"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// An event that kills its process never fails, and what the server counts are
// deliveries: to those that handed it back unhandled, too, and from 1 again after a
// consumer was reset. So a process notes that it begins with an event that came
// suspiciously often, beside the dead letters, and takes the notes away when there
// is an outcome: those that are left were made by processes that died.

// Begin implements [adapter.Settler].
func (x *delivery) Begin(deaths func(int, error)) {
	d := x.d
	ok := d.post(func() {
		x.noted.Store(true)
		subject, stream := d.begunSubject(x), d.stream
		n, err := 0, error(nil)
		d.beside(func(ctx context.Context) { n, err = d.c.noteBegin(ctx, stream, subject) }, func(bool) {
			if err != nil {
				err = fmt.Errorf("natsbus: event %d of stream %s was delivered %d times, and it cannot be noted that it is begun once more: %w", x.seq, stream, x.attempt, err)
			}
			deaths(n, err)
		})
	})
	if !ok {
		deaths(0, fmt.Errorf("natsbus: %s: event %d was handed back: %w", d.filter, x.seq, adapter.ErrClosed))
	}
}

func (d *durable) begunSubject(x *delivery) string {
	return d.c.deadSubject("begun", d.stream, d.memory.since(), x.seq, d.consumer)
}

// noteBegin adds a note and returns how many there were.
func (c *conn) noteBegin(ctx context.Context, stream, subject string) (n int, err error) {
	err = c.toDeadStream(ctx, stream, func(ctx context.Context) error {
		st, err := c.js.Stream(ctx, c.deadStream())
		if err != nil {
			return err
		}
		info, err := st.Info(ctx, jetstream.WithSubjectFilter(subject))
		if err != nil {
			return err
		}
		n = int(info.State.Subjects[subject])
		_, err = c.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Header: nats.Header{}})
		return err
	})
	return n, c.jsError(err)
}

// forgetBegun takes the notes of an event away, if there are any, and then goes
// on. One that cannot be taken away counts as a death too many. It is called on
// the loop.
func (d *durable) forgetBegun(x *delivery, then func(closed bool)) {
	if !x.noted.Load() || x.epoch != d.epoch {
		then(false)
		return
	}
	subject, stream := d.begunSubject(x), d.stream
	seq := x.seq
	d.beside(func(ctx context.Context) { d.c.takeNotes(ctx, stream, subject, seq) }, then)
}

// forgetLater returns what takes the notes of an event away whose handler a drain
// has cut: nobody died. The subscription does not wait for it, as its time is over.
func (d *durable) forgetLater(x *delivery) func() {
	if !x.noted.Load() || x.epoch != d.epoch {
		return func() {}
	}
	subject, stream, c, seq := d.begunSubject(x), d.stream, d.c, x.seq
	return func() {
		c.aside(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, letterPatience)
			defer cancel()
			c.takeNotes(ctx, stream, subject, seq)
		})
	}
}

// aside runs f until it ends or the connection is closed.
func (c *conn) aside(f func(context.Context)) (begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Load() {
		return false
	}
	c.asides = append(slices.DeleteFunc(c.asides, (*loop.Loop).Ended), loop.Go(f))
	return true
}

// stopAsides does not wait: it may be called by the handler of a log line.
func (c *conn) stopAsides() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.asides {
		l.Stop()
	}
}

func (c *conn) takeNotes(ctx context.Context, stream, subject string, seq uint64) {
	err := c.toDeadStream(ctx, stream, func(ctx context.Context) error {
		st, err := c.js.Stream(ctx, c.deadStream())
		if err != nil {
			return err
		}
		return st.Purge(ctx, jetstream.WithPurgeSubject(subject))
	})
	if err != nil {
		c.log.Warn("natsbus: a note that a handler has begun stays, though it has ended", "stream", stream, "sequence", seq, "cause", err)
	}
}
