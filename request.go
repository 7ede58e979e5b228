package tidings

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// requestTimeout bounds a Request whose context has no deadline, so that two
// handlers that ask each other end with an error instead of never.
const requestTimeout = 5 * time.Second

// request waits for the first answer to one event.
type request struct {
	entry   *entry
	mu      sync.Mutex
	open    int // handlers that may still answer
	reply   Event
	replied bool
	errs    []error
	done    chan struct{} // closed when replied, or when open is 0
}

type requestKey struct{}

// event is the answer, of the topic that was asked.
func (rq *request) event(payload any) Event {
	return Event{payload: payload, r: &record{bus: rq.entry.bus, id: nonce(), topic: rq.entry.topic,
		source: rq.entry.bus.source, time: time.Now()}}
}

// Request publishes to the subscribers of this process and waits for the first
// [Reply]. It fails with [ErrNoResponder] at once when nobody listens, and as soon
// as every handler has ended without an answer, with what they returned. Without a
// deadline in ctx it waits 5 s. It does not go over the transport.
//
// A handler may send requests; one that asks its own subscription, of which it is
// the only worker, gets ErrNoResponder.
func (b *Bus) Request(ctx context.Context, topic string, payload any) (Event, error) {
	fail := func(err error) (Event, error) {
		return Event{}, &Error{Op: "request", Topic: topic, Err: err}
	}
	e, err := b.entry(topic)
	if err != nil {
		return fail(err)
	}
	v := e.current()
	switch {
	case v == closedView:
		return fail(ErrClosed)
	case v == nil:
		return fail(ErrNoResponder)
	}
	to := v.responders(e.topic)
	if to.nobody() {
		return fail(ErrNoResponder)
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	rq := &request{entry: e, open: len(to.inline) + len(to.queued) + 1, done: make(chan struct{})}
	ev := e.newEvent(payload)
	ev.r = &record{bus: b, entry: e, number: e.plain.number, req: rq}
	// What was not accepted answers with its error, as what was dropped later does.
	err = e.send(context.WithValue(ctx, requestKey{}, rq), 0, to, ev)
	rq.finished(err)
	reply, err := rq.wait(ctx)
	if err != nil {
		return fail(err)
	}
	return reply, nil
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

// Reply answers the request that a handler's ctx belongs to. The first answer
// counts; later ones, and those outside a request, are errors.
func Reply(ctx context.Context, payload any) error {
	rq, _ := ctx.Value(requestKey{}).(*request)
	if rq == nil {
		return &Error{Op: "reply", Err: errors.New("the context is not that of a request")}
	}
	rq.mu.Lock()
	defer rq.mu.Unlock()
	if rq.replied {
		return &Error{Op: "reply", Err: errors.New("the request was answered before")}
	}
	rq.reply, rq.replied = rq.event(payload), true
	if rq.open > 0 {
		close(rq.done)
	}
	return nil
}

// finished counts a handler that cannot answer any more.
func (rq *request) finished(err error) {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	if err != nil {
		rq.errs = append(rq.errs, err)
	}
	if rq.open--; rq.open == 0 && !rq.replied {
		close(rq.done)
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
	case rq.open > 0:
		return Event{}, fmt.Errorf("no reply: %w", context.Cause(ctx))
	case len(rq.errs) > 0:
		return Event{}, fmt.Errorf("no reply: %w", join(rq.errs))
	}
	return Event{}, fmt.Errorf("%w: every handler ended without a reply", ErrNoResponder)
}

// answered tells the request of an event, if it is one, that a handler is done.
func (e Event) answered(err error) {
	if e.r.req != nil {
		e.r.req.finished(err)
	}
}
