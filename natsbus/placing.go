package natsbus

import (
	"context"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/topic"
)

// A placing says to which outbox the events of a durable route go: to that of its
// stream.
type placing struct {
	subject string // with wildcards
	box     *outbox
}

// boxOf is the outbox for a subject. What no route covers, like the letters and notes
// of durable groups, goes to one that knows nothing of any stream.
func (c *conn) boxOf(subject string) *outbox {
	for _, p := range *c.placings.Load() {
		if topic.Covers(p.subject, subject) {
			return p.box
		}
	}
	return c.w.boxes[0]
}

// placeRoutes finds the streams of the durable routes, and has those of the app itself
// do what newer servers can: forget what has expired, and take batches. Where that
// cannot be done, events that have expired stay stored until they are purged (they
// are not handled either way), and events go singly. So nothing here is an error.
func (c *conn) placeRoutes(ctx context.Context, inWriter func(func())) {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	type found struct {
		subject string
		info    *jetstream.StreamInfo
	}
	var all []found
	var forgetful []string
	for _, route := range c.cfg.Durable {
		subject := c.subject(route)
		info, err := c.streamAt(ctx, "", subject)
		if err == nil {
			if err = c.improve(ctx, info); info.Config.AllowMsgTTL {
				forgetful = append(forgetful, subject)
			}
			all = append(all, found{subject, info})
		}
		if err != nil {
			c.log.Warn("natsbus: a stream could not be told to forget what expires and to take batches: what expires stays stored until it is purged, and events are stored one by one", "route", route, "err", c.jsError(err))
		}
	}
	c.forgetful.Store(&forgetful)
	inWriter(func() {
		var placings []placing
		for _, f := range all {
			placings = append(placings, placing{f.subject, c.w.box(f.info, c.batchSync())})
		}
		c.placings.Store(&placings)
	})
}

// improve changes a stream of this app.
func (c *conn) improve(ctx context.Context, info *jetstream.StreamInfo) error {
	cfg := info.Config
	cfg.AllowMsgTTL = cfg.AllowMsgTTL || c.serverHas(2, 11)
	cfg.AllowAtomicPublish = cfg.AllowAtomicPublish || c.batchSync()
	if cfg.Metadata[metaApp] != c.cfg.App || cfg.AllowMsgTTL == info.Config.AllowMsgTTL && cfg.AllowAtomicPublish == info.Config.AllowAtomicPublish {
		return nil
	}
	if _, err := c.js.UpdateStream(ctx, cfg); err != nil {
		return err
	}
	c.log.Info("natsbus: stream changed", "stream", cfg.Name, "allow_msg_ttl", cfg.AllowMsgTTL, "allow_atomic", cfg.AllowAtomicPublish)
	info.Config = cfg
	return nil
}

// batchSync reports whether the server stores a batch with one sync: before 2.15.2 it
// does not, and batches are of no use.
func (c *conn) batchSync() bool { return c.serverHas(2, 15, 2) }

// box is the outbox of a stream. It is called by the writer's goroutine, or before that
// runs.
func (w *writer) box(info *jetstream.StreamInfo, batches bool) *outbox {
	name := info.Config.Name
	if i := slices.IndexFunc(w.boxes, func(o *outbox) bool { return o.stream == name }); i >= 0 {
		return w.boxes[i]
	}
	o := &outbox{w: w, stream: name, created: info.Created, known: true,
		window: info.Config.Duplicates, batches: batches && info.Config.AllowAtomicPublish}
	o.last.Store(info.State.LastSeq)
	w.boxes = append(w.boxes, o)
	return o
}
