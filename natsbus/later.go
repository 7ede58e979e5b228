package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

// Events that are to be delivered later wait in a stream of their own, one for
// each app: nats-server publishes at a set time only within one stream, and not
// in one that refuses what is above its limits, as those of durable routes do.
// There it moves an event from its waiting subject to its due subject; from that
// a process of the app, any, publishes it as if it was published then.
//
//	$TIDINGS.later.NAME.at.SUBJECT.ID     waits; the last one of each subject
//	$TIDINGS.later.NAME.due.SUBJECT       is due
const laterRoot = "$TIDINGS.later."

const (
	laterGroup = "tidings-later"
	laterLook  = 10 * time.Second // how often a process looks whether there is something to hand on
	laterAgain = 2 * time.Second  // until what could not be published is tried again
	laterSay   = 10 * time.Second // how often that is reported
)

// Headers by which nats-server is told what to do with a message.
const (
	hSchedule = "Nats-Schedule"
	hTarget   = "Nats-Schedule-Target"
)

// later holds events back for a connection. Its goroutine owns what is not
// atomic; it makes the stream when first asked to, and hands on what is due.
type later struct {
	c     *conn
	name  string      // of the stream, and in its subjects
	can   atomic.Bool // the server can
	calls chan func(context.Context)
	ready atomic.Bool // the stream is there, and what is due is handed on
	stop  ending
	run   atomic.Pointer[loop.Loop] // nil: nothing to do here
	due   *mailbox[adapter.Delivery]
	sub   adapter.Subscription
	said  time.Time
}

func newLater(c *conn) *later {
	return &later{c: c, name: laterName(c.cfg.Prefix, c.cfg.App), calls: make(chan func(context.Context)), due: newMailbox[adapter.Delivery]()}
}

// laterName is that of the stream of an app's delayed events.
func laterName(prefix, app string) string { return "tidings-later-" + streamName(prefix, app) }

// start looks after the app's stream, if it may have one.
func (l *later) start() {
	if !l.c.delays() {
		return
	}
	if len(l.c.cfg.Durable) > 0 {
		l.run.Store(loop.Go(l.main))
	}
	l.can.Store(true)
}

func (l *later) waiting(topic, id string) string {
	return laterRoot + l.name + ".at." + l.c.subject(topic) + "." + idToken(id)
}

func (l *later) dueRoot() string { return dueRoot(l.name) }

func dueRoot(name string) string { return laterRoot + name + ".due." }

