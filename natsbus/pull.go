package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/internal/loop"
)

// Times of a pull. Its end is the heartbeat: a dead consumer is noticed when it
// does not come (with the default of nats.go that took 30 seconds). It is short
// for the sake of drains too: a pull cannot be called back, and closing its inbox
// while it stands races with the server, which then counts as delivered what
// nobody got.
const (
	pullExpiry   = 500 * time.Millisecond
	pullPatience = 3*pullExpiry + 200*time.Millisecond
)

// A pull is a request that the server may not have finished. Which of several an
// event answers cannot be told, and the server takes them in turn: so what is
// left is counted for all together, and a pull that was filled, of which the
// server says nothing, is forgotten with the last event.
type pull struct {
	id string
	n  int
}

// endPull notes that the server has ended a pull, and how much of it is unsent.
// One that is not known was forgotten with its connection.
func (d *durable) endPull(id string, m *nats.Msg) {
	i := slices.IndexFunc(d.pulls, func(p pull) bool { return p.id == id })
	if i < 0 {
		return
	}
	n, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
	if err != nil {
		n = d.pulls[i].n // the server does not say: nothing was sent
	}
	d.pulls = slices.Delete(d.pulls, i, i+1)
	d.unsent(n)
}

// unsent takes n off what the server may still send unasked.
func (d *durable) unsent(n int) {
	if d.want -= n; d.want <= 0 || len(d.pulls) == 0 {
		d.forgetPulls()
	}
}

func (d *durable) forgetPulls() { d.pulls, d.want = nil, 0 }

// firstPull asks for one event without waiting, so that an idle consumer is
// known to answer at once and not after the first heartbeat.
func (d *durable) firstPull() {
	d.ask(1, `{"batch":1,"no_wait":true}`)
}

// smallLimit is where asking for every single event costs too much: below it,
// each is more than a millisecond of work.
const smallLimit = 64

// more pulls when enough room has become free.
func (d *durable) more() {
	least := 1
	if limit := d.limit(); limit >= smallLimit {
		least = limit / 4
	}
	d.fill(least)
}

// fill pulls when no pull stands and there is room for least, or for half of all.
// An answer takes less time than the work on the rest.
func (d *durable) fill(least int) {
	if d.stopping || d.checking != nil || !d.c.link.isUp() {
		return
	}
	limit := d.limit()
	room := limit - d.unsettled - len(d.backlog) - d.want
	if room > limit/2 || d.want == 0 && room >= least {
		d.ask(room, fmt.Sprintf(`{"batch":%d,"expires":%d}`, room, pullExpiry))
	}
}

// limit is how many unsettled events are worth having now.
func (d *durable) limit() int {
	if d.spec.Prefetch == nil {
		return d.max
	}
	return min(max(d.spec.Prefetch(), 1), d.max)
}

func (d *durable) ask(n int, body string) {
	d.pullN++
	id := strconv.Itoa(d.pullN)
	if len(d.pulls) == 0 {
		d.heard = time.Now()
	}
	err := d.c.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+d.stream+"."+d.consumer, d.inbox+id, []byte(body))
	if err == nil { // else the connection is down; linkUp comes
		d.pulls = append(d.pulls, pull{id, n})
		d.want += n
	}
}

// receive runs on the subscription's goroutine.
func (d *durable) receive(m *nats.Msg) { d.post(func() { d.got(m) }) }

func (d *durable) got(m *nats.Msg) {
	d.heard = time.Now()
	d.health.mute = false
	select {
	case <-d.ready:
	default:
		if !noResponders(m) {
			close(d.ready)
		}
	}
	switch {
	case strings.HasPrefix(m.Subject, d.inbox):
		d.status(strings.TrimPrefix(m.Subject, d.inbox), m)
	case m.Header.Get("Status") == "": // else it is of an inbox that was given up
		d.event(m)
	}
	d.pump()
	d.noticeEnd()
}

// status takes what the server says about a pull.
func (d *durable) status(id string, m *nats.Msg) {
	code := m.Header.Get("Status")
	if code == "100" {
		return // idle heartbeat
	}
	d.endPull(id, m)
	say := m.Header.Get("Description")
	switch {
	case code == "404", code == "408":
		return // nothing came in time
	case code == "409" && !strings.Contains(say, "Deleted") && !strings.Contains(say, "Shutdown") && !strings.Contains(say, "Leadership"):
		if say != "Batch Completed" {
			d.c.log.Warn("natsbus: a pull was refused", "consumer", d.consumer, "stream", d.stream, "status", code, "cause", say)
			d.check(checkFirst)
		}
	default:
		d.c.log.Warn("natsbus: a pull ended; looking the consumer up", "consumer", d.consumer, "stream", d.stream, "status", code, "cause", say)
		d.check(checkFirst)
	}
}

