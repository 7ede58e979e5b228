package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// defaultInFlight bounds unsettled events where the caller does not.
const defaultInFlight = 256

// durable is a subscription to a JetStream consumer. Two goroutines work for
// it: the loop owns all the state and never runs user code but confirmed
// callbacks; the deliverer calls Deliver, so that heartbeats go on while a
// Deliver takes its time.
type durable struct {
	c      *conn
	spec   adapter.Spec
	filter string
	max    int
	inbox  string // prefix of the subjects of our pulls, with the last dot
	sub    *nats.Subscription

	run     *loop.Loop
	deliver *loop.Loop
	out     *mailbox[handed]
	recall  atomic.Bool // what waits in out is handed back, not delivered
	ready   chan struct{}
	drained ending
	closed  ending

	mu    sync.Mutex
	box   []func()
	ended bool // nothing is taken any more
	wake  chan struct{}

	// What follows belongs to the loop.
	stream    string
	consumer  string
	memory    *memory
	epoch     int
	pulls     []pull
	want      int // events that the server may still send for them
	pullN     int
	heard     time.Time // when a pull was last answered
	beat      time.Time
	stopping  bool
	checking  *loop.Loop // looks the consumer up
	checkN    int        // its number: what an abandoned one finds is ignored
	checkWait time.Duration
	inflight  map[uint64]*delivery // taken and not settled
	backlog   []*delivery          // of those, what came beyond max
	unsettled int                  // handed to the deliverer and not settled
	acks      map[uint64][]*ack    // not confirmed, by sequence
	nacks     int
	acked     []chan struct{} // closed once all are confirmed
	unpulled  []chan struct{} // closed once no pull is outstanding
}

// handed is what the deliverer gets: an event, or a channel to close once
// everything before it was delivered.
type handed struct {
	x    *delivery
	mark chan struct{}
}

func (c *conn) subscribeDurable(ctx context.Context, s adapter.Spec) (adapter.Subscription, error) {
	d := &durable{
		c: c, spec: s, filter: c.subject(s.Pattern), max: s.MaxInFlight,
		inbox: c.nc.NewInbox() + ".", out: newMailbox[handed](),
		ready: make(chan struct{}), wake: make(chan struct{}, 1),
		inflight: map[uint64]*delivery{}, acks: map[uint64][]*ack{},
	}
	if d.max <= 0 {
		d.max = defaultInFlight
	}
	stream, consumer, created, err := c.findConsumer(ctx, s.Group, d.filter)
	if err != nil {
		return nil, fmt.Errorf("natsbus: durable subscription of group %q to %q: %w", s.Group, s.Pattern, err)
	}
	d.bind(stream, consumer, created)
	if d.sub, err = c.nc.Subscribe(d.inbox+"*", d.receive); err == nil {
		// The server sends no more than was asked for.
		err = errors.Join(d.sub.SetPendingLimits(-1, -1), c.flush(ctx), c.join(d))
	}
	if err != nil {
		if d.sub != nil {
			err = errors.Join(err, ignoreClosed(d.sub.Unsubscribe()))
		}
		return nil, fmt.Errorf("natsbus: durable subscription of group %q to %q: %w", s.Group, s.Pattern, err)
	}
	d.heard = time.Now()
	d.deliver = loop.Go(d.deliverAll)
	d.run = loop.Go(d.main)
	return d, nil
}

// bind says which consumer to pull from.
func (d *durable) bind(stream, consumer string, created time.Time) {
	d.stream, d.consumer = stream, consumer
	d.memory = d.c.memoryOf(stream, consumer)
	if d.memory.of(created) && d.epoch > 0 {
		d.c.report(fmt.Errorf("natsbus: stream %s was made anew: what was taken from the old one and is not settled (%d events) cannot be acknowledged", stream, len(d.inflight)))
		clear(d.inflight)
		for _, list := range d.acks {
			for _, a := range list {
				d.endAck(a, fmt.Errorf("natsbus: stream %s is gone", stream))
			}
		}
		d.epoch++
	}
	d.epoch = max(d.epoch, 1)
}

// post runs f on the loop; false when that has ended.
func (d *durable) post(f func()) bool {
	d.mu.Lock()
	if d.ended {
		d.mu.Unlock()
		return false
	}
	d.box = append(d.box, f)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true
}

func (d *durable) takeBox(end bool) []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	fs := d.box
	d.box = nil
	d.ended = d.ended || end
	return fs
}

