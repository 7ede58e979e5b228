package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// What a stream of ours keeps at most, unless somebody edits it.
const (
	streamMaxBytes = 1 << 30
	streamMinBytes = 16 << 20 // below it a server has no room worth using
	dedupWindow    = 2 * time.Minute
)

// Settings of a durable consumer. The ack wait is short because it is how long
// the events of a process that died are held back; heartbeats keep it from
// ending for those that live.
const (
	ackWait       = 5 * time.Second
	maxAckPending = 20_000
)

// ensureStreams makes sure that a stream covers every durable route of the app.
// Whose stream it is does not matter; what nobody covers goes to the app's own.
func (c *conn) ensureStreams(ctx context.Context) error {
	if len(c.cfg.Durable) == 0 {
		return nil
	}
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	for _, pattern := range c.cfg.Durable {
		if err := c.ensureStream(ctx, c.subject(pattern)); err != nil {
			return fmt.Errorf("natsbus: durable route %q: %w", pattern, err)
		}
	}
	return nil
}

func (c *conn) ensureStream(ctx context.Context, subject string) error {
	for {
		again, err := c.tryStream(ctx, subject)
		if !again {
			return err
		}
		// Another process of the app creates or extends it at this moment.
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

func (c *conn) tryStream(ctx context.Context, subject string) (again bool, err error) {
	near, err := c.streamsNear(ctx, subject)
	if err != nil {
		return false, err
	}
	name := c.streamName()
	for _, info := range near {
		if covers(info, subject) {
			return false, nil
		}
	}
	for _, info := range near {
		if info.Config.Name != name {
			return false, fmt.Errorf("stream %s already has a part of it (%s), so stream %s cannot have all of it: add %q to stream %s, or narrow the route",
				info.Config.Name, strings.Join(info.Config.Subjects, " "), name, subject, info.Config.Name)
		}
	}
	own, err := c.js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return c.createStream(ctx, subject)
	case err != nil:
		return false, c.jsError(err)
	}
	cfg := own.CachedInfo().Config
	cfg.Subjects = append(slices.DeleteFunc(slices.Clone(cfg.Subjects), func(s string) bool { return topic.Covers(subject, s) }), subject)
	if _, err = c.js.UpdateStream(ctx, cfg); err != nil {
		return raced(err), fmt.Errorf("add it to stream %s: %w", name, c.jsError(err))
	}
	// Two processes that add different subjects at once overwrite each other:
	// look again.
	return true, errors.New("the stream was changed by another process again and again")
}

func (c *conn) createStream(ctx context.Context, subject string) (again bool, err error) {
	cfg := jetstream.StreamConfig{
		Name: c.streamName(), Subjects: []string{subject}, Description: "durable events of " + c.cfg.App,
		Storage: jetstream.FileStorage, Replicas: 1, Retention: jetstream.LimitsPolicy,
		Discard:    jetstream.DiscardNew, // a full stream is the publisher's error, never a group's loss
		Duplicates: dedupWindow, MaxBytes: streamMaxBytes, AllowDirect: true,
		Metadata: map[string]string{"tidings.app": c.cfg.App},
	}
	for {
		_, err = c.js.CreateStream(ctx, cfg)
		if !noRoom(err) || cfg.MaxBytes/2 < streamMinBytes {
			break
		}
		cfg.MaxBytes /= 2 // what the account allows
	}
	switch {
	case err == nil:
		c.log.Info("natsbus: stream created", "stream", cfg.Name, "subjects", cfg.Subjects, "max_bytes", cfg.MaxBytes)
		return false, nil
	case raced(err):
		return true, err
	}
	return false, fmt.Errorf("create stream %s: %w", cfg.Name, c.jsError(err))
}

func errCode(err error) int {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return int(api.ErrorCode)
	}
	return 0
}

func raced(err error) bool {
	code := errCode(err)
	return code == jsNoSubject || code == jsNameInUse
}

func noRoom(err error) bool {
	code := errCode(err)
	return code == jsInsufficient || code == jsNoStorage || code == jsNoMemory
}

// jsError says the way out of what JetStream answers.
func (c *conn) jsError(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("the server at %s has no JetStream for this account: enable it (tidings hub has it; nats-server -js), or declare no durable route: %w", c.addr.public, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("JetStream at %s does not answer: it may be starting, or this user may lack permission for $JS.API.>: %w", c.addr.public, err)
	}
	return err
}