// event takes what the consumer has sent.
func (d *durable) event(m *nats.Msg) {
	d.unsent(1)
	d.health.event, d.health.strikes = d.heard, 0
	meta, err := m.Metadata()
	if err != nil {
		d.c.drop(1, fmt.Errorf("natsbus: %s: a message from %s was not sent by a consumer: %w", d.filter, m.Subject, err))
		return
	}
	d.lag.hear(meta.NumPending, d.heard)
	seq := meta.Sequence.Stream
	if list := d.acks[seq]; len(list) > 0 && d.memory.has(seq) {
		// The server sends it again although its outcome is on the way.
		a := list[len(list)-1]
		a.reply = m.Reply
		d.writeAck(a)
		return
	}
	if d.memory.has(seq) {
		d.c.log.Debug("natsbus: acknowledged again what was settled here", "stream", d.stream, "sequence", seq)
		d.sendAck(&ack{seq: seq, reply: m.Reply, body: bodyAck, final: true})
		return
	}
	if x := d.inflight[seq]; x != nil {
		x.reply = m.Reply // in work here: the next heartbeat says so
		return
	}
	d.accept(m, seq, int(meta.NumDelivered))
}

func (d *durable) accept(m *nats.Msg, seq uint64, attempt int) {
	x := &delivery{d: d, seq: seq, attempt: attempt, reply: m.Reply, epoch: d.epoch, told: d.heard, head: m, subject: original(m.Subject)}
	var err error
	if x.msg, err = decode(d.c.topic(x.subject), m.Header, m.Data); err != nil {
		x.msg.Data, x.broken = m.Data, err.Error() // it becomes a dead letter, as it came
	}
	d.inflight[seq] = x
	d.backlog = append(d.backlog, x)
}

// pump hands over what there is room for, and asks for more.
func (d *durable) pump() {
	for len(d.backlog) > 0 && d.unsettled < d.max {
		x := d.backlog[0]
		if d.backlog = d.backlog[1:]; len(d.backlog) == 0 {
			d.backlog = nil
		}
		d.unsettled++
		d.out.put(handed{x: x})
	}
	if len(d.backlog) == 0 {
		d.markDelivered()
	}
	d.more()
}

// watch notices a pull that is not answered.
func (d *durable) watch() {
	if len(d.pulls) > 0 && d.checking == nil && d.c.link.isUp() && time.Since(d.heard) > pullPatience {
		// A machine that was busy for a while looks the same: what is under way to the
		// inbox is given up the second time only.
		d.stalled("it does not answer", "it is looked up, and then the subscription made anew")
		if !d.health.mute {
			d.health.mute = true
			d.check(0)
		} else {
			d.rebuild()
		}
		return
	}
	d.fill(1) // a worker may be idle although the others have much to do
}

const (
	checkFirst = 50 * time.Millisecond
	checkCap   = 2 * time.Second
)

// check makes sure of stream and consumer again, after a while, and then pulls
// anew. Nothing is pulled meanwhile: of a stream that was made anew the
// sequences mean other events.
func (d *durable) check(after time.Duration) {
	d.forgetPulls()
	if d.stopping || d.checking != nil {
		return
	}
	d.checkN++
	n, where := d.checkN, d.stream
	d.checking = loop.Go(func(ctx context.Context) {
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return
		}
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		err := d.c.link.wait(try)
		var stream, consumer string
		var created time.Time
		if err == nil {
			stream, consumer, created, err = d.c.findConsumer(try, where, d.spec.Group, d.filter)
		}
		d.post(func() {
			if n == d.checkN {
				d.checked(stream, consumer, created, err)
			}
		})
	})
}

// abandonCheck ends a check that runs. It does not wait: the check may be about
// to post its result to this very goroutine.
func (d *durable) abandonCheck() {
	if d.checking != nil {
		d.checking.Stop()
		d.checking = nil
		d.checkN++
	}
}

func (d *durable) checked(stream, consumer string, created time.Time, err error) {
	d.checking = nil
	if err == nil {
		d.checkWait, d.health.wait = 0, 0
		d.bind(stream, consumer, created)
		d.moveMembership(created)
		d.repeatAcks(0)
		d.pump()
		return
	}
	if d.checkWait = min(max(2*d.checkWait, checkFirst), checkCap); d.checkWait == checkCap && !errors.Is(err, context.DeadlineExceeded) {
		d.c.report(fmt.Errorf("natsbus: group %q gets nothing of %q: %w", d.spec.Group, d.spec.Pattern, err))
	}
	d.check(d.checkWait)
}
