package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// reserved begins every subject that is our own. No topic can: names that begin
// with $ are refused.
const reserved = "$TIDINGS"

// The stream of dead letters of a prefix. It is small beside the streams of
// events, and full it loses nothing: the originals stay where they are.
const (
	deadMaxBytes = 256 << 20
	deadMinBytes = 1 << 20
)

// A letter that cannot be stored is tried for so long, and then its event is
// given back for so long.
const (
	letterPatience = 30 * time.Second
	letterAgain    = 5 * time.Second
)

// What a letter's header holds at most: nats-server takes 64 KiB for all.
const (
	maxReason = 2 << 10
	maxStack  = 16 << 10
)

// hLetter is the header that makes the letter of an event: all else is as it was.
const hLetter = "tidings-letter"

// letterHead is what hLetter holds, as JSON.
type letterHead struct {
	ID         string    `json:"id"`
	Subject    string    `json:"subject"`
	Stream     string    `json:"stream"`
	Sequence   uint64    `json:"sequence"`
	Consumer   string    `json:"consumer"`
	Group      string    `json:"group"`
	Pattern    string    `json:"pattern"`
	Reason     string    `json:"reason"`
	Stack      string    `json:"stack,omitempty"`
	Attempts   int       `json:"attempts"`
	Deliveries int       `json:"deliveries"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	Instance   string    `json:"instance"`
}

// scope is the prefix as one token of a subject.
func (c *conn) scope() string {
	p := c.cfg.Prefix
	switch {
	case p == "":
		return "all"
	case sanitize(p) == p:
		return "in-" + p
	}
	return "in-" + consumerName(p, p) // with a hash: other prefixes read the same
}

func (c *conn) deadStream() string { return "tidings-dead-" + c.scope() }

// deadSubject is that of one letter, or of the notes about one event. When the
// stream was made is part of it: in one of the same name that is made anew the
// sequences mean other events.
func (c *conn) deadSubject(kind, stream string, created time.Time, seq uint64, consumer string) string {
	return strings.Join([]string{reserved, kind, c.scope(), stream,
		strconv.FormatInt(created.UnixNano(), 36), strconv.FormatUint(seq, 10), consumer}, ".")
}

// Dead implements [adapter.Settler].
func (x *delivery) Dead(l *adapter.DeadLetter, confirmed func(error)) {
	if broken(mutantNoLetter) {
		x.settle([]byte("+TERM"), true, confirmed)
		return
	}
	if taken := !x.settled.Swap(true) && x.d.post(func() { x.d.bury(x, l, confirmed) }); !taken {
		confirmed(fmt.Errorf("natsbus: %s: event %d was handed back before it became a dead letter: %w", x.d.filter, x.seq, adapter.ErrClosed))
	}
}

// bury runs on the loop. The letter is stored beside it, since the stream may
// take its time; heartbeats keep the event meanwhile, and Close waits.
func (d *durable) bury(x *delivery, l *adapter.DeadLetter, confirmed func(error)) {
	if x.epoch != d.epoch {
		d.settle(x, nil, true, confirmed) // its stream is gone
		return
	}
	l.ID = fmt.Sprintf("%s:%d:%s", d.stream, x.seq, d.consumer)
	l.Event, l.Stream, l.Sequence, l.Deliveries = x.msg, d.stream, x.seq, x.attempt
	subject := d.c.deadSubject("dead", d.stream, d.memory.since(), x.seq, d.consumer)
	msg := letter(subject, x.head, l, letterHead{Subject: x.subject, Consumer: d.consumer})
	var err error
	stream := d.stream
	finish := func(closed bool) {
		switch {
		case closed:
			confirmed(fmt.Errorf("natsbus: %s: closed before event %d was settled as a dead letter: %w", d.filter, x.seq, adapter.ErrClosed))
		case err == nil:
			d.settle(x, []byte("+TERM dead letter "+l.ID), true, confirmed)
		default:
			d.settle(x, nakBody(letterAgain), false, nil)
			confirmed(fmt.Errorf("natsbus: dead letter %s: %w", l.ID, err))
		}
	}
	d.beside(func(ctx context.Context) { err = d.c.storeLetter(ctx, stream, msg) }, func(closed bool) {
		if closed {
			finish(true)
		} else {
			d.forgetBegun(x, finish)
		}
	})
}

// beside runs work on a goroutine of its own, and then on the loop; or, when the
// loop has ended, where it was. Close waits for both. It is called on the loop.
func (d *durable) beside(work func(context.Context), then func(closed bool)) {
	d.nacks++
	d.besides++
	n := d.besides
	d.working[n] = loop.Go(func(ctx context.Context) {
		work(ctx)
		on := d.post(func() {
			delete(d.working, n)
			then(false)
			d.nacks-- // what follows has begun and is counted by now
			d.noticeAcked()
		})
		if !on {
			then(true)
		}
	})
}

// letter makes the message: the original's headers and body, and one header of
// ours. Those for the server are not kept: they would act once more.
func letter(subject string, original *nats.Msg, l *adapter.DeadLetter, h letterHead) *nats.Msg {
	h.ID, h.Stream, h.Sequence, h.Group, h.Pattern = l.ID, l.Stream, l.Sequence, l.Group, l.Pattern
	h.Reason, h.Stack, h.Attempts, h.Deliveries = cut(l.Reason, maxReason), cut(l.Stack, maxStack), l.Attempts, l.Deliveries
	h.First, h.Last, h.Instance = l.First, l.Last, l.Instance
	head, _ := json.Marshal(h) // of strings, numbers and times: it cannot fail
	m := &nats.Msg{Subject: subject, Header: plainHeader(original.Header), Data: original.Data}
	m.Header[hLetter] = []string{string(head)}
	return m
}

// plainHeader is a copy without what is for the server, or makes the message a
// letter or a replayed one.
func plainHeader(h nats.Header) nats.Header {
	out := make(nats.Header, len(h)+3)
	maps.Copy(out, h)
	maps.DeleteFunc(out, func(k string, _ []string) bool {
		k = strings.ToLower(k)
		return strings.HasPrefix(k, "nats-") || k == hLetter || k == hReplay
	})
	return out
}

// cut shortens a text without cutting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// Error codes of JetStream for a letter.
const (
	jsWrongLast         = 10071 // of the subject: there is one already
	jsWrongLastInFlight = 10164 // another process stores it at this moment
	jsHeaderTooBig      = 10097
)

// storeLetter returns nil once the letter is there, whoever has stored it. It
// waits for a broker that is away.
func (c *conn) storeLetter(ctx context.Context, stream string, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, letterPatience)
	defer cancel()
	// There is one letter for each subject. The server's table of ids would say so
	// for two minutes only, and an outage may be longer.
	m.Header[nats.ExpectedLastSubjSeqHdr] = []string{"0"}
	m.Header[nats.ExpectedStreamHdr] = []string{c.deadStream()}
	if size, limit := wireSize(m), c.maxPayload.Load(); int64(size) > limit {
		return fmt.Errorf("the letter is %d bytes with its headers; the server at %s takes %d: raise max_payload there", size, c.addr.public, limit)
	}
	for {
		err := c.toDeadStream(ctx, stream, func(ctx context.Context) error {
			_, err := c.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(1))
			return err
		})
		switch code := errCode(err); {
		case err == nil, code == jsWrongLast:
			return nil
		case code == jsStoreFailed || noRoom(err):
			return fmt.Errorf("%w: stream %s takes no more (%w): look at its letters with \"tidings dlq list\", redrive or drop some, or raise its limit with \"nats stream edit %s --max-bytes\"",
				adapter.ErrFull, c.deadStream(), err, c.deadStream())
		case errors.Is(err, adapter.ErrClosed), code == jsTooBig, code == jsHeaderTooBig:
			return err
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return c.jsError(err)
		}
	}
}

// toDeadStream does something with the stream of dead letters, once the connection
// is up and the stream there. That it is not cannot be heard: with a subscriber to
// ">" somebody always listens.
func (c *conn) toDeadStream(ctx context.Context, stream string, f func(context.Context) error) error {
	if err := c.link.wait(ctx); err != nil {
		return err
	}
	try, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if !c.deadThere.Load() {
		if err := c.createDeadStream(try, stream); err != nil {
			return err
		}
		c.deadThere.Store(true)
	}
	err := f(try)
	if err != nil && errCode(err) == 0 {
		c.deadThere.Store(false) // look again
	}
	return err
}

// createDeadStream makes it when the first event dies, as safe as the stream that
// the event is of.
func (c *conn) createDeadStream(ctx context.Context, stream string) error {
	if _, err := c.js.Stream(ctx, c.deadStream()); !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	events, err := c.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	cfg := jetstream.StreamConfig{
		Name: c.deadStream(), Subjects: []string{reserved + ".dead." + c.scope() + ".>", reserved + ".begun." + c.scope() + ".>"}, Description: "dead letters of Tidings",
		Storage: jetstream.FileStorage, Replicas: events.CachedInfo().Config.Replicas, Retention: jetstream.LimitsPolicy,
		Discard:  jetstream.DiscardNew, // a letter is dropped by somebody who has read it, never by age or size
		MaxBytes: deadMaxBytes, AllowDirect: true,
	}
	for {
		_, err := c.js.CreateStream(ctx, cfg)
		if !noRoom(err) || cfg.MaxBytes/2 < deadMinBytes {
			if err == nil || raced(err) {
				c.log.Info("natsbus: stream of dead letters created", "stream", cfg.Name, "max_bytes", cfg.MaxBytes)
				return nil
			}
			return fmt.Errorf("create stream %s: %w", cfg.Name, err)
		}
		cfg.MaxBytes /= 2 // what the account allows
	}
}