// idToken is an id as one token of a subject.
func idToken(id string) string {
	if id != "" && len(id) <= 100 && sanitize(id) == id {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "=" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// delays reports whether the server can hold events back.
func (c *conn) delays() bool { return c.serverHas(2, 12) }

// serverHas reports whether the server is at least of that version.
func (c *conn) serverHas(want ...int) bool {
	parts := strings.Split(c.nc.ConnectedServerVersion(), ".")
	for i, w := range want {
		if i == len(parts) {
			return false
		}
		// Of a version that is not out yet the last part is like 3-RC.1.
		digits, _, _ := strings.Cut(parts[i], "-")
		if have, err := strconv.Atoi(digits); err != nil || have != w {
			return err == nil && have > w
		}
	}
	return true
}

// publishLater stores a message until it is due.
func (c *conn) publishLater(ctx context.Context, m *adapter.Message, class adapter.Class) error {
	l := c.later
	switch {
	case class != adapter.Durable:
		return fmt.Errorf("natsbus: %s: only durable events can be delayed: declare a durable route", m.Topic)
	case !l.can.Load():
		return fmt.Errorf("natsbus: %s: the server at %s cannot delay events: it is version %s, and 2.12 is needed", m.Topic, c.addr.public, c.nc.ConnectedServerVersion())
	}
	if err := l.prepare(ctx); err != nil {
		return fmt.Errorf("natsbus: %s: no place for delayed events: %w", m.Topic, err)
	}
	msg := binary.encode(l.waiting(m.Topic, m.ID), m, class)
	// The id belongs to the event that will be published. This one is the writer's,
	// so that what is sent again is known: under the same subject a new message
	// takes the old one's place, also at the same time, and must not be refused.
	msg.Header[nats.MsgIdHdr] = []string{nuid.Next()}
	msg.Header[hSchedule] = []string{"@at " + m.NotBefore.UTC().Format(time.RFC3339Nano)}
	msg.Header[hTarget] = []string{l.dueRoot() + c.subject(m.Topic)}
	err := c.send(ctx, msg, m.Topic)
	if err != nil {
		l.ready.Store(false) // the stream may be gone
	}
	return err
}

// prepare returns once the stream is there.
func (l *later) prepare(ctx context.Context) error {
	if l.ready.Load() {
		return nil
	}
	if l.run.Load() == nil {
		return fmt.Errorf("%w: declare one in the app that publishes", adapter.ErrNotDurable)
	}
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	return l.call(ctx, func(ctx context.Context) error { return l.open(ctx, true) })
}

// call runs f on the goroutine that owns the state.
func (l *later) call(ctx context.Context, f func(context.Context) error) error {
	answer := make(chan error, 1)
	select {
	case l.calls <- func(ctx context.Context) { answer <- f(ctx) }:
	case <-l.run.Load().Done():
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *later) main(ctx context.Context) {
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if !l.ready.Load() {
				if err := l.open(ctx, false); err != nil && ctx.Err() == nil {
					l.c.log.Warn("natsbus: cannot look for delayed events of this app", "stream", l.name, "err", err)
				}
			}
			look.Reset(laterLook)
		case f := <-l.calls:
			f(ctx)
		case <-l.due.wake:
			l.handOnAll(ctx)
		case <-ctx.Done():
			return // what was taken and not handed on is delivered to others
		}
	}
}

func (l *later) handOnAll(ctx context.Context) {
	for _, d := range l.due.take() {
		if ctx.Err() != nil {
			return
		}
		l.handOn(ctx, d)
	}
}

// open begins to hand on what is due. A stream that is not there is made if
// anything is about to be put into it.
func (l *later) open(ctx context.Context, create bool) error {
	ctx, cancel := context.WithTimeout(ctx, subscribeTimeout)
	defer cancel()
	near, err := l.c.streamsNear(ctx, l.dueRoot()+">")
	if err != nil {
		return err
	}
	if len(near) == 0 {
		if !create {
			return nil
		}
		if err := l.c.createLater(ctx, Declaration{App: l.c.cfg.App, Durable: l.c.cfg.Durable}); err != nil {
			return err
		}
	}
	if l.sub == nil {
		s := adapter.Spec{Pattern: l.dueRoot() + ">", Group: laterGroup, Durable: true, Deliver: func(d adapter.Delivery) { l.due.put(d) }}
		if l.sub, err = l.c.subscribeDurable(ctx, s); err != nil {
			l.sub = nil
			return err
		}
	}
	l.ready.Store(true)
	return nil
}

// createLater makes the stream of an app's delayed events, as safe as its others.
func (c *conn) createLater(ctx context.Context, d Declaration) error {
	replicas := 1
	for _, p := range d.Durable {
		near, err := c.streamsNear(ctx, c.subject(p))
		if err != nil {
			return err
		}
		for _, info := range near {
			replicas = max(replicas, info.Config.Replicas)
		}
	}
	name := laterName(c.cfg.Prefix, d.App)
	cfg := jetstream.StreamConfig{
		Name: name, Subjects: []string{laterRoot + name + ".at.>", dueRoot(name) + ">"},
		Description: "delayed events of " + d.App, Storage: jetstream.FileStorage, Replicas: replicas,
		Retention: jetstream.WorkQueuePolicy, Duplicates: dedupWindow, AllowMsgSchedules: true,
		Discard: jetstream.DiscardOld, // schedules ask for it; without a limit nothing is discarded
	}
	_, err := c.js.CreateStream(ctx, cfg)
	switch {
	case err == nil:
		c.log.Info("natsbus: stream created", "stream", cfg.Name, "subjects", cfg.Subjects, "replicas", replicas)
		return nil
	case errCode(err) == jsNameInUse, errCode(err) == jsNoSubject:
		return nil // another process was quicker; what it made is looked at next
	}
	return fmt.Errorf("create stream %s: %w", cfg.Name, c.jsError(err))
}

// handOn publishes an event that is due. It is acknowledged only when its stream
// has it; whoever hands it on again, within the window of ids, doubles nothing.
func (l *later) handOn(ctx context.Context, d adapter.Delivery) {
	subject := strings.TrimPrefix(d.Topic, l.dueRoot())
	m := d.Message
	m.Topic = l.c.topic(subject)
	delete(m.Header, hType) // it named the topic before it was back
	if !m.Expires.IsZero() && !time.Now().Before(m.Expires) {
		l.c.drop(1, fmt.Errorf("natsbus: %s: delayed event %s expired at %v before it was handed on", m.Topic, m.ID, m.Expires))
		d.Settle.Ack(func(error) {})
		return
	}
	msg := binary.encode(subject, &m, adapter.Durable)
	l.c.addTTL(msg, &m)
	err := l.c.send(ctx, msg, m.Topic)
	if err == nil {
		d.Settle.Ack(func(error) {})
		return
	}
	d.Settle.Nak(laterAgain)
	if ctx.Err() == nil && time.Since(l.said) > laterSay {
		l.said = time.Now()
		l.c.report(fmt.Errorf("natsbus: an event is due and cannot be published; it is tried again: %w", err))
	}
}

// drain hands on what this process has taken, and leaves the rest to others.
func (l *later) drain(ctx context.Context) error {
	if l.run.Load() == nil {
		return nil
	}
	return l.stop.do(ctx, func(ctx context.Context) error {
		var sub adapter.Subscription
		err := l.call(ctx, func(context.Context) error { sub = l.sub; return nil })
		if err == nil && sub != nil {
			err = errors.Join(sub.Drain(ctx), l.call(ctx, func(ctx context.Context) error { l.handOnAll(ctx); return nil }), sub.Close(ctx))
		}
		l.run.Load().Stop()
		if late := l.run.Load().Wait(ctx); err == nil {
			err = late
		}
		return err
	})
}

// cut lets go at once.
func (l *later) cut() {
	if l.run.Load() != nil {
		l.run.Load().Stop()
	}
}

// Cancel implements [adapter.Canceler].
func (c *conn) Cancel(ctx context.Context, topic, id string) (bool, error) {
	if c.closing.Load() {
		return false, errClosed
	}
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("natsbus: %s: cancel event %s: %w", topic, id, err)
	}
	if err := c.link.wait(ctx); err != nil {
		return fail(err)
	}
	body, err := json.Marshal(map[string]string{"filter": c.later.waiting(topic, id)})
	if err != nil {
		return fail(err)
	}
	m, err := c.nc.RequestWithContext(ctx, "$JS.API.STREAM.PURGE."+c.later.name, body)
	if err != nil {
		return fail(c.jsError(err))
	}
	var answer struct {
		Purged uint64              `json:"purged"`
		Error  *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &answer); {
	case err != nil:
		return fail(err)
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return false, nil // nothing was ever delayed
	case answer.Error != nil:
		return fail(answer.Error)
	}
	return answer.Purged > 0, nil
}
