package natsbus

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
)

var (
	bodyAck  = []byte("+ACK")
	bodyWork = []byte("+WPI")
)

// ackPatienceTick is after how long an unanswered acknowledgement is repeated
// on a connection that seems to work.
const ackRepeat = 1500 * time.Millisecond

// A delivery is one event that the server has given to this process. It is the
// Settler of it.
type delivery struct {
	d       *durable
	msg     adapter.Message
	seq     uint64
	attempt int
	settled atomic.Bool
	placed  atomic.Bool // with Deliver or, if that has not had it, back with the server
	reply   string      // belongs to the loop: a redelivery replaces it
	epoch   int         // belongs to the loop: which stream seq is of
	told    time.Time   // belongs to the loop: when the server was last told that it is in work
	head    *nats.Msg   // as it came: what a dead letter keeps
	subject string      // it was published on
	broken  string      // why it cannot be decoded
	noted   atomic.Bool // Begin was called
}

// Ack implements [adapter.Settler].
func (x *delivery) Ack(confirmed func(error)) { x.settle(bodyAck, true, confirmed) }

// Nak implements [adapter.Settler].
func (x *delivery) Nak(delay time.Duration) {
	if broken(mutantNakAsTerm) {
		x.Term("")
		return
	}
	x.settle(nakBody(delay), false, nil)
}

// Term implements [adapter.Settler].
func (x *delivery) Term(reason string) { x.settle([]byte("+TERM "+reason), true, nil) }

func nakBody(delay time.Duration) []byte {
	if delay <= 0 {
		return []byte("-NAK")
	}
	return fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds())
}

// settle hands the outcome to the loop. final outcomes are remembered.
func (x *delivery) settle(body []byte, final bool, confirmed func(error)) {
	over := func() {
		if confirmed != nil {
			confirmed(fmt.Errorf("natsbus: %s: event %d was handed back before it was acknowledged: %w", x.d.filter, x.seq, adapter.ErrClosed))
		}
	}
	taken := !x.settled.Swap(true) && x.d.post(func() {
		x.d.forgetBegun(x, func(closed bool) {
			if closed {
				over()
			} else {
				x.d.settle(x, body, final, confirmed)
			}
		})
	})
	if !taken {
		over()
	}
}

// An ack is an outcome that the server has not confirmed yet.
type ack struct {
	seq       uint64
	token     string // of its own question; empty: it stands in the line
	reply     string
	body      []byte
	final     bool // the event is not to come again
	lined     bool // it stands in the line, and was not confirmed
	at        time.Time
	confirmed func(error)
	of        *delivery // nil if nobody is to be told that it was not confirmed
}

// settle runs on the loop, as everything below does.
func (d *durable) settle(x *delivery, body []byte, final bool, confirmed func(error)) {
	d.unsettled--
	if x.epoch != d.epoch {
		if confirmed != nil {
			confirmed(fmt.Errorf("natsbus: %s: the stream of event %d is gone", d.filter, x.seq))
		}
		return
	}
	delete(d.inflight, x.seq)
	if final {
		d.memory.add(x.seq)
	}
	a := &ack{seq: x.seq, reply: x.reply, body: body, final: final, confirmed: confirmed}
	if final {
		a.of = x
	}
	d.sendAck(a)
	d.pump()
}

func (d *durable) sendAck(a *ack) {
	d.acks[a.seq] = append(d.acks[a.seq], a)
	d.nacks++
	d.writeAck(a)
}

func (d *durable) writeAck(a *ack) {
	a.at = time.Now()
	// What is to come again asks for itself: by the time that the line is answered it
	// may be on its way here, under another reply subject.
	if a.final && a.token == "" && d.c.inOrder.Load() {
		d.lineUp(a)
		return
	}
	if a.token == "" {
		a.token = d.c.mux.expect(func(m *nats.Msg) {
			if !noResponders(m) { // else the consumer is not up yet: repeated by the tick
				d.post(func() { d.endAck(a, nil) })
			}
		})
	}
	// An error means that the connection is down: it is repeated when it is back.
	_ = d.c.nc.PublishRequest(a.reply, d.c.mux.subject(a.token), a.body)
}

func (d *durable) endAck(a *ack, err error) {
	list := d.acks[a.seq]
	for i, b := range list {
		if b != a {
			continue
		}
		if list = append(list[:i:i], list[i+1:]...); len(list) == 0 {
			delete(d.acks, a.seq)
		} else {
			d.acks[a.seq] = list
		}
		d.nacks--
		if a.lined = false; a.token != "" {
			d.c.mux.forget(a.token)
		}
		if a.confirmed != nil {
			a.confirmed(err)
		}
		break
	}
	d.noticeAcked()
}

// noticeAcked tells those who wait for the last confirmation.
func (d *durable) noticeAcked() {
	if d.nacks > 0 {
		return
	}
	for _, ch := range d.acked {
		close(ch)
	}
	d.acked = nil
}

// repeatAcks sends again what was not confirmed for that long. After a
// reconnection that is all, at once: before the ack wait gives it to another.
func (d *durable) repeatAcks(older time.Duration) {
	if d.nacks == 0 || !d.c.link.isUp() {
		return
	}
	if older == 0 {
		d.cutLine()
	} else {
		d.repeatLine(older)
	}
	now := time.Now()
	for _, list := range d.acks {
		for _, a := range list {
			if !a.lined && now.Sub(a.at) >= older {
				d.writeAck(a)
			}
		}
	}
}

// heartbeat tells the server that what was not told for that long is still being
// worked on, whether a handler has it or it waits. What is handled faster costs
// no heartbeat.
func (d *durable) heartbeat(older time.Duration) {
	if !d.c.link.isUp() || broken(mutantNoHeartbeat) {
		return
	}
	now := time.Now()
	for _, x := range d.inflight {
		if now.Sub(x.told) >= older {
			_ = d.c.nc.Publish(x.reply, bodyWork) // an error: told again when the connection is back
			x.told = now
		}
	}
}