// streamsNear returns the streams that share subjects with subject.
func (c *conn) streamsNear(ctx context.Context, subject string) ([]*jetstream.StreamInfo, error) {
	list := c.js.ListStreams(ctx, jetstream.WithStreamListSubject(subject))
	var near []*jetstream.StreamInfo
	for info := range list.Info() {
		near = append(near, info)
	}
	if err := list.Err(); err != nil {
		return nil, c.jsError(err)
	}
	return near, nil
}

func covers(info *jetstream.StreamInfo, subject string) bool {
	return slices.ContainsFunc(info.Config.Subjects, func(s string) bool { return topic.Covers(s, subject) })
}

// streamName is that of the app's own stream.
func (c *conn) streamName() string {
	if c.cfg.Prefix == "" {
		return sanitize(c.cfg.App)
	}
	return sanitize(c.cfg.Prefix + "_" + c.cfg.App)
}

// sanitize makes a name that JetStream takes and people can read.
func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r == '>':
			return 'A' // all
		}
		return '_'
	}, s)
}

// consumerName is the durable name of a group and pattern: readable, and made
// unique by a hash, because reading drops what JetStream does not allow.
func consumerName(group, subject string) string {
	sum := sha256.Sum256([]byte(group + "\x00" + subject))
	readable := sanitize(group + "-" + subject)
	return readable[:min(len(readable), 80)] + "-" + hex.EncodeToString(sum[:5])
}

// findConsumer finds the stream that covers a subject and makes sure of the
// group's consumer there. It returns when the stream was created, too: with
// another one, sequences begin again.
func (c *conn) findConsumer(ctx context.Context, group, subject string) (stream, consumer string, created time.Time, err error) {
	near, err := c.streamsNear(ctx, subject)
	if err != nil {
		return "", "", created, err
	}
	var names []string
	for _, info := range near {
		if covers(info, subject) {
			consumer, err = c.ensureConsumer(ctx, info.Config.Name, group, subject)
			return info.Config.Name, consumer, info.Created, err
		}
		names = append(names, info.Config.Name)
	}
	if len(names) > 0 {
		return "", "", created, fmt.Errorf("%w: %q is only partly in stream %s: narrow the pattern, or add the subject to that stream", adapter.ErrNotDurable, subject, strings.Join(names, ", "))
	}
	return "", "", created, fmt.Errorf("%w: no stream at %s has %q: declare a durable route for it in the app that publishes it, and start that app once", adapter.ErrNotDurable, c.addr.public, subject)
}

func (c *conn) ensureConsumer(ctx context.Context, stream, group, subject string) (string, error) {
	cfg := jetstream.ConsumerConfig{
		Durable: consumerName(group, subject), FilterSubject: subject,
		Description: "group " + group, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: maxAckPending,
		Metadata: map[string]string{"tidings.group": group},
	}
	got, err := c.js.Consumer(ctx, stream, cfg.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		if _, err = c.js.CreateConsumer(ctx, stream, cfg); err == nil {
			return cfg.Durable, nil
		}
		if !errors.Is(err, jetstream.ErrConsumerExists) {
			return "", fmt.Errorf("create consumer %s on stream %s: %w", cfg.Durable, stream, c.jsError(err))
		}
		got, err = c.js.Consumer(ctx, stream, cfg.Durable)
	}
	if err != nil {
		return "", fmt.Errorf("consumer %s on stream %s: %w", cfg.Durable, stream, c.jsError(err))
	}
	have := got.CachedInfo().Config
	if have.AckPolicy != cfg.AckPolicy || have.DeliverPolicy != cfg.DeliverPolicy || have.DeliverSubject != "" {
		return "", fmt.Errorf("consumer %s on stream %s has ack policy %v and deliver policy %v, which cannot be changed; %v and %v are needed: delete it with \"nats consumer rm %s %s\" (its place in the stream is lost)",
			cfg.Durable, stream, have.AckPolicy, have.DeliverPolicy, cfg.AckPolicy, cfg.DeliverPolicy, stream, cfg.Durable)
	}
	if have.AckWait != cfg.AckWait || have.MaxDeliver != cfg.MaxDeliver || have.MaxAckPending != cfg.MaxAckPending {
		have.AckWait, have.MaxDeliver, have.MaxAckPending = cfg.AckWait, cfg.MaxDeliver, cfg.MaxAckPending
		if _, err := c.js.UpdateConsumer(ctx, stream, have); err != nil {
			return "", fmt.Errorf("update consumer %s on stream %s: %w", cfg.Durable, stream, c.jsError(err))
		}
	}
	return cfg.Durable, nil
}
