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

	run     *loop.Loop
	deliver *loop.Loop
	out     *mailbox[handed]
	recall  atomic.Bool // what waits in out is handed back, not delivered
	ready   chan struct{}
	drained ending
	closed  ending

	mu    sync.Mutex
	sub   *nats.Subscription // to the answers to our pulls
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
	stopping  bool
	checking  *loop.Loop // looks the consumer up
	checkN    int        // its number: what an abandoned one finds is ignored
	checkWait time.Duration
	inflight  map[uint64]*delivery // taken and not settled
	backlog   []*delivery          // of those, what came beyond max
	unsettled int                  // handed to the deliverer and not settled
	acks      map[uint64][]*ack    // not confirmed, by sequence
	line      line                 // of those, what waits for one answer
	nacks     int                  // of those, and what is done beside the loop
	working   map[int]*loop.Loop   // beside the loop
	besides   int
	acked     []chan struct{}   // closed once all are confirmed
	unpulled  []chan struct{}   // closed once no pull is outstanding
	delivered []chan struct{}   // each goes to the deliverer after the backlog
	left      []adapter.Message // what was handed back
	kept      int               // of it, what was never delivered
	member    membership
	health    health
	lag       lag
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
		inflight: map[uint64]*delivery{}, acks: map[uint64][]*ack{}, working: map[int]*loop.Loop{},
	}
	if d.max <= 0 {
		d.max = defaultInFlight
	}
	stream, consumer, created, err := c.findConsumer(ctx, "", s.Group, d.filter)
	if err != nil {
		return nil, fmt.Errorf("natsbus: durable subscription of group %q to %q: %w", s.Group, s.Pattern, err)
	}
	d.bind(stream, consumer, created)
	dials := c.dials.Load()
	if d.sub, err = c.nc.Subscribe(d.inbox+"*", d.receive); err == nil {
		// The server sends no more than was asked for.
		err = errors.Join(d.sub.SetPendingLimits(-1, -1), c.flush(ctx))
	}
	if err != nil {
		if d.sub != nil {
			err = errors.Join(err, ignoreClosed(d.sub.Unsubscribe()))
		}
		return nil, fmt.Errorf("natsbus: durable subscription of group %q to %q: %w", s.Group, s.Pattern, err)
	}
	if info, err := c.consumerInfo(ctx, stream, consumer); err == nil {
		d.health.created = info.Created
	}
	d.enrol(ctx, created)
	d.heard = time.Now()
	d.deliver = loop.Go(d.deliverAll)
	d.run = loop.Go(d.main)
	if err := c.join(d); err != nil { // whom it knows it may cut, so not before
		d.cut()
		return nil, fmt.Errorf("natsbus: durable subscription of group %q to %q: %w", s.Group, s.Pattern, errors.Join(err, ignoreClosed(d.sub.Unsubscribe())))
	}
	if c.dials.Load() != dials {
		d.linkUp() // nobody has told it
	}
	return d, nil
}

// bind says which consumer to pull from.
func (d *durable) bind(stream, consumer string, created time.Time) {
	d.stream, d.consumer = stream, consumer
	d.memory = d.c.memoryOf(stream, consumer)
	if d.memory.of(created) && d.epoch > 0 {
		d.c.report(fmt.Errorf("natsbus: stream %s was made anew: what waited in the old one is gone; %d events of it were taken by this subscription, and cannot be acknowledged", stream, len(d.inflight)))
		clear(d.inflight)
		d.cutLine()
		d.health.created = time.Time{} // that of the new one is no news
		d.lag.heard.Store(0)
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
	if d.health.work != nil {
		d.health.work.StopAndWait()
	}
	d.resign()
	for _, l := range d.working {
		l.Stop() // it tells its caller itself
	}
	for _, x := range d.inflight {
		d.forgetLater(x)()
	}
	d.endLine()
	for _, list := range d.acks {
		for _, a := range list {
			d.endAck(a, fmt.Errorf("natsbus: %s: closed before the acknowledgement of event %d was confirmed: %w", d.filter, a.seq, adapter.ErrClosed))
		}
	}
}

func (d *durable) tick() {
	d.repeatAcks(ackRepeat)
	d.heartbeat(ackWait / 3)
	d.watch()
	d.noticeEnd()
	d.lookForDead()
	d.look()
}

// deliverAll calls Deliver, one event after the other.
func (d *durable) deliverAll(ctx context.Context) {
	for {
		for _, h := range d.out.take() {
			switch {
			case h.mark != nil:
				close(h.mark)
			case d.recall.Load() || ctx.Err() != nil:
				d.recalled(h.x)
			case !h.x.placed.Swap(true):
				d.spec.Deliver(adapter.Delivery{Message: h.x.msg, Sequence: h.x.seq, Attempt: h.x.attempt, Settle: h.x, Broken: h.x.broken})
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

// Refill implements [adapter.Subscription].
func (d *durable) Refill() { d.post(d.more) }

// linkUp: the server forgot our pulls with the old connection, and whatever was
// asked on it is never answered: waiting for that cost 3 s at each restart.
func (d *durable) linkUp() {
	d.post(func() {
		d.member.upAt = time.Now()
		d.repeatAcks(0)
		d.heartbeat(0)
		d.abandonCheck()
		d.check(0)
	})
}

func (d *durable) slow(*nats.Subscription) int { return 0 }
