package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// Settings of a durable consumer. The ack wait is short because it is how long
// the events of a process that died are held back; heartbeats keep it from
// ending for those that live.
var ackWait = 5 * time.Second // tests shorten it

const (
	minAckWait    = 4 * time.Second // heartbeats of other processes come every ackWait/3
	maxAckPending = 20_000
)

// consumerName is the durable name of a group and pattern: readable, and made
// unique by a hash, because reading drops what JetStream does not allow.
func consumerName(group, subject string) string {
	sum := sha256.Sum256([]byte(group + "\x00" + subject))
	readable := sanitize(group + "-" + subject)
	return readable[:min(len(readable), 80)] + "-" + hex.EncodeToString(sum[:5])
}

// findConsumer finds the stream that covers a subject, which was last known to be
// where, and makes sure of the group's consumer there. It returns when the stream was
// created, too: with another one, sequences begin again.
func (c *conn) findConsumer(ctx context.Context, where, group, subject string) (stream, consumer string, created time.Time, err error) {
	info, err := c.streamAt(ctx, where, subject)
	if err != nil {
		return "", "", created, err
	}
	stream = info.Config.Name
	known := c.knows(stream, consumerName(group, subject))
	if consumer, err = c.ensureConsumer(ctx, info, group, subject); err == nil && !known {
		err = c.mayPull(ctx, stream, consumer)
	}
	return stream, consumer, info.Created, err
}

// mayPull finds out whether this user may ask the consumer for events, by a
// request that the server does not understand and says so.
func (c *conn) mayPull(ctx context.Context, stream, consumer string) error {
	op := "CONSUMER.MSG.NEXT." + stream + "." + consumer
	err := c.api(ctx, op, func(ctx context.Context) error {
		_, err := c.nc.RequestWithContext(ctx, apiPrefix+op, []byte("{"))
		return err
	})
	if errors.As(err, new(*refusal)) {
		return err
	}
	return nil // it is pulled from in a moment; what is wrong then is seen and healed
}

// streamAt is streamOf for a subject that a stream of that name has, as far as is known;
// if nothing is, the app's own has what its routes declare, as a rule. To tell is up to
// that stream's leader; who lists streams needs that of the cluster and of each of them,
// too, and any of those may be the one that died.
func (c *conn) streamAt(ctx context.Context, name, subject string) (*jetstream.StreamInfo, error) {
	if name == "" && c.routeOf(subject) != "" {
		name = streamName(c.cfg.Prefix, c.cfg.App)
	}
	if name == "" {
		return c.streamOf(ctx, subject)
	}
	info, err := c.streamInfo(ctx, name)
	switch {
	case err == nil && covers(info, subject):
		return info, nil
	case err == nil, errors.Is(err, jetstream.ErrStreamNotFound), errors.As(err, new(*refusal)):
		return c.streamOf(ctx, subject)
	}
	return nil, err
}

// streamOf finds the stream that has all of a subject. When there is none, and
// a route of this app declares it, it makes one: a subscriber may come before its
// publisher, and a stream may be deleted.
func (c *conn) streamOf(ctx context.Context, subject string) (*jetstream.StreamInfo, error) {
	for again := false; ; again = true {
		near, err := c.streamsNear(ctx, subject)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, info := range near {
			if covers(info, subject) {
				return info, nil
			}
			names = append(names, info.Config.Name)
		}
		switch route := c.routeOf(subject); {
		case route != "" && !again:
			if err := c.ensureStreams(ctx, false); err != nil {
				return nil, err
			}
		case len(names) > 0:
			return nil, fmt.Errorf("%w: %q is only partly in stream %s: narrow the pattern, or declare a durable route as wide as it", adapter.ErrNotDurable, subject, strings.Join(names, ", "))
		default:
			pattern := c.topic(subject)
			return nil, fmt.Errorf("%w: no stream at %s has %q: declare a durable route for it here too (TIDINGS_ROUTES='%s=durable'), and it is made by whoever comes first; or start the app that publishes it before",
				adapter.ErrNotDurable, c.addr.public, subject, pattern)
		}
	}
}

// routeOf is the durable route of this app that covers a subject, "" if none.
func (c *conn) routeOf(subject string) string {
	for _, route := range c.cfg.Durable {
		if topic.Covers(c.subject(route), subject) {
			return route
		}
	}
	return ""
}

