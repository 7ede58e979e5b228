package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
)

// publishLimit ends a durable Publish whose context has no end.
const publishLimit = 30 * time.Second

var errPublishLimit = fmt.Errorf("no acknowledgement within %v", publishLimit)

// States of an item; the caller and the writer both change them.
const (
	queued  int32 = iota // never written
	written              // at least once
	gone                 // the caller has given up
	done                 // it has its result
)

// An item is one message on its way out.
type item struct {
	msg   *nats.Msg
	topic string
	class adapter.Class
	size  int
	state atomic.Int32
	done  chan error // durable: the result, once
	token string     // durable: where its acknowledgement goes
}

// Publish implements [adapter.Adapter].
func (c *conn) Publish(ctx context.Context, m *adapter.Message, class adapter.Class) error {
	if c.closing.Load() {
		return errClosed
	}
	msg := encode(c.subject(m.Topic), m, class)
	size := wireSize(msg)
	if limit := c.maxPayload.Load(); int64(size) > limit {
		return fmt.Errorf("natsbus: %s: the message is %d bytes with its headers; the server at %s takes %d (raise max_payload there, or send a reference)",
			m.Topic, size, c.addr.public, limit)
	}
	it := &item{msg: msg, topic: m.Topic, class: class, size: size}
	if class == adapter.Durable {
		return c.publishDurable(ctx, it)
	}
	return c.w.acceptLive(it)
}

// wireSize is what nats.go makes of the message.
func wireSize(m *nats.Msg) int {
	n := len(m.Data)
	if len(m.Header) > 0 {
		n += len("NATS/1.0\r\n\r\n")
		for k, v := range m.Header {
			n += len(k) + len(v[0]) + len(": \r\n")
		}
	}
	return n
}

func (c *conn) publishDurable(ctx context.Context, it *item) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, publishLimit, errPublishLimit)
		defer cancel()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("natsbus: %s: not sent: %w", it.topic, context.Cause(ctx))
	}
	it.done = make(chan error, 1)
	if err := c.w.acceptDurable(ctx, it); err != nil {
		return err
	}
	select {
	case err := <-it.done:
		return err
	case <-ctx.Done():
		return c.giveUp(it, context.Cause(ctx))
	}
}

// giveUp ends the wait for an item. What was never written is certain not to
// be; the rest is in doubt, and is not sent again.
func (c *conn) giveUp(it *item, cause error) error {
	switch {
	case it.state.CompareAndSwap(queued, gone):
		c.w.post(note{kind: noteGone})
		return fmt.Errorf("natsbus: %s: not sent, the connection to %s is down or busy: %w", it.topic, c.addr.public, cause)
	case it.state.CompareAndSwap(written, gone):
		c.w.post(note{kind: noteGone})
		return fmt.Errorf("natsbus: %s: %w: no stream has acknowledged it: %w", it.topic, adapter.ErrInDoubt, cause)
	}
	return <-it.done
}

// An answer is what the stream said.
type answer struct {
	Stream    string `json:"stream"`
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Error     *struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
}

// Error codes of JetStream that mean something of their own here.
const (
	jsUnavailable   = 10008 // no leader yet, or starting
	jsInsufficient  = 10023
	jsNoMemory      = 10028
	jsNoStorage     = 10047
	jsTooBig        = 10054
	jsNoSubject     = 10065 // subjects overlap
	jsNameInUse     = 10058
	jsStoreFailed   = 10077 // with what failed in the description
	jsStreamOffline = 10118
)

// verdict reads an answer. retry means that the stream is not there yet; else
// err is the result.
func (c *conn) verdict(it *item, m *nats.Msg) (retry bool, err error) {
	if noResponders(m) {
		return true, nil
	}
	var a answer
	if json.Unmarshal(m.Data, &a) != nil || (a.Error == nil && a.Stream == "") {
		return false, fmt.Errorf("natsbus: %s: answered by something that is no stream: another subscriber of %q replies to it", it.topic, it.msg.Subject)
	}
	if a.Error == nil {
		return false, nil // a duplicate was accepted before
	}
	say := a.Error.Description
	switch a.Error.ErrCode {
	case jsUnavailable, jsStreamOffline:
		return true, nil
	case jsStoreFailed:
		if strings.Contains(say, "maximum") {
			return false, fmt.Errorf("natsbus: %s: %w: the stream is full (%s): let its groups catch up, or raise its limit with \"nats stream edit\"", it.topic, adapter.ErrFull, say)
		}
	case jsInsufficient, jsNoMemory, jsNoStorage:
		return false, fmt.Errorf("natsbus: %s: %w: the server or account has no room (%s): raise max_file_store of the server or the account's limit", it.topic, adapter.ErrFull, say)
	case jsTooBig:
		return false, fmt.Errorf("natsbus: %s: the message is %d bytes, more than the stream takes (max_msg_size): %s", it.topic, it.size, say)
	}
	return false, fmt.Errorf("natsbus: %s: refused by JetStream: %s (%d)", it.topic, say, a.Error.ErrCode)
}

// permanent reports whether nats.go refused the message itself.
func permanent(err error) bool {
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) || errors.Is(err, nats.ErrHeadersNotSupported)
}
