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
	queued       int32 = iota // never written
	written                   // at least once
	spooledState              // in the spool, or on its way there
	gone                      // the caller has given up
	done                      // it has its result
)

// An item is one message on its way out.
type item struct {
	msg   *nats.Msg
	topic string
	class adapter.Class
	size  int
	state atomic.Int32

	// Of a durable one.
	box    *outbox
	done   chan error  // gets the result, once
	tell   func(error) // instead, of those that nobody waits for
	ends   time.Time   // when those are given up, and why
	limit  error
	stream string // where it is stored, once it is
	seq    uint64
	order  uint64 // in which items were accepted

	since time.Time // when it came

	internal  bool // not an event of a route: never spooled
	forwarded bool // it lies in a spool, and its own result is that one's
	hurried   bool // its caller waits no longer; guarded by the spool's mu
	reserved  bool // it is counted until it lies in the spool
	placed    bool // its place is held until it has an outcome after all

	// The writer's own.
	token   string    // where its acknowledgement goes
	batch   *batch    // that it was written in
	first   time.Time // when it was written first and may have been lost; zero: it is in no doubt
	after   uint64    // no sequence up to this one can be its own
	certain bool      // that is known
	absent  bool      // it was looked up, and not there
	open    int       // how often it was written to this connection without an answer
	lost    bool      // and whether to one before, or by another process

	nobody       atomic.Bool   // no stream took it when it was last sent
	writtenAfter atomic.Uint64 // after + 1, once it was written; for others to read

	// Of a live one.
	run    string   // all of its source and topic; empty: it is not counted
	number uint64   // of it in those
	own    nats.Msg // what msg points to
	buf    []byte   // where its envelope lies, for the next one too
}

func (it *item) id() string { return it.msg.Header[nats.MsgIdHdr][0] }

// Publish implements [adapter.Adapter].
func (c *conn) Publish(ctx context.Context, m *adapter.Message, class adapter.Class) error {
	if c.closing.Load() {
		return errClosed
	}
	if !m.NotBefore.IsZero() {
		return c.publishLater(ctx, m, class)
	}
	if class == adapter.Live {
		return c.publishLive(m)
	}
	it, err := c.newDurable(m, class)
	if err != nil {
		return err
	}
	return c.publishDurable(ctx, it)
}

// newDurable makes the item of an event of a durable route.
func (c *conn) newDurable(m *adapter.Message, class adapter.Class) (*item, error) {
	if class == adapter.Spooled && c.spool == nil {
		return nil, fmt.Errorf("natsbus: %s: there is no spool: set Options.SpoolDir", m.Topic)
	}
	msg := binary.encode(c.subject(m.Topic), m, adapter.Durable)
	c.addTTL(msg, m)
	return c.newItem(msg, m.Topic, class)
}

// send stores what is no event of a route, or not yet one.
func (c *conn) send(ctx context.Context, msg *nats.Msg, topic string) error {
	it, err := c.newItem(msg, topic, adapter.Durable)
	if err != nil {
		return err
	}
	it.internal = true
	return c.publishDurable(ctx, it)
}

// newItem makes the item of a message that is to be stored.
func (c *conn) newItem(msg *nats.Msg, topic string, class adapter.Class) (*item, error) {
	it := &item{msg: msg, topic: topic, class: class, size: wireSize(msg), box: c.boxOf(msg.Subject), since: time.Now()}
	return it, c.fits(it)
}

// fits refuses what the server would.
func (c *conn) fits(it *item) error {
	limit := c.maxPayload.Load()
	if limit == 0 || int64(it.size) <= limit { // 0: there was no connection yet
		return nil
	}
	return c.tooLarge(it, limit)
}

func (c *conn) tooLarge(it *item, limit int64) error {
	return fmt.Errorf("natsbus: %s: the message is %d bytes with its headers; the server at %s takes %d (raise max_payload there, or send a reference)",
		it.topic, it.size, c.addr.public, limit)
}

// again is an item that was refused, to be sent anew.
func (it *item) again() *item {
	return &item{msg: it.msg, topic: it.topic, class: it.class, size: it.size, box: it.box, internal: it.internal, since: it.since, placed: it.placed}
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

// publishDurable publishes, and makes room for that if the stream is full of what
// every group has handled.
func (c *conn) publishDurable(ctx context.Context, it *item) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, publishLimit, errPublishLimit)
		defer cancel()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("natsbus: %s: not sent: %w", it.topic, context.Cause(ctx))
	}
	for try := 1; ; try++ {
		err := c.publishOnce(ctx, it)
		full, ok := errors.AsType[*streamFull](err)
		if !ok {
			return err
		}
		made, why := c.keeper.makeRoom(ctx, it, full)
		if !made || try == roomTries {
			full.why = why
			return full
		}
		it = it.again()
	}
}

// roomTries bounds how often room is made for one event that others take.
const roomTries = 10