func (c *conn) ensureConsumer(ctx context.Context, in *jetstream.StreamInfo, group, subject string) (string, error) {
	stream := in.Config.Name
	cfg := jetstream.ConsumerConfig{
		Durable: consumerName(group, subject), FilterSubject: subject,
		Description: "group " + group, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: c.wantedAckWait(), MaxDeliver: -1, MaxAckPending: maxAckPending,
		Metadata: map[string]string{metaApp: c.cfg.App, metaGroup: group, metaPattern: c.topic(subject)},
	}
	name := cfg.Durable
	info, err := c.consumerInfo(ctx, stream, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		create := func(cfg jetstream.ConsumerConfig) error {
			return c.api(ctx, "CONSUMER.CREATE."+stream, func(ctx context.Context) error {
				_, err := c.js.CreateConsumer(ctx, stream, cfg)
				return err
			})
		}
		both := withPrivate(cfg, in)
		err = create(both)
		if len(both.FilterSubjects) > 0 && errors.As(err, new(*refusal)) {
			// With one filter only, it is in the subject of the request, where it can be allowed.
			if err = create(cfg); err == nil {
				c.log.Warn("natsbus: this user may not make a consumer that gets what is redriven or replayed to its group; who redrives or replays the next time sees to that, and what waited before is lost to the group",
					"stream", stream, "consumer", name)
			}
		}
		if err == nil {
			c.learn(stream, name)
			c.log.Info("natsbus: consumer created", "stream", stream, "consumer", name, "group", group, "pattern", c.topic(subject))
			return name, nil
		}
		if !errors.Is(err, jetstream.ErrConsumerExists) {
			return "", fmt.Errorf("create consumer %s on stream %s: %w", name, stream, err)
		}
		info, err = c.consumerInfo(ctx, stream, name)
	}
	if err != nil {
		return "", fmt.Errorf("consumer %s on stream %s: %w", name, stream, err)
	}
	have := info.Config
	if have.AckPolicy != cfg.AckPolicy || have.DeliverPolicy != cfg.DeliverPolicy || have.DeliverSubject != "" {
		return "", fmt.Errorf("consumer %s on stream %s has ack policy %v and deliver policy %v, which cannot be changed; %v and %v are needed: delete it with \"nats consumer rm %s %s\" (its place in the stream is lost)",
			name, stream, have.AckPolicy, have.DeliverPolicy, cfg.AckPolicy, cfg.DeliverPolicy, stream, name)
	}
	return name, c.settleConsumer(ctx, stream, have, cfg)
}

// settleConsumer changes what this process would have otherwise, once: when it
// subscribes first. Looked up again later, as after each reconnection, the
// consumer stays as it is, or processes of two versions would overwrite each
// other's settings for as long as both run.
func (c *conn) settleConsumer(ctx context.Context, stream string, have, want jetstream.ConsumerConfig) error {
	if c.knows(stream, want.Durable) {
		return nil
	}
	meta := maps.Clone(have.Metadata)
	if meta == nil {
		meta = map[string]string{}
	}
	for k, v := range want.Metadata {
		if meta[k] == "" {
			meta[k] = v
		}
	}
	if have.AckWait == want.AckWait && have.MaxDeliver == want.MaxDeliver && have.MaxAckPending == want.MaxAckPending && maps.Equal(meta, have.Metadata) {
		c.learn(stream, want.Durable)
		return nil
	}
	before := have.AckWait
	have.AckWait, have.MaxDeliver, have.MaxAckPending, have.Metadata = want.AckWait, want.MaxDeliver, want.MaxAckPending, meta
	err := c.api(ctx, "CONSUMER.CREATE."+stream, func(ctx context.Context) error {
		_, err := c.js.UpdateConsumer(ctx, stream, have)
		return err
	})
	if len(have.FilterSubjects) > 0 && errors.As(err, new(*refusal)) {
		c.log.Warn("natsbus: this user may not change a consumer that gets what is redriven or replayed to its group; it stays as it is", "stream", stream, "consumer", want.Durable, "cause", err)
		c.learn(stream, want.Durable)
		return nil
	}
	if err != nil {
		return fmt.Errorf("update consumer %s on stream %s: %w", want.Durable, stream, err)
	}
	c.learn(stream, want.Durable)
	c.log.Info("natsbus: consumer changed", "stream", stream, "consumer", want.Durable, "ack_wait", have.AckWait, "ack_wait_before", before)
	return nil
}

// knows reports whether this process has settled the consumer before.
func (c *conn) knows(stream, consumer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[stream+"/"+consumer]
}

func (c *conn) learn(stream, consumer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[stream+"/"+consumer] = true
	c.startOrphans()
}

func (c *conn) wantedAckWait() time.Duration {
	if c.addr.ackWait != 0 {
		return c.addr.ackWait
	}
	return ackWait
}

func (c *conn) consumerInfo(ctx context.Context, stream, name string) (*jetstream.ConsumerInfo, error) {
	return inquire[jetstream.ConsumerInfo](ctx, c, "CONSUMER.INFO."+stream+"."+name, nil)
}

// consumers returns all there are of a stream. It asks for each by itself:
// on a cluster a list leaves out those whose server does not answer.
func (c *conn) consumers(ctx context.Context, stream string) (all []*jetstream.ConsumerInfo, err error) {
	names, err := c.consumerNames(ctx, stream)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		info, err := c.consumerInfo(ctx, stream, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue // it is gone by now, as those are that somebody reads with once
		}
		if err != nil {
			return nil, fmt.Errorf("consumer %s of stream %s: %w", name, stream, err)
		}
		all = append(all, info)
	}
	return all, nil
}

func (c *conn) consumerNames(ctx context.Context, stream string) (names []string, err error) {
	for {
		page, err := inquire[struct {
			Total     int      `json:"total"`
			Consumers []string `json:"consumers"`
		}](ctx, c, "CONSUMER.NAMES."+stream, map[string]int{"offset": len(names)})
		if err != nil {
			return nil, err
		}
		names = append(names, page.Consumers...)
		if len(page.Consumers) == 0 || len(names) >= page.Total {
			return names, nil
		}
	}
}
