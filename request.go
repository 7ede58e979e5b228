package tidings

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// requestTimeout bounds a Request whose context has no deadline, so that two
// handlers that ask each other end with an error instead of never.
const requestTimeout = 5 * time.Second

// request is an event that can be answered, and what its handlers have made of it.
type request struct {
	bus     *Bus
	topic   string
	mu      sync.Mutex
	local   int // handlers of this process
	open    int // handlers, and the transport, that may still answer
	reply   Event
	replied bool
	errs    []error
	done    chan struct{}             // closed when replied, or when open is 0
	send    func(adapter.Reply) error // of one that another process waits for; nil: this one does
}

type requestKey struct{}

var errSilent = errors.New("every handler ended without a reply")

// Request publishes an event that can be answered, and waits for the first [Reply].
// Handlers of this process can give it; those of others can if the topic's route is
// Live and the transport carries replies, as NATS does. An event of a durable route
// is asked of this process alone, and not stored.
//
// It fails with [ErrNoResponder] at once when nobody listens, here or beyond, and as
// soon as every handler of this process has ended without an answer if there is
// nobody else. What handlers of other processes returned is in the error when the time
// is over: another might have answered until then. Without a deadline in ctx that is
// after 5 s.
//
// It may be called concurrently. A handler may send requests, also with
// context.Background(); one that asks its own subscription, of which it is the only
// worker, is not asked itself.
func (b *Bus) Request(ctx context.Context, topic string, payload any) (Event, error) {
	reply, err := b.request(ctx, topic, payload)
	if err != nil {
		return Event{}, &Error{Op: "request", Topic: topic, Err: err}
	}
	return reply, nil
}

