package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// handBackGrace is how much longer than its deadline a close waits until the
// server has confirmed what is handed back, so that the next process gets it at
// once and not after the ack wait.
const handBackGrace = 500 * time.Millisecond

// Drain implements [adapter.Subscription].
func (d *durable) Drain(ctx context.Context) error {
	return d.drained.do(ctx, func(ctx context.Context) error {
		ctx, cancel := withLimit(ctx, drainTimeout)
		defer cancel()
		return d.drain(ctx)
	})
}

func (d *durable) drain(ctx context.Context) error {
	d.post(func() { d.stopping = true })
	if broken(mutantNotWaited) {
		d.recall.Store(true)
		return ignoreClosed(d.subscription().Unsubscribe())
	}
	// What the server sent before the inbox is closed is in the box when quiet
	// returns.
	err := d.pullsEnded(ctx) // and from now on no other inbox is made
	if late := d.c.quiet(ctx, d.subscription()); err == nil {
		err = late
	}
	if err == nil {
		if err = d.allDelivered(ctx); err == nil || errors.Is(err, errClosed) {
			return err
		}
	}
	d.recall.Store(true)
	d.post(d.handBackBacklog)
	return fmt.Errorf("natsbus: drain of %q: what was taken and not delivered is handed back: %w", d.filter, err)
}

// pullsEnded returns once no pull is outstanding.
func (d *durable) pullsEnded(ctx context.Context) error {
	ch := make(chan struct{})
	if !d.post(func() { d.unpulled = append(d.unpulled, ch); d.noticeEnd() }) {
		return errClosed
	}
	return d.await(ctx, ch)
}

// allDelivered returns once the deliverer has nothing left to deliver.
func (d *durable) allDelivered(ctx context.Context) error {
	ch := make(chan struct{})
	if !d.post(func() { d.delivered = append(d.delivered, ch); d.pump() }) {
		return errClosed
	}
	return d.await(ctx, ch)
}

func (d *durable) await(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-d.run.Done():
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// noticeEnd tells those who wait for the end of the pulls. With the connection
// they end too, and one that was never answered ends with our patience.
func (d *durable) noticeEnd() {
	if len(d.pulls) > 0 && d.c.link.isUp() && time.Since(d.heard) < pullPatience {
		return
	}
	for _, ch := range d.unpulled {
		close(ch)
	}
	d.unpulled = nil
}

// markDelivered sends the marks of those who wait for deliveries after the last
// of them.
func (d *durable) markDelivered() {
	for _, ch := range d.delivered {
		d.out.put(handed{mark: ch})
	}
	d.delivered = nil
}

// handBackBacklog returns what came beyond the bound.
func (d *durable) handBackBacklog() {
	for _, x := range d.backlog {
		d.giveBack(x)
	}
	d.backlog = nil
	d.markDelivered()
}

// recalled hands back what the deliverer had not delivered yet.
func (d *durable) recalled(x *delivery) {
	d.post(func() { d.unsettled--; d.giveBack(x) })
}

func (d *durable) giveBack(x *delivery) {
	if x.settled.Swap(true) {
		return // its outcome is in the box
	}
	if x.epoch != d.epoch {
		return // its stream is gone: nothing will deliver it again
	}
	delete(d.inflight, x.seq)
	d.left = append(d.left, x.msg)
	if !x.placed.Swap(true) {
		d.kept++
	}
	// Its handler was cut: that is no death.
	late := d.forgetLater(x)
	d.forgetBegun(x, func(closed bool) {
		if closed {
			late()
		} else {
			d.sendAck(&ack{seq: x.seq, reply: x.reply, body: nakBody(0)})
		}
	})
}

// Close implements [adapter.Subscription].
func (d *durable) Close(ctx context.Context) error {
	return d.closed.do(ctx, func(ctx context.Context) error {
		ctx, cancel := withLimit(ctx, drainTimeout)
		defer cancel()
		return d.close(ctx)
	})
}

func (d *durable) close(ctx context.Context) error {
	err := d.Drain(ctx)
	if broken(mutantNotWaited) {
		d.cut()
	} else if left := d.settleRest(ctx); left != nil {
		left.Err = err
		err = left
	}
	d.deliver.Stop()
	d.run.StopAndWait()
	d.c.leave(d)
	if err == nil || ctx.Err() == nil {
		err = errors.Join(err, d.deliver.Wait(ctx))
	}
	return err
}

// settleRest waits for the acknowledgements, hands back what nobody has settled,
// and returns what it could not do; nil if that is nothing.
func (d *durable) settleRest(ctx context.Context) *adapter.LeftError {
	_ = d.waitAcks(ctx)
	d.post(func() {
		for _, x := range d.inflight {
			d.giveBack(x)
		}
	})
	if ctx.Err() != nil && d.c.link.isUp() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), handBackGrace)
		defer cancel()
		ctx = grace
	}
	_ = d.waitAcks(ctx)
	e := &adapter.LeftError{}
	said := make(chan struct{})
	if !d.post(func() { d.nameLeft(e); close(said) }) {
		return nil // the adapter was closed
	}
	select {
	case <-said:
	case <-d.run.Done():
		return nil
	}
	if len(e.HandedBack)+len(e.Unconfirmed) == 0 {
		return nil
	}
	return e
}

func (d *durable) nameLeft(e *adapter.LeftError) {
	e.HandedBack, e.Undelivered = d.left, d.kept
	for _, list := range d.acks {
		for _, a := range list {
			if a.of != nil {
				e.Unconfirmed = append(e.Unconfirmed, a.of.msg)
			}
		}
	}
}

// waitAcks waits until nothing is left to be confirmed.
func (d *durable) waitAcks(ctx context.Context) error {
	ch := make(chan struct{})
	ok := d.post(func() {
		if d.nacks == 0 {
			close(ch)
		} else {
			d.acked = append(d.acked, ch)
		}
	})
	if !ok {
		return nil // the adapter was closed: the callbacks have been told
	}
	return d.await(ctx, ch)
}

func (d *durable) cut() {
	d.recall.Store(true)
	d.deliver.Stop()
	d.run.Stop()
}