func (d *durable) main(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	d.firstPull()
	for {
		select {
		case <-d.wake:
			for _, f := range d.takeBox(false) {
				f()
			}
		case <-tick.C:
			d.tick()
		case <-ctx.Done():
			d.end()
			return
		}
	}
}

// end lets go of everything; only the goroutines of others go on.
func (d *durable) end() {
	for _, f := range d.takeBox(true) {
		f()
	}
	if d.checking != nil {
		d.checking.StopAndWait()
	}
	for _, list := range d.acks {
		for _, a := range list {
			d.endAck(a, fmt.Errorf("natsbus: %s: closed before the acknowledgement of event %d was confirmed: %w", d.filter, a.seq, adapter.ErrClosed))
		}
	}
}

func (d *durable) tick() {
	d.repeatAcks(ackRepeat)
	if time.Since(d.beat) > ackWait/3 {
		d.heartbeat()
	}
	d.watch()
	d.noticeEnd()
}

// deliverAll calls Deliver, one event after the other.
func (d *durable) deliverAll(ctx context.Context) {
	for {
		for _, h := range d.out.take() {
			switch {
			case h.mark != nil:
				close(h.mark)
			case d.recall.Load() || ctx.Err() != nil:
				h.x.Nak(0)
			default:
				d.spec.Deliver(adapter.Delivery{Message: h.x.msg, Sequence: h.x.seq, Attempt: h.x.attempt, Settle: h.x})
			}
		}
		select {
		case <-d.out.wake:
		case <-ctx.Done():
			return
		}
	}
}

// Ready implements [adapter.Subscription].
func (d *durable) Ready(ctx context.Context) error {
	select {
	case <-d.ready:
		return nil
	case <-d.run.Done():
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("natsbus: %s: no answer to a pull yet: %w", d.filter, context.Cause(ctx))
	}
}

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
		return ignoreClosed(d.sub.Unsubscribe())
	}
	// What the server sent before the inbox is closed is in the box when quiet
	// returns.
	err := errors.Join(d.pullsEnded(ctx), d.c.quiet(ctx, d.sub))
	mark := make(chan struct{})
	if !d.post(func() { d.handBackBacklog(); d.out.put(handed{mark: mark}) }) {
		return errClosed
	}
	if err == nil {
		select {
		case <-mark:
			return nil
		case <-d.run.Done():
			return errClosed
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	d.recall.Store(true)
	return fmt.Errorf("natsbus: drain of %q: what was taken and not delivered is handed back: %w", d.filter, err)
}

// handBackBacklog returns what came beyond the bound.
func (d *durable) handBackBacklog() {
	for _, x := range d.backlog {
		d.giveBack(x)
	}
	d.backlog = nil
}

func (d *durable) giveBack(x *delivery) {
	if x.settled.Swap(true) {
		return // its outcome is in the box
	}
	delete(d.inflight, x.seq)
	d.sendAck(x.seq, x.reply, nakBody(0), nil)
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
	} else {
		err = errors.Join(err, d.waitAcks(ctx, nil), d.waitAcks(ctx, func() {
			for _, x := range d.inflight {
				d.giveBack(x)
			}
		}))
	}
	d.deliver.Stop()
	d.run.StopAndWait()
	d.c.leave(d)
	if err == nil || ctx.Err() == nil {
		err = errors.Join(err, d.deliver.Wait(ctx))
	}
	return err
}

// waitAcks runs f on the loop and waits until nothing is left to be confirmed.
func (d *durable) waitAcks(ctx context.Context, f func()) error {
	ch := make(chan struct{})
	ok := d.post(func() {
		if f != nil {
			f()
		}
		if d.nacks == 0 {
			close(ch)
		} else {
			d.acked = append(d.acked, ch)
		}
	})
	if !ok {
		return nil // the adapter was closed: the callbacks have been told
	}
	select {
	case <-ch:
		return nil
	case <-d.run.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("natsbus: close of %q: acknowledgements were not confirmed: %w", d.filter, context.Cause(ctx))
	}
}

// linkUp: the server forgot our pulls with the old connection, and whatever was
// asked on it is never answered: waiting for that cost 3 s at each restart.
func (d *durable) linkUp() {
	d.post(func() {
		d.repeatAcks(0)
		d.heartbeat()
		d.abandonCheck()
		d.check(0)
	})
}

func (d *durable) cut() {
	d.recall.Store(true)
	d.deliver.Stop()
	d.run.Stop()
}

func (d *durable) slow(*nats.Subscription) int { return 0 }
