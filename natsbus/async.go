package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// PublishAsync implements [adapter.AsyncPublisher].
func (c *conn) PublishAsync(ctx context.Context, m *adapter.Message, class adapter.Class, tell func(error)) error {
	if c.closing.Load() {
		return errClosed
	}
	if ctx.Err() != nil {
		return fmt.Errorf("natsbus: %s: not sent: %w", m.Topic, context.Cause(ctx))
	}
	it, err := c.newDurable(m, class)
	if err != nil {
		return err
	}
	it.ends, it.limit = time.Now().Add(publishLimit), errPublishLimit
	if end, ok := ctx.Deadline(); ok {
		it.ends, it.limit = end, context.DeadlineExceeded
	}
	it.tell = func(err error) {
		if full, ok := errors.AsType[*streamFull](err); ok {
			c.full.put(c, it, full, tell)
			return
		}
		tell(err)
	}
	return c.w.acceptDurable(ctx, it)
}

// expire gives up the items that nobody waits for and whose time is over.
func (o *outbox) expire(now time.Time) {
	for _, list := range [][]*item{o.unacked, o.fresh} {
		for _, it := range list {
			// What lies in a spool has no end.
			if was := it.state.Load(); it.tell != nil && !it.forwarded && was < gone && now.After(it.ends) {
				o.w.finish(it, o.w.c.givenUp(it, was, it.limit))
			}
		}
	}
	o.compact()
}

// fullItems are events that nobody waits for and that a full stream has refused. One
// after the other they are tried again once there is room. Until then they keep their
// places: else whoever publishes on would have ever more of them wait here.
type fullItems struct {
	mu    sync.Mutex
	items []fullItem
	busy  bool
}

type fullItem struct {
	it   *item
	full *streamFull
	tell func(error)
}

func (f *fullItems) put(c *conn, it *item, full *streamFull, tell func(error)) {
	f.mu.Lock()
	f.items = append(f.items, fullItem{it, full, tell})
	begin := !f.busy
	f.busy = true
	f.mu.Unlock()
	if !begin || c.aside(func(ctx context.Context) {
		f.work(func(x fullItem) error { return c.retryFull(ctx, x.it, x.full) }, c.w)
	}) {
		return
	}
	f.work(func(x fullItem) error { return x.full }, c.w) // it is being closed
}

func (f *fullItems) work(outcome func(fullItem) error, w *writer) {
	for {
		f.mu.Lock()
		if len(f.items) == 0 {
			f.busy, f.items = false, nil
			f.mu.Unlock()
			return
		}
		next := f.items[0]
		f.items = f.items[1:]
		f.mu.Unlock()
		err := outcome(next)
		w.release(&w.keep, []*item{next.it})
		next.tell(err)
	}
}

func (c *conn) retryFull(ctx context.Context, it *item, full *streamFull) error {
	ctx, cancel := context.WithDeadlineCause(ctx, it.ends, it.limit)
	defer cancel()
	made, why := c.keeper.makeRoom(ctx, it, full)
	if !made {
		full.why = why
		return full
	}
	it = it.again()
	it.placed = true
	return c.publishDurable(ctx, it)
}
