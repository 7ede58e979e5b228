package natsbus

import (
	"cmp"
	"context"
	"errors"
	"net"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/internal/loop"
)

// watchTimes are how often the connection is looked at.
type watchTimes struct {
	interest time.Duration   // 0: never
	outage   []time.Duration // when one is spoken of; then each time the last has passed once more
}

// watchedAt is what a new connection takes. Tests change it.
var watchedAt = watchTimes{
	interest: interestEvery,
	outage:   []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute},
}

// watch looks after the connection until it is closed: while it is up it asks the server
// whether it has our subscriptions, and while it is down it says so now and then, with
// the last cause. nats.go tries for ever and says little.
func (c *conn) watch() *loop.Loop {
	times := watchedAt
	return loop.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			up, closed, changed := c.link.state()
			switch {
			case closed:
				return
			case up:
				c.watchInterest(ctx, times.interest, changed)
			default:
				c.watchOutage(ctx, times.outage, changed)
			}
		}
	})
}

// watchOutage returns when something has changed.
func (c *conn) watchOutage(ctx context.Context, said []time.Duration, changed <-chan struct{}) {
	began := time.Now()
	for i := 0; ; i++ {
		wait := said[min(i, len(said)-1)]
		if i > 0 && i < len(said) {
			wait -= said[i-1]
		}
		if !unchanged(ctx, changed, wait) {
			return
		}
		c.failed(c.nc.LastError()) // of a server that spoke, and went no further
		cause := cmp.Or(c.cause(), errClosedByServer)
		c.log.Warn("natsbus: still no connection; trying on", "url", c.addr.public, "for", time.Since(began).Round(time.Second),
			"cause", cause, "way_out", c.addr.wayOut(cause), "tries", c.dials.Load(), "buffered", c.w.buffered(), "spooled", c.spoolers.waiting())
	}
}

// never is a wait for what does not come.
const never = time.Duration(-1)

// unchanged waits, and reports whether the connection is as it was.
func unchanged(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	var over <-chan time.Time
	if d >= 0 {
		over = time.After(d)
	}
	select {
	case <-over:
		return true
	case <-changed:
	case <-ctx.Done():
	}
	return false
}

// writeFailed: nothing can be written to the connection any more.
func writeFailed(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "write"
}

// cause is the last error of the connection.
func (c *conn) cause() error {
	if p := c.lastError.Load(); p != nil {
		return *p
	}
	return nil
}

// errClosedByServer is the cause when there was no other.
var errClosedByServer = errors.New("closed by the server")

// failed keeps why there is no connection.
func (c *conn) failed(err error) {
	if err != nil {
		c.lastError.Store(&err)
	}
}

// onTry is called after each attempt to connect that failed before the server spoke.
func (c *conn) onTry(_ *nats.Conn, err error) { c.failed(err) }

// refusesLogin reports whether an error is about who we are.
func refusesLogin(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}
