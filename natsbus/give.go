package natsbus

import (
	"context"
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

// An event for one group alone is stored in the group's own stream, on a subject
// that nobody but the group's consumer has: its private one. The stream captures
// private subjects, and the consumer has a second filter, from when the first
// event is given and not before: a consumer with two filters was measured to read
// a backlog at 0.6 of the speed of one with a single filter.
// docs/decisions/011-private-subjects.md has the alternatives.

// A recipient is a durable group and pattern, as its consumer.
type recipient struct{ stream, consumer string }

// private is the subject on which only the recipient gets an event of a subject.
func (r recipient) private(subject string) string {
	return strings.Join([]string{reserved, "to", r.stream, r.consumer, subject}, ".")
}

// original is the subject under which an event was published, whether it came on
// that or on a private one.
func original(subject string) string {
	if !strings.HasPrefix(subject, reserved+".to.") {
		return subject
	}
	parts := strings.SplitN(subject, ".", 5)
	return parts[len(parts)-1]
}

// ownSubject reports whether a subject is ours or NATS's: no event for anybody.
func ownSubject(subject string) bool {
	return strings.HasPrefix(subject, "$") || strings.HasPrefix(subject, "_INBOX.")
}

// Give implements [adapter.Giver].
func (c *conn) Give(ctx context.Context, m *adapter.Message, group, pattern, key string) error {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	fail := func(err error) error {
		return fmt.Errorf("natsbus: give %s to group %q of %q: %w", m.Topic, group, pattern, err)
	}
	filter := c.subject(pattern)
	if !topic.Match(pattern, m.Topic) {
		return fail(errors.New("the pattern does not match the topic"))
	}
	near, err := c.streamsNear(ctx, filter)
	if err != nil {
		return fail(err)
	}
	i := slices.IndexFunc(near, func(info *jetstream.StreamInfo) bool { return covers(info, filter) })
	if i < 0 {
		return fail(fmt.Errorf("%w: no stream has the pattern", adapter.ErrNotDurable))
	}
	to := recipient{near[i].Config.Name, consumerName(group, filter)}
	msg := binary.encode("", m, adapter.Durable)
	if err := c.give(ctx, to, c.subject(m.Topic), msg, to.consumer+"/"+key); err != nil {
		return fail(err)
	}
	return nil
}

// give stores a message for one recipient and waits for the acknowledgement. The
// subject is that of the event.
func (c *conn) give(ctx context.Context, to recipient, subject string, m *nats.Msg, key string) error {
	if err := c.openPrivate(ctx, to); err != nil {
		return err
	}
	to.address(m, subject, key)
	if _, err := c.storePrivate(ctx, to, m); err != nil {
		return err
	}
	return c.stillPrivate(ctx, to)
}

// address makes a message one for the recipient alone.
func (to recipient) address(m *nats.Msg, subject, key string) {
	m.Subject = to.private(subject)
	m.Header[nats.MsgIdHdr] = []string{"give/" + key}
	m.Header[nats.ExpectedStreamHdr] = []string{to.stream}
}

// storePrivate stores a message that has an address, and returns its place in the
// stream.
func (c *conn) storePrivate(ctx context.Context, to recipient, m *nats.Msg) (uint64, error) {
	ack, err := c.js.PublishMsg(ctx, m)
	if err != nil {
		if errCode(err) == jsStoreFailed || noRoom(err) {
			return 0, fmt.Errorf("%w: stream %s takes no more: let its groups catch up, or raise its limit with \"nats stream edit\": %w", adapter.ErrFull, to.stream, err)
		}
		return 0, c.jsError(err)
	}
	return ack.Sequence, nil
}

// stillPrivate fails when the recipient does not get what is stored for it: whoever
// changed the consumer's filters meanwhile may have taken ours away.
func (c *conn) stillPrivate(ctx context.Context, to recipient) error {
	info, err := c.consumerInfo(ctx, to.stream, to.consumer)
	if err != nil {
		return c.sayGone(to, err)
	}
	if !hasFilter(info.Config, to.private(">")) {
		return fmt.Errorf("another process has changed the filters of consumer %s meanwhile: try again", to.consumer)
	}
	return nil
}

// openPrivate makes sure that the recipient gets what is stored for it alone.
func (c *conn) openPrivate(ctx context.Context, to recipient) error {
	info, err := c.consumerInfo(ctx, to.stream, to.consumer)
	if err != nil {
		return c.sayGone(to, err)
	}
	if err := c.capturePrivate(ctx, to.stream); err != nil {
		return err
	}
	cfg := info.Config
	if hasFilter(cfg, to.private(">")) {
		return nil
	}
	cfg.FilterSubjects = append(filters(cfg), to.private(">"))
	cfg.FilterSubject = ""
	err = c.api(ctx, "CONSUMER.CREATE."+to.stream, func(ctx context.Context) error {
		_, err := c.js.UpdateConsumer(ctx, to.stream, cfg)
		// nats-server answers the first change after its start with the consumer as it
		// was before. nats.go misses the filters in it, and calls that a refusal.
		if errors.Is(err, jetstream.ErrConsumerMultipleFilterSubjectsNotSupported) {
			now, lookup := c.js.Consumer(ctx, to.stream, to.consumer)
			if lookup == nil && hasFilter(now.CachedInfo().Config, to.private(">")) {
				return nil
			}
			err = errors.Join(err, lookup)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("update consumer %s on stream %s: %w", to.consumer, to.stream, err)
	}
	return nil
}

// sayGone says the way out when a recipient cannot be looked up.
func (c *conn) sayGone(to recipient, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("stream %s is gone: start the app that publishes these events, and the group, once", to.stream)
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return fmt.Errorf("stream %s has no consumer %s: the group is gone, or its pattern was changed; start it once with this pattern", to.stream, to.consumer)
	}
	return c.jsError(err)
}

// capturePrivate adds the private subjects of its groups to a stream, once.
func (c *conn) capturePrivate(ctx context.Context, stream string) error {
	subject := reserved + ".to." + stream + ".>"
	for {
		info, err := c.streamInfo(ctx, stream)
		if err != nil {
			return err
		}
		cfg := info.Config
		if slices.Contains(cfg.Subjects, subject) {
			return nil
		}
		cfg.Subjects = append(slices.Clone(cfg.Subjects), subject)
		err = c.api(ctx, "STREAM.UPDATE."+stream, func(ctx context.Context) error {
			_, err := c.js.UpdateStream(ctx, cfg)
			return err
		})
		if err != nil && !raced(err) {
			return fmt.Errorf("add %q to stream %s: %w", subject, stream, err)
		}
		select { // two that add different subjects at once overwrite each other: look again
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func hasFilter(cfg jetstream.ConsumerConfig, subject string) bool {
	return slices.Contains(filters(cfg), subject)
}

func filters(cfg jetstream.ConsumerConfig) []string {
	if cfg.FilterSubject != "" {
		return []string{cfg.FilterSubject}
	}
	return slices.Clone(cfg.FilterSubjects)
}

// withPrivate gives a new consumer the second filter if its stream captures
// private subjects: what waits there for a group must not be lost when its
// consumer is made anew.
func withPrivate(cfg jetstream.ConsumerConfig, info *jetstream.StreamInfo) jetstream.ConsumerConfig {
	to := recipient{info.Config.Name, cfg.Durable}
	if slices.Contains(info.Config.Subjects, reserved+".to."+to.stream+".>") {
		cfg.FilterSubjects, cfg.FilterSubject = append(filters(cfg), to.private(">")), ""
	}
	return cfg
}
