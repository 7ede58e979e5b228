package tidings

import "context"

// PublishLazy is [Bus.Publish] of what build returns, with the context that it
// returns. build is called only if somebody gets the event, on this goroutine, and
// may call the bus. Each Filter is asked once, where Listening and Publish would
// ask twice; only with Options.PublishMiddleware, which may choose another topic,
// Publish asks again.
func (b *Bus) PublishLazy(ctx context.Context, topic string, build func(context.Context) (context.Context, any)) error {
	fail := func(err error) error { return &Error{Op: "publish", Topic: topic, Err: err} }
	e, err := b.entry(topic)
	if err != nil {
		return fail(err)
	}
	v := e.current()
	switch {
	case v == nil:
		return nil
	case v == closedView:
		return fail(ErrClosed)
	}
	to := v.route(e.topic)
	if to.nobody() && v.publish == 0 {
		return nil
	}
	ctx, payload := build(ctx)
	switch {
	case v.fast: // there are no filters
		return e.publish(ctx, payload)
	case v.around:
		return b.around(ctx, e.topic, payload)
	}
	return e.send(ctx, v.publish, to, e.newEvent(payload))
}
