package natsbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/loop"
)

// orphanAfter is how long a process has subscribed before it looks for groups of
// its app that nobody takes from: until then it may subscribe to more itself.
const orphanAfter = time.Minute

// busyFor is how long a group that asks for nothing, but has events unsettled,
// passes for busy: its processes may hold as many as they take at once.
const busyFor = time.Minute

// How a durable group is seen to do.
const (
	GroupPulling = "pulling" // a process asks for more
	GroupBusy    = "busy"    // none asks; what was delivered in the last minute is not settled
	GroupAway    = "away"    // no process is seen
)

// stateOf judges by what only the server knows: whether a pull of any process
// waits there now. Ours wait nearly always, also when there is nothing to deliver.
func stateOf(i *jetstream.ConsumerInfo) string {
	switch {
	case i.NumWaiting > 0 || i.PushBound:
		return GroupPulling
	case i.NumAckPending > 0 && time.Since(lastActive(i)) < busyFor:
		return GroupBusy
	}
	return GroupAway
}

// lastActive is when the group last took or acknowledged an event, or was made.
func lastActive(i *jetstream.ConsumerInfo) time.Time {
	t := i.Created
	for _, s := range []jetstream.SequenceInfo{i.Delivered, i.AckFloor} {
		if s.Last != nil && s.Last.After(t) {
			t = *s.Last
		}
	}
	return t
}

// settledInfo returns what a consumer is like now; one whose pull is just being renewed is
// looked at again.
func (c *conn) settledInfo(ctx context.Context, stream string, i *jetstream.ConsumerInfo) (*jetstream.ConsumerInfo, error) {
	for range 3 {
		if stateOf(i) == GroupPulling {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return i, context.Cause(ctx)
		}
		again, err := c.consumerInfo(ctx, stream, i.Name)
		if err != nil {
			return i, err
		}
		i = again
	}
	return i, nil
}

// startOrphans looks for orphans once, a while after the first subscription. mu
// is held.
func (c *conn) startOrphans() {
	if c.orphans != nil || c.closing.Load() {
		return
	}
	c.orphans = loop.Go(func(ctx context.Context) {
		select {
		case <-time.After(orphanAfter):
		case <-ctx.Done():
			return
		}
		if err := c.reportOrphans(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("natsbus: could not look for groups that nobody takes from", "cause", err)
		}
	})
}

func (c *conn) stopOrphans() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orphans != nil {
		c.orphans.Stop()
	}
}

// reportOrphans names the groups of this app whose events wait for nobody: their
// pattern was changed, or the process that had it was given up. They hold what
// is stored until somebody says that it is not needed, and are never removed by
// themselves: the version that wants them may be rolled back.
func (c *conn) reportOrphans(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*subscribeTimeout)
	defer cancel()
	streams, err := c.tidings(ctx)
	if err != nil {
		return err
	}
	for _, s := range streams {
		all, err := c.consumers(ctx, s.Config.Name)
		if err != nil {
			return err
		}
		for _, i := range all {
			if i.Config.Metadata[metaApp] != c.cfg.App || i.Config.Durable == "" {
				continue
			}
			if i, err = c.settledInfo(ctx, s.Config.Name, i); err != nil {
				return err
			}
			if stateOf(i) == GroupAway {
				c.log.Warn("natsbus: nobody takes from a group of this app; if its pattern was changed, remove it with tidings streams forget",
					"stream", s.Config.Name, "group", groupOf(i), "pattern", patternOf(i), "waiting", i.NumPending+uint64(i.NumAckPending), "last_active", lastActive(i).Format(time.RFC3339))
			}
		}
	}
	return nil
}

// tidings returns the streams that Tidings has made.
func (c *conn) tidings(ctx context.Context) (ours []*jetstream.StreamInfo, err error) {
	all, err := c.listStreams(ctx)
	for _, s := range all {
		if s.Config.Metadata[metaApp] != "" {
			ours = append(ours, s)
		}
	}
	return ours, err
}
