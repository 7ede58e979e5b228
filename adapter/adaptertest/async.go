package adaptertest

import (
	"context"
	"slices"

	"github.com/tidings-go/tidings/adapter"
)

func (e *env) async(a adapter.Adapter) (adapter.AsyncPublisher, bool) {
	p, ok := a.(adapter.AsyncPublisher)
	return p, ok
}

func asyncRules() []rule {
	return []rule{
		{76, "PublishAsync keeps the order of a caller, with Publish too, and tells each outcome once", durable, asyncOrder},
		{77, "what PublishAsync took is stored over a restart of the broker, once", durableRestart, asyncOverRestart},
		{78, "Close tells the outcome of all that PublishAsync took", durable, asyncClose},
		{79, "PublishAsync refuses at once what was given up before", durable, asyncCancelled},
	}
}

// outcomes counts the calls of done.
type outcomes struct {
	told chan error
	n    int
}

func (e *env) publishAsync(p adapter.AsyncPublisher, o *outcomes, topic string, ids ...string) {
	for _, id := range ids {
		e.must(p.PublishAsync(e.ctx(), message(topic, id), adapter.Durable, func(err error) { o.told <- err }))
		o.n++
	}
}

func (o *outcomes) all(e *env) (errs []error) {
	for range o.n {
		errs = append(errs, receive(e, o.told, "an outcome"))
	}
	if len(o.told) > 0 {
		e.failf("%d outcomes too many", len(o.told))
	}
	return errs
}

func asyncOrder(e *env) {
	a, in := e.open(), acking()
	p, ok := e.async(a)
	if !ok {
		return
	}
	sub := e.subscribe(e.open(), e.durableSpec(in))
	const n = 1000
	o, topic, ids := &outcomes{told: make(chan error, 2*n)}, e.topic("durable.x"), numbered("", n)
	for part := range slices.Chunk(ids, 100) {
		e.publishAsync(p, o, topic, part[:99]...)
		e.publish(a, adapter.Durable, topic, part[99])
	}
	for _, err := range o.all(e) {
		e.must(err)
	}
	e.inOrder(e.wait(in, n), ids)
	e.close(sub)
}

func asyncOverRestart(e *env) {
	a, in := e.open(), acking()
	p, ok := e.async(a)
	if !ok {
		return
	}
	sub := e.subscribe(e.open(), e.durableSpec(in))
	const n = 2000
	o, topic, ids := &outcomes{told: make(chan error, 2*n)}, e.topic("durable.x"), numbered("", n)
	e.publishAsync(p, o, topic, ids[:n/2]...)
	e.h.Restart()
	e.publishAsync(p, o, topic, ids[n/2:]...)
	for _, err := range o.all(e) {
		e.must(err)
	}
	e.inOrder(e.wait(in, n), ids)
	e.close(sub)
}

func asyncClose(e *env) {
	a := e.open()
	p, ok := e.async(a)
	if !ok {
		return
	}
	const n = 500
	o := &outcomes{told: make(chan error, 2*n)}
	e.publishAsync(p, o, e.topic("durable.x"), numbered("", n)...)
	e.must(a.Close())
	o.all(e)
	if err := p.PublishAsync(e.ctx(), message(e.topic("durable.x"), "late"), adapter.Durable, func(error) { e.failf("told of what was refused") }); err == nil {
		e.failf("it takes events after Close")
	}
}

func asyncCancelled(e *env) {
	p, ok := e.async(e.open())
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx())
	cancel()
	if err := p.PublishAsync(ctx, message(e.topic("durable.x"), "1"), adapter.Durable, func(error) { e.failf("told of what was refused") }); err == nil {
		e.failf("it took an event whose context had ended")
	}
}
