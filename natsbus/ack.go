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
	reply   string // belongs to the loop: a redelivery replaces it
	epoch   int    // belongs to the loop: which stream seq is of
}

// Ack implements [adapter.Settler].
func (x *delivery) Ack(confirmed func(error)) { x.settle(bodyAck, true, confirmed) }

// Nak implements [adapter.Settler].
func (x *delivery) Nak(delay time.Duration) { x.settle(nakBody(delay), false, nil) }

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
	taken := !x.settled.Swap(true) && x.d.post(func() { x.d.settle(x, body, final, confirmed) })
	if !taken && confirmed != nil {
		confirmed(fmt.Errorf("natsbus: %s: event %d was handed back before it was acknowledged: %w", x.d.filter, x.seq, adapter.ErrClosed))
	}
}

// An ack is an outcome that the server has not confirmed yet.
type ack struct {
	seq       uint64
	token     string
	reply     string
	body      []byte
	at        time.Time
	confirmed func(error)
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
	d.sendAck(x.seq, x.reply, body, confirmed)
	d.pump()
}

func (d *durable) sendAck(seq uint64, reply string, body []byte, confirmed func(error)) {
	a := &ack{seq: seq, reply: reply, body: body, confirmed: confirmed}
	a.token = d.c.mux.expect(func(m *nats.Msg) {
		if !noResponders(m) { // else the consumer is not up yet: repeated by the tick
			d.post(func() { d.answered(a) })
		}
	})
	d.acks[seq] = append(d.acks[seq], a)
	d.nacks++
	d.writeAck(a)
}

func (d *durable) writeAck(a *ack) {
	a.at = time.Now()
	// An error means that the connection is down: it is repeated when it is back.
	_ = d.c.nc.PublishRequest(a.reply, d.c.mux.subject(a.token), a.body)
}

func (d *durable) answered(a *ack) { d.endAck(a, nil) }

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
		d.c.mux.forget(a.token)
		if a.confirmed != nil {
			a.confirmed(err)
		}
		break
	}
	if d.nacks == 0 {
		for _, ch := range d.acked {
			close(ch)
		}
		d.acked = nil
	}
}

// repeatAcks sends again what was not confirmed for that long. After a
// reconnection that is all, at once: before the ack wait gives it to another.
func (d *durable) repeatAcks(older time.Duration) {
	if d.nacks == 0 || !d.c.link.isUp() {
		return
	}
	now := time.Now()
	for _, list := range d.acks {
		for _, a := range list {
			if now.Sub(a.at) >= older {
				d.writeAck(a)
			}
		}
	}
}

// heartbeat tells the server that all that is here is being worked on.
func (d *durable) heartbeat() {
	if !d.c.link.isUp() {
		return
	}
	for _, x := range d.inflight {
		_ = d.c.nc.Publish(x.reply, bodyWork)
	}
	d.beat = time.Now()
}
