package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/loop"
)

// Looks at a consumer that has sent nothing for a while although it was asked.
// One request each: nothing for a subscription that gets events.
const (
	lookFirst  = 2 * time.Second
	lookMost   = 4 * time.Second        // for the lag's sake; a standing pull asks eight times as often
	lookSoon   = 500 * time.Millisecond // when something is wrong
	lookWithin = 2 * time.Second
	strikesOut = 2 // looks in a row that find events which do not come
)

// health is what is known of a consumer besides its events.
type health struct {
	event   time.Time     // when the last one came
	looked  time.Time     // when the last look was begun
	wait    time.Duration // until the next; 0: now
	created time.Time     // the consumer
	paused  bool
	full    bool // as many events are unsettled as the group may have
	strikes int
	mute    bool // it did not answer, and has said nothing since
	work    *loop.Loop
}

// look asks the server about the consumer when it has been quiet.
func (d *durable) look() {
	h := &d.health
	now := time.Now()
	quiet := min(now.Sub(h.event), now.Sub(h.looked))
	wait := h.wait
	if d.want <= 0 && wait > 0 {
		wait = lagEvery // it owes us nothing, but more may wait by now
	}
	if d.stopping || d.checking != nil || h.work != nil || !d.c.link.isUp() || quiet < wait {
		return
	}
	h.looked = now
	stream, consumer := d.stream, d.consumer
	h.work = loop.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, lookWithin)
		defer cancel()
		got, err := d.c.js.Consumer(ctx, stream, consumer)
		d.post(func() {
			h.work = nil
			if d.checking != nil || d.stopping || stream != d.stream || consumer != d.consumer {
				return
			}
			if err == nil {
				d.seen(got.CachedInfo())
			} else if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
				d.stalled("it is gone", "it is made anew", "err", err)
				d.check(0)
			}
			// No answer says nothing about the consumer.
		})
	})
}

// seen compares what the server says with what has come.
func (d *durable) seen(info *jetstream.ConsumerInfo) {
	h := &d.health
	d.lag.hear(info.NumPending, time.Now())
	if d.want > 0 || h.wait == 0 {
		h.wait = min(max(2*h.wait, lookFirst), lookMost)
	}
	if !h.created.IsZero() && !info.Created.Equal(h.created) {
		d.c.stalls.Add(1)
		d.c.report(fmt.Errorf("natsbus: consumer %s of stream %s was deleted and is made anew: group %q gets the events that are in the stream again, but for those that this process remembers to have settled", d.consumer, d.stream, d.spec.Group))
	}
	h.created = info.Created
	switch waits := info.NumPending > 0 && h.event.Before(h.looked); {
	case info.Paused:
		h.wait, h.strikes = lookSoon, 0
		if !h.paused {
			d.stalled("it is paused", "resume it with: nats consumer resume "+d.stream+" "+d.consumer, "remaining", info.PauseRemaining.Round(time.Second))
		}
	case d.want <= 0: // nothing was asked for
	case waits && info.Config.MaxAckPending > 0 && info.NumAckPending >= info.Config.MaxAckPending:
		h.wait, h.strikes = lookSoon, 0
		if !h.full {
			d.stalled("the group has as many unsettled events as it may", "its processes must settle some, or give the consumer a larger max-pending", "unsettled", info.NumAckPending)
		}
	case waits && d.want > 0:
		h.wait = lookSoon
		if h.strikes++; h.strikes >= strikesOut {
			h.strikes = 0
			d.stalled("it has events and sends none", "the subscription is made anew", "pending", info.NumPending)
			d.rebuild()
		}
	default:
		h.strikes = 0
	}
	if h.paused && !info.Paused {
		d.c.log.Info("natsbus: the consumer was resumed", "consumer", d.consumer, "stream", d.stream)
	}
	if h.paused = info.Paused; d.want > 0 {
		h.full = info.NumAckPending > 0 && info.NumAckPending >= info.Config.MaxAckPending
	}
}

// stalled counts and says that nothing comes, why, and the way out.
func (d *durable) stalled(cause, wayOut string, args ...any) {
	d.c.stalls.Add(1)
	d.c.log.Warn("natsbus: a durable subscription gets nothing", append([]any{"group", d.spec.Group, "pattern", d.spec.Pattern,
		"stream", d.stream, "consumer", d.consumer, "cause", cause, "way_out", wayOut}, args...)...)
}

// rebuild subscribes to a new inbox and pulls anew: of one that is silent it
// cannot be told whether the pulls, the subscription or the route between are
// broken.
func (d *durable) rebuild() {
	inbox := d.c.nc.NewInbox() + "."
	sub, err := d.c.nc.Subscribe(inbox+"*", d.receive)
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err != nil {
		return // the connection is down or closed: linkUp comes
	}
	d.mu.Lock()
	old := d.sub
	d.sub = sub
	d.mu.Unlock()
	d.inbox = inbox
	_ = old.Drain() // what it has still comes; if it is broken there is nothing
	d.check(0)
}

// subscription is the present one.
func (d *durable) subscription() *nats.Subscription {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sub
}
