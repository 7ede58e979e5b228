package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
)

// errNoLetters: the stream of dead letters is made when the first event dies.
var errNoLetters = errors.New("no event has died yet")

// stored is a letter as it lies in its stream.
type stored struct {
	head letterHead
	seq  uint64
	msg  *nats.Msg
}

// Letters implements [adapter.DeadLetters].
func (c *conn) Letters(ctx context.Context) iter.Seq2[*adapter.DeadLetter, error] {
	return func(yield func(*adapter.DeadLetter, error) bool) {
		first, cancel := withLimit(ctx, subscribeTimeout)
		st, err := c.lettersStream(first)
		cancel()
		for seq := uint64(1); err == nil; {
			var s *stored
			if s, err = c.nextLetter(ctx, st, seq, reserved+".dead."+c.scope()+".>"); err == nil {
				if !yield(c.letterOf(s), nil) {
					return
				}
				seq = s.seq + 1
			}
		}
		if !errors.Is(err, errNoLetters) && !errors.Is(err, jetstream.ErrMsgNotFound) {
			yield(nil, fmt.Errorf("natsbus: dead letters: %w", c.jsError(err)))
		}
	}
}

// Letter implements [adapter.DeadLetters].
func (c *conn) Letter(ctx context.Context, id string) (*adapter.DeadLetter, error) {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	_, s, err := c.findLetter(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.letterOf(s), nil
}

// Redeliver implements [adapter.DeadLetters].
func (c *conn) Redeliver(ctx context.Context, id string) error {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	st, s, err := c.findLetter(ctx, id)
	if err != nil {
		return err
	}
	msg := &nats.Msg{Header: plainHeader(s.msg.Header), Data: s.msg.Data}
	// The letter's own place, so that two who redrive it at once deliver it once.
	key := fmt.Sprintf("%s/%d", c.deadStream(), s.seq)
	if err := c.give(ctx, recipient{s.head.Stream, s.head.Consumer}, s.head.Subject, msg, key); err != nil {
		return fmt.Errorf("natsbus: redrive %s to group %q: %w", id, s.head.Group, err)
	}
	if err := c.removeLetter(ctx, st, s.seq); err != nil {
		return fmt.Errorf("natsbus: letter %s was redriven, but is still there; a second redrive delivers its event a second time: %w", id, err)
	}
	return nil
}

// Drop implements [adapter.DeadLetters].
func (c *conn) Drop(ctx context.Context, id string) error {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	st, s, err := c.findLetter(ctx, id)
	if err == nil {
		err = c.removeLetter(ctx, st, s.seq)
	}
	return err
}

func (c *conn) lettersStream(ctx context.Context) (jetstream.Stream, error) {
	if err := c.link.wait(ctx); err != nil {
		return nil, err
	}
	st, err := c.js.Stream(ctx, c.deadStream())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, errNoLetters
	}
	return st, err
}

// nextLetter is the first at or after a sequence.
func (c *conn) nextLetter(ctx context.Context, st jetstream.Stream, seq uint64, subject string) (*stored, error) {
	raw, err := st.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
	if err != nil {
		return nil, err
	}
	s := &stored{seq: raw.Sequence, msg: &nats.Msg{Subject: raw.Subject, Header: raw.Header, Data: raw.Data}}
	if err := json.Unmarshal([]byte(raw.Header.Get(hLetter)), &s.head); err != nil {
		return nil, fmt.Errorf("message %d of stream %s is no letter: its header %s cannot be read (%w): remove it with \"nats stream rmm %s %d\"",
			raw.Sequence, c.deadStream(), hLetter, err, c.deadStream(), raw.Sequence)
	}
	return s, nil
}

func (c *conn) findLetter(ctx context.Context, id string) (jetstream.Stream, *stored, error) {
	none := fmt.Errorf("natsbus: %w: %q: \"tidings dlq list\" shows those there are", adapter.ErrNoLetter, id)
	parts := strings.Split(id, ":")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" || strings.ContainsAny(id, ".*> \t\r\n") {
		return nil, nil, none
	}
	st, err := c.lettersStream(ctx)
	if errors.Is(err, errNoLetters) {
		return nil, nil, none
	}
	if err != nil {
		return nil, nil, fmt.Errorf("natsbus: dead letter %s: %w", id, c.jsError(err))
	}
	subject := strings.Join([]string{reserved, "dead", c.scope(), parts[0], "*", parts[1], parts[2]}, ".")
	s, err := c.nextLetter(ctx, st, 1, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil, none
	}
	if err != nil {
		return nil, nil, fmt.Errorf("natsbus: dead letter %s: %w", id, c.jsError(err))
	}
	return st, s, nil
}

// removeLetter succeeds also when somebody else was quicker.
func (c *conn) removeLetter(ctx context.Context, st jetstream.Stream, seq uint64) error {
	err := st.DeleteMsg(ctx, seq)
	if err != nil {
		if _, gone := st.GetMsg(ctx, seq); errors.Is(gone, jetstream.ErrMsgNotFound) {
			return nil
		}
	}
	return err
}

func (c *conn) letterOf(s *stored) *adapter.DeadLetter {
	h := s.head
	header := plainHeader(s.msg.Header)
	m, err := decode(c.topic(h.Subject), header, s.msg.Data)
	if err != nil {
		// What could not be read is shown as it is.
		for k, v := range header {
			if k = strings.ToLower(k); len(v) > 0 && m.Header[k] == "" {
				setHeader(&m, k, v[0])
			}
		}
		m.Data = s.msg.Data
	}
	return &adapter.DeadLetter{ID: h.ID, Event: m, Stream: h.Stream, Sequence: h.Sequence, Group: h.Group, Pattern: h.Pattern,
		Reason: h.Reason, Stack: h.Stack, Attempts: h.Attempts, Deliveries: h.Deliveries, First: h.First, Last: h.Last, Instance: h.Instance}
}