func (b *Bus) request(ctx context.Context, topic string, payload any) (Event, error) {
	e, err := b.entry(topic)
	if err != nil {
		return Event{}, err
	}
	v := e.current()
	switch v {
	case closedView:
		return Event{}, ErrClosed
	case nil:
		return Event{}, ErrNoResponder
	}
	to, remote := v.responders(e.topic), b.requester(v)
	switch {
	case to.nobody() && remote == nil && v.publish != 0:
		return Event{}, fmt.Errorf("%w in this process: others are asked only if the topic's route is live", ErrNoResponder)
	case to.nobody() && remote == nil:
		return Event{}, ErrNoResponder
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	rq := &request{bus: b, topic: e.topic, local: len(to.inline) + len(to.queued), done: make(chan struct{})}
	rq.open = rq.local + 1
	ev := e.newEvent(payload)
	ev.r = &record{bus: b, entry: e, number: e.plain.number, req: rq}
	stop, err := e.ask(context.WithValue(ctx, requestKey{}, rq), remote, to, ev)
	if err != nil {
		return Event{}, err
	}
	defer stop()
	return rq.wait(ctx)
}

// requester is who asks other processes; nil: nobody.
func (b *Bus) requester(v *view) adapter.Requester {
	if v.publish != adapter.Live {
		return nil
	}
	a, _ := b.transport().(adapter.Requester)
	return a
}

// ask is send for a request. An error means that nobody was asked.
func (e *entry) ask(ctx context.Context, a adapter.Requester, to route, ev Event) (stop func(), err error) {
	rq, class, stop := ev.r.req, adapter.Class(0), func() {}
	if a != nil {
		class = adapter.Live
		rq.open++
	}
	d, err := e.prepare(ctx, class, to, ev)
	if err != nil {
		return nil, errors.Unwrap(err) // it is no publish that failed
	}
	if a != nil {
		if stop, err = a.Request(ctx, d.msg, rq.heard); err != nil {
			d.refused()
			return nil, err
		}
	}
	// What was not accepted answers with its error, as what was dropped later does.
	rq.finished(errors.Unwrap(d.deliver()))
	return stop, nil
}

// heard takes what comes back from other processes.
func (rq *request) heard(a adapter.Reply) {
	switch {
	case a.Message != nil:
		_ = rq.give(rq.bus.received(new(record), a.Message, 1)) // only the first counts
	case a.Err == adapter.ErrNobody:
		rq.finished(nil)
	case errors.Is(a.Err, adapter.ErrNobody), errors.Is(a.Err, adapter.ErrClosed):
		rq.finished(a.Err)
	case a.Err != nil:
		rq.mu.Lock()
		rq.errs = append(rq.errs, a.Err)
		rq.mu.Unlock()
	}
}

// responders leaves out who can only see, and who would wait for itself.
func (v *view) responders(topic string) route {
	all, to := v.route(topic), route{}
	for _, s := range all.inline {
		if !s.watcher {
			to.inline = append(to.inline, s)
		}
	}
	for _, s := range all.queued {
		if s.opts.Workers > 1 || !s.insideOwnHandler() {
			to.queued = append(to.queued, s)
		} else {
			to.not = append(to.not, s)
		}
	}
	return to
}

// Reply answers the request that a handler's ctx belongs to, in this process or in
// another. The first answer counts; later ones, and those outside a request, are
// errors. For a request of another process nil means that the answer is on its way: it
// may be lost with the connection, or come too late. It does not block.
func Reply(ctx context.Context, payload any) error {
	rq, _ := ctx.Value(requestKey{}).(*request)
	err := errors.New("the context is not that of a request")
	if rq != nil {
		ev := Event{payload: payload, r: &record{bus: rq.bus, id: nonce(), topic: rq.topic, source: rq.bus.source, time: time.Now()}}
		err = rq.respond(ctx, ev)
	}
	if err != nil {
		return &Error{Op: "reply", Err: err}
	}
	return nil
}

// respond gives an answer of this process.
func (rq *request) respond(ctx context.Context, ev Event) error {
	if rq.send == nil {
		return rq.give(ev)
	}
	m, err := ev.message(ctx, rq.bus.opts.Codec)
	if err != nil {
		return err
	}
	if err := rq.give(ev); err != nil {
		return err
	}
	return rq.send(adapter.Reply{Message: m})
}

func (rq *request) give(reply Event) error {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	if rq.replied {
		return errors.New("the request was answered before")
	}
	rq.reply, rq.replied = reply, true
	if rq.open > 0 {
		close(rq.done)
	}
	return nil
}

// finished counts a handler that cannot answer any more.
func (rq *request) finished(err error) {
	rq.mu.Lock()
	if err != nil {
		rq.errs = append(rq.errs, err)
	}
	rq.open--
	over := rq.open == 0 && !rq.replied
	if over {
		close(rq.done)
	}
	errs := rq.errs
	rq.mu.Unlock()
	if over && rq.send != nil {
		err := errSilent
		if len(errs) > 0 {
			err = join(errs)
		}
		_ = rq.send(adapter.Reply{Err: fmt.Errorf("%s: %w", rq.bus.source, err)}) // who asked has a deadline
	}
}

func (rq *request) wait(ctx context.Context) (Event, error) {
	select {
	case <-rq.done:
	case <-ctx.Done():
	}
	rq.mu.Lock()
	defer rq.mu.Unlock()
	switch {
	case rq.replied:
		return rq.reply, nil
	case rq.open > 0 && len(rq.errs) > 0:
		return Event{}, fmt.Errorf("no reply: %w: %w", context.Cause(ctx), join(rq.errs))
	case rq.open > 0:
		return Event{}, fmt.Errorf("no reply: %w", context.Cause(ctx))
	case rq.local == 0 && len(rq.errs) == 0:
		return Event{}, ErrNoResponder
	case len(rq.errs) > 0:
		return Event{}, fmt.Errorf("no reply: %w", join(rq.errs))
	}
	return Event{}, fmt.Errorf("%w: %w", ErrNoResponder, errSilent)
}

// answered tells the request of an event, if it is one, that a handler is done.
func (e Event) answered(err error) {
	if e.r.req != nil {
		e.r.req.finished(err)
	}
}

// asked makes a delivery the request that it is, for so many handlers.
func (e *Event) asked(ctx context.Context, send func(adapter.Reply) error, handlers int) context.Context {
	rq := &request{bus: e.r.bus, topic: e.r.topic, open: handlers, done: make(chan struct{}), send: send}
	e.r.req = rq
	return context.WithValue(ctx, requestKey{}, rq)
}