func (c *conn) publishOnce(ctx context.Context, it *item) error {
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

// streamFull: the stream, or what it is stored on, is at its bound.
type streamFull struct {
	topic string
	say   string // by the server
	way   string // out
	why   string // nothing can be purged

	server bool // not the stream, but what it is stored on
}

func (e *streamFull) Error() string {
	s := fmt.Sprintf("natsbus: %s: %v: %s", e.topic, adapter.ErrFull, e.say)
	if e.why != "" {
		s += ": " + e.why
	}
	return s + ": " + e.way
}

func (e *streamFull) Unwrap() error { return adapter.ErrFull }

// giveUp ends the wait for an item. What was never written is certain not to
// be; the rest is in doubt, and is not sent again.
func (c *conn) giveUp(it *item, cause error) error {
	for _, was := range []int32{queued, written} {
		if it.state.CompareAndSwap(was, gone) {
			c.w.post(note{kind: noteGone, item: it})
			return c.givenUp(it, was, cause)
		}
	}
	if it.state.Load() == spooledState {
		c.spool.hurry(it)
	}
	return <-it.done
}

func (c *conn) givenUp(it *item, was int32, cause error) error {
	waited := time.Since(it.since).Round(time.Millisecond)
	switch {
	case was == queued && it.nobody.Load():
		return fmt.Errorf("natsbus: %s: not accepted: no stream took %q for %v: it was deleted, or the servers that hold it are away (tidings streams shows what is there): let the app that declares the route make it, or tidings apply: %w",
			it.topic, it.msg.Subject, waited, cause)
	case was == queued:
		return fmt.Errorf("natsbus: %s: not sent in %v, the connection to %s is down or busy: %w", it.topic, waited, c.addr.public, cause)
	}
	return fmt.Errorf("natsbus: %s: %w: no stream has acknowledged it in %v: %w", it.topic, adapter.ErrInDoubt, waited, cause)
}

// refusal is why an item was refused, as its caller is told. If it was sent before, and
// not answered, then that may have stored it.
func (it *item) refusal(err error) error {
	var full *streamFull
	if it.unsent() || errors.As(err, &full) { // a stream that knows the id says so before it looks for room
		return err
	}
	return fmt.Errorf("natsbus: %s: %w: it was sent before, and the answer was lost; sent again, it was refused: %w", it.topic, adapter.ErrInDoubt, err)
}

// An answer is what the stream said.
type answer struct {
	Stream string `json:"stream"`
	Seq    uint64 `json:"seq"`
	Count  int    `json:"count"` // of a batch
	Error  *struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
}

// Error codes of JetStream that mean something of their own here.
const (
	jsNoPeers        = 10005
	jsUnavailable    = 10008 // no leader yet, or starting
	jsInsufficient   = 10023
	jsNoMemory       = 10028
	jsNoMessage      = 10037
	jsNoStorage      = 10047
	jsBadConfig      = 10052
	jsTooBig         = 10054
	jsNameInUse      = 10058
	jsNoSubject      = 10065 // subjects overlap
	jsNoReplicas     = 10074
	jsStoreFailed    = 10077 // with what failed in the description
	jsStreamOffline  = 10118
	jsStreamTooBig   = 10122 // more than the account allows one stream
	jsDuplicateNow   = 10158 // one with this id is being stored
	jsNoBatches      = 10174
	jsBatchDuplicate = 10201 // of one of its members, which is not named
)

func unavailable(code int) bool { return code == jsUnavailable || code == jsStreamOffline }

// verdict reads an answer. retry means that the stream is not there yet; else
// err is the result.
func (c *conn) verdict(it *item, m *nats.Msg) (a answer, retry bool, err error) {
	if noResponders(m) {
		return a, true, nil
	}
	if json.Unmarshal(m.Data, &a) != nil || (a.Error == nil && a.Stream == "") {
		return a, false, fmt.Errorf("natsbus: %s: answered by something that is no stream: another subscriber of %q replies to it", it.topic, it.msg.Subject)
	}
	if a.Error == nil {
		return a, false, nil // a duplicate was accepted before
	}
	say := a.Error.Description
	switch a.Error.ErrCode {
	case jsUnavailable, jsStreamOffline, jsDuplicateNow:
		return a, true, nil
	case jsStoreFailed:
		if strings.Contains(say, "maximum") {
			return a, false, &streamFull{topic: it.topic, say: "the stream is full (" + say + ")", way: "let its groups catch up, remove those that never come back (tidings streams forget), or raise its limit (tidings apply)"}
		}
	case jsInsufficient, jsNoMemory, jsNoStorage:
		return a, false, &streamFull{topic: it.topic, server: true, say: "the server or account has no room (" + say + ")", way: "raise max_file_store of the server or the account's limit"}
	case jsTooBig:
		return a, false, fmt.Errorf("natsbus: %s: the message is %d bytes, more than the stream takes (max_msg_size): %s", it.topic, it.size, say)
	}
	return a, false, fmt.Errorf("natsbus: %s: refused by JetStream: %s (%d)", it.topic, say, a.Error.ErrCode)
}

// permanent reports whether nats.go refused the message itself.
func permanent(err error) bool {
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) || errors.Is(err, nats.ErrHeadersNotSupported)
}
