package natskv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
)

// A claim is a key that this process holds. The renewing goroutine owns the
// revision; it has ended before anybody else looks at it.
type claim struct {
	s        *Store
	key      string
	by       string
	revision uint64
	lost     bool
}

// run calls the handler under the claim, and settles it.
func (c *claim) run(ctx context.Context, h tidings.Handler, e tidings.Event) (err error) {
	hctx, cancel := context.WithCancelCause(ctx)
	renewing := loop.Go(func(stop context.Context) { c.renew(stop, cancel) })
	returned := false
	defer func() {
		renewing.StopAndWait()
		cancel(nil)
		switch {
		case returned && err == nil:
			c.mark(ctx, e)
		case !c.lost:
			c.release(ctx)
		case returned:
			err = errors.Join(err, ErrLeaseLost)
		}
	}()
	err = h(hctx, e)
	returned = true
	return err
}

// renew keeps the lease until it is stopped. It tries three times in a lease; a
// request that is under way when it is stopped is waited for, since its outcome
// is the revision.
func (c *claim) renew(stop context.Context, lose func(error)) {
	tick := time.NewTicker(c.s.o.Lease / 3)
	defer tick.Stop()
	held := time.Now()
	for {
		select {
		case <-tick.C:
		case <-stop.Done():
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), c.s.o.Lease/3)
		began := time.Now()
		revision, err := c.s.write(ctx, c.key, entry{State: stateClaimed, By: c.by}, c.s.o.Lease, c.revision)
		cancel()
		switch {
		case err == nil:
			c.revision, held = revision, began
		case overtaken(err) && c.renewed(stop):
			held = began
		case overtaken(err), time.Since(held) > c.s.o.Lease:
			c.lost = true
			lose(ErrLeaseLost)
			return
		}
	}
}

// renewed reports whether it was an earlier try of ours, whose answer was lost,
// that has overtaken us.
func (c *claim) renewed(stop context.Context) bool {
	revision, e, err := c.s.read(context.WithoutCancel(stop), c.key)
	if err != nil || e.State != stateClaimed || e.By != c.by {
		return false
	}
	c.revision = revision
	return true
}

// mark notes that the event was handled. The work is done: whatever happens here
// is no error of the handler, since a retry would do it again.
func (c *claim) mark(ctx context.Context, e tidings.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answer)
	defer cancel()
	var err error
	for range 3 {
		if _, err = c.s.write(ctx, c.key, entry{State: stateDone, By: c.by}, c.s.o.Window, c.revision); err == nil {
			return
		}
		// An answer that was lost looks like another's write the next time.
		revision, now, rerr := c.s.read(ctx, c.key)
		switch {
		case rerr != nil:
		case now.State == stateDone:
			return
		case now.By == c.by || now.State == "":
			c.revision = revision // nobody else has it: mark it all the same
		default:
			err = fmt.Errorf("claimed by %s meanwhile", now.By)
		}
	}
	c.s.unmarked.Add(1)
	c.s.o.Logger.Warn("natskv: an event was handled and could not be marked: if it is delivered again it is handled again",
		"topic", e.Topic(), "id", e.ID(), "bucket", c.s.o.Bucket, "key", c.key, "lease_lost", c.lost, "err", err)
}

// release lets others have the event at once. If it fails they wait for the end
// of the lease.
func (c *claim) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answer)
	defer cancel()
	// What is left of the key goes, too: an event that is given up would leave it for good.
	if err := c.s.kv.Purge(ctx, c.key, jetstream.LastRevision(c.revision), jetstream.PurgeTTL(time.Second)); err != nil {
		c.s.o.Logger.Warn("natskv: a claim could not be released; others wait for the end of its lease", "bucket", c.s.o.Bucket, "key", c.key, "err", err)
	}
}
