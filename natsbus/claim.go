package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/internal/loop"
)

const (
	enrolLimit = time.Second            // of a start; what is not known by then is left to the ack wait
	deadPeriod = 500 * time.Millisecond // between looks for those who died
	// linkSettled is how long after a reconnection others may still be on their way
	// back.
	linkSettled = 3 * time.Second
	// claimMost bounds the places of the stream that are asked for: they are asked for
	// one by one, and may be of other subjects.
	claimMost = 100_000
)

// A membership is this subscription's, among all that pull from its consumer: on
// this machine by the roster, beyond it by an interest that the server knows of.
type membership struct {
	roster *roster
	place  *place
	name   string
	hello  string // subject that every member listens to
	sub    *nats.Subscription
	looked time.Time
	upAt   time.Time  // when the connection came back
	work   *loop.Loop // looks for the dead
}

// enrol makes the subscription a member, and first takes over what members left
// that have died. It runs before the first pull.
func (d *durable) enrol(ctx context.Context, created time.Time) {
	ctx, cancel := context.WithTimeout(ctx, enrolLimit)
	defer cancel()
	m := &d.member
	inbox := strings.TrimSuffix(d.inbox, ".")
	dot := strings.LastIndexByte(inbox, '.')
	m.name = inbox[dot+1:]
	sum := sha256.Sum256([]byte(d.stream + "\x00" + d.consumer))
	m.hello = inbox[:dot] + ".tidings-" + hex.EncodeToString(sum[:10])
	err := d.takePlace(ctx, created)
	if err != nil {
		d.c.log.Warn("natsbus: not registered on this machine: what a killed process of the group had is delivered again after the ack wait, not at once",
			"group", d.spec.Group, "ack_wait", d.c.wantedAckWait(), "cause", err)
	}
	d.listen()
}

func (d *durable) takePlace(ctx context.Context, created time.Time) error {
	m := &d.member
	r, err := rosterOf(d.stream, d.consumer, created)
	if err != nil {
		return err
	}
	leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	alive, dead, err := r.others(m.name)
	if err != nil {
		return err
	}
	if dead > 0 && alive == 0 && d.alone(ctx) {
		if c, err := d.estate(ctx); err == nil {
			d.claim(c)
		}
	}
	m.roster = r
	m.place, err = r.join(m.name)
	return err
}

// listen makes the server know that a member is connected.
func (d *durable) listen() {
	// Without it others may think that nobody is here: they still see the roster.
	sub, _ := d.c.nc.Subscribe(d.member.hello, func(m *nats.Msg) { _ = m.Respond(nil) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.member.sub = sub
}

func (d *durable) unlisten() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.member.sub != nil {
		_ = d.member.sub.Unsubscribe() // closed with the connection otherwise
	}
}

// alone reports whether the server says that no other member is connected to it.
// No answer in time means that one is: it may be stopped, and not dead.
func (d *durable) alone(ctx context.Context) bool {
	d.unlisten()
	answer := make(chan bool, 1)
	token := d.c.mux.expect(func(m *nats.Msg) {
		select {
		case answer <- noResponders(m):
		default:
		}
	})
	defer d.c.mux.forget(token)
	if err := d.c.nc.PublishRequest(d.member.hello, d.c.mux.subject(token), nil); err != nil {
		return false
	}
	select {
	case alone := <-answer:
		return alone
	case <-ctx.Done():
		return false
	}
}

// An estate is where in the stream the unsettled events of a consumer are.
type estate struct {
	pending     int
	first, last uint64 // in the stream
	delivered   uint64 // deliveries so far
}

func (d *durable) estate(ctx context.Context) (estate, error) {
	got, err := d.c.js.Consumer(ctx, d.stream, d.consumer)
	if err != nil {
		return estate{}, err
	}
	info := got.CachedInfo()
	return estate{info.NumAckPending, info.AckFloor.Stream + 1, info.Delivered.Stream, info.Delivered.Consumer}, nil
}

// claim has the server deliver again, at once, what is unsettled and not in work
// here. It does so by negative acknowledgements in the name of the dead: the
// server ignores those of events that are settled. ResetConsumer was the other
// way; it also delivers again what was settled out of order, and forgets how
// often each event was delivered.
func (d *durable) claim(e estate) {
	n := 0
	if e.pending == 0 || e.last < e.first {
		return
	}
	if e.last-e.first >= claimMost {
		d.c.log.Warn("natsbus: a process of the group died; its events are too far apart to ask for, and are delivered again after the ack wait",
			"group", d.spec.Group, "stream", d.stream, "unsettled", e.pending, "first", e.first, "last", e.last, "ack_wait", d.c.wantedAckWait())
		return
	}
	for seq := e.first; seq <= e.last; seq++ {
		if d.inflight[seq] != nil || len(d.acks[seq]) > 0 || d.memory.has(seq) {
			continue
		}
		if err := d.c.nc.Publish(fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.0.0", d.stream, d.consumer, seq, e.delivered), nakBody(0)); err != nil {
			return // the connection is down: the ack wait does it
		}
		n++
	}
	d.c.log.Info("natsbus: took over what a process that died had taken", "group", d.spec.Group, "stream", d.stream, "consumer", d.consumer,
		"unsettled", e.pending, "asked_for", n)
}

// lookForDead takes over from others that died, if this one is all that is left.
func (d *durable) lookForDead() {
	m := &d.member
	if m.place == nil || m.work != nil || d.stopping || d.checking != nil || time.Since(m.looked) < deadPeriod ||
		time.Since(m.upAt) < linkSettled || !d.c.link.isUp() {
		return
	}
	m.looked = time.Now()
	if names, err := m.roster.names(m.name); err != nil || len(names) == 0 {
		return
	}
	m.work = loop.Go(func(ctx context.Context) {
		d.inherit(ctx)
		d.post(func() { m.work = nil })
	})
}

func (d *durable) inherit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, enrolLimit)
	defer cancel()
	leave, err := d.member.roster.enter(ctx)
	if err != nil {
		return // somebody else is at it
	}
	defer leave()
	alive, dead, err := d.member.roster.others(d.member.name)
	if err != nil || dead == 0 || alive > 0 {
		return
	}
	alone := d.alone(ctx)
	d.listen()
	if !alone {
		return
	}
	e, err := d.estate(ctx)
	if err != nil {
		return
	}
	claimed := make(chan struct{})
	if d.post(func() { d.claim(e); close(claimed) }) {
		_ = d.await(ctx, claimed)
	}
}

// moveMembership follows the consumer to a stream that was made anew, where
// nobody has left anything.
func (d *durable) moveMembership(created time.Time) {
	m := &d.member
	if r, err := rosterOf(d.stream, d.consumer, created); m.place == nil || err != nil || r.dir == m.roster.dir {
		return
	}
	m.place.leave(true)
	m.place = nil
	ctx, cancel := context.WithTimeout(context.Background(), 10*gateRetry)
	defer cancel()
	_ = d.takePlace(ctx, created) // without one the ack wait does it
}

// resign gives the membership up.
func (d *durable) resign() {
	m := &d.member
	if m.work != nil {
		m.work.StopAndWait()
	}
	d.unlisten()
	if m.place != nil {
		m.place.leave(d.nacks == 0 && len(d.inflight) == 0)
	}
}
