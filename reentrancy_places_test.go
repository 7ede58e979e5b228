package tidings_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

func nothing(context.Context, tidings.Event) error { return nil }

func nothingTyped(context.Context, tidings.Event, int) error { return nil }

// calls are what user code may do in every place. A name begins with the method;
// and names those that the row calls besides.
var calls = []struct {
	name string
	do   func(c *cell, ctx context.Context, e tidings.Event) error
	and  string
}{
	{name: "Bus.Publish to the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Publish(ctx, own, 1) }},
	{name: "Bus.Publish to another", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Publish(ctx, other, 1) }},
	{name: "Bus.Publish to nobody", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Publish(ctx, nobody, 1) }},
	{name: "Bus.Publish to no topic", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Publish(ctx, "no topic", 1) }},
	{name: "Bus.PublishAsync to the place", and: "Bus.Flush", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return errors.Join(c.bus.PublishAsync(ctx, own, 1, nil), c.bus.Flush(ctx))
	}},
	{name: "Bus.PublishAsync to another", and: "Topic.PublishAsync", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return tidings.NewTopic[int](other).On(c.bus).PublishAsync(ctx, 1, func(error) {})
	}},
	{name: "Bus.PublishLazy to the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.bus.PublishLazy(ctx, own, func(ctx context.Context) (context.Context, any) { return ctx, 1 })
	}},
	{name: "Bus.PublishEvent of the place", do: func(c *cell, ctx context.Context, e tidings.Event) error { return c.bus.PublishEvent(ctx, e) }},
	{name: "Bus.CancelEvent", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		_, err := c.bus.CancelEvent(ctx, other, "1")
		return err
	}},
	{name: "Bus.PublishEvent delayed", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.bus.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: other, NotBefore: time.Now().Add(time.Second)}))
	}},
	{name: "Bus.PublishEvent of another", and: "NewEvent", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.bus.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: other, Payload: 1}))
	}},
	{name: "Bus.Instrument the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.instrument(ctx, own, other) }},
	{name: "Bus.Instrument another", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.instrument(ctx, other, own) }},
	{name: "Bus.Begin the place", and: "Span.End", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.span(ctx, own) }},
	{name: "Bus.Begin another", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.span(ctx, other) }},
	{name: "Bus.Begin nobody", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.span(ctx, nobody) }},
	{name: "Bus.Subscribe to the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.join(ctx, own, nil) }},
	{name: "Bus.Subscribe to all", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.join(ctx, ">", nil) }},
	{name: "Bus.Subscribe inline", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.join(ctx, "*.*", inline) }},
	{name: "Bus.Subscribe durable", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.join(ctx, "reentrancy.*", &tidings.SubscribeOptions{Durable: true})
	}},
	{name: "Bus.SubscribeBatch to the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		s, err := c.bus.SubscribeBatch(ctx, own, func(context.Context, []tidings.Event) error { return nil }, nil)
		c.keep(s, err)
		return err
	}},
	{name: "Bus.Request of the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.request(ctx, own) }},
	{name: "Bus.Request of another", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.request(ctx, other) }},
	{name: "Bus.Request of nobody", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.request(ctx, nobody) }},
	{name: "Bus.Listening", do: func(c *cell, _ context.Context, _ tidings.Event) error {
		_, _, _ = c.bus.Listening(own), c.bus.Listening(other), c.bus.Listening(nobody)
		return nil
	}},
	{name: "Bus.Drain", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Drain(ctx) }},
	{name: "Bus.Close", do: func(c *cell, _ context.Context, _ tidings.Event) error { return c.bus.Close() }},
	{name: "Bus.Close after Drain", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		_ = c.bus.Drain(ctx) // the row above looks at it
		return c.bus.Close()
	}},
	{name: "Bus.Attach", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Attach(ctx, "mem:"+c.t.Name()) }},
	{name: "Bus.Ready", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.bus.Ready(ctx) }},
	{name: "Subscription.Stop of the place", do: func(c *cell, _ context.Context, _ tidings.Event) error { c.own.Stop(); return nil }},
	{name: "Subscription.Stop of another", and: "Subscription.Done", do: func(c *cell, _ context.Context, _ tidings.Event) error {
		c.other.Stop()
		<-c.other.Done()
		return nil
	}},
	{name: "Subscription.Drain of the place", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.own.Drain(ctx) }},
	{name: "Subscription.Drain of another", do: func(c *cell, ctx context.Context, _ tidings.Event) error { return c.other.Drain(ctx) }},
	{name: "Subscription.Err", and: "Subscription.Matches Subscription.String", do: func(c *cell, _ context.Context, _ tidings.Event) error {
		for _, s := range []*tidings.Subscription{c.own, c.other} {
			// Err is what a drain has cut, in places where one has.
			_, _, _, _ = s.Done(), s.Matches(own), s.String(), s.Err()
		}
		return nil
	}},
	{name: "Debugger.Snapshot", and: "Bus.Debugger Debugger.Health SubscriptionInfo.Active Problem.String", do: func(c *cell, _ context.Context, _ tidings.Event) error {
		snap := c.bus.Debugger().Snapshot()
		for _, s := range snap.Subscriptions {
			s.Active(0)
		}
		for _, p := range c.bus.Debugger().Health().Problems {
			_ = p.String()
		}
		if len(snap.Topics) == 0 {
			c.t.Error("no topics")
		}
		return nil
	}},
	{name: "Debugger.Idle", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.bus.Debugger().Idle(ctx)
	}},
	{name: "Debugger.Watch", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		events, missed, err := c.bus.Debugger().Watch(ctx, ">", nil)
		if err != nil {
			return err
		}
		err = c.bus.Publish(ctx, other, 1)
		for e := range events {
			_, _ = e.Topic(), missed()
		}
		return err
	}},
	{name: "Topic.Publish", and: "Topic.On Topic.Name NewTopic", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		t := tidings.NewTopic[int](own).On(c.bus)
		if t.Name() != own {
			c.t.Errorf("the topic's name is %s", t.Name())
		}
		if err := c.typed.Publish(ctx, 1); err != nil {
			return err
		}
		return t.Publish(ctx, 1)
	}},
	{name: "Topic.Instrument", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		return c.typed.Instrument(ctx, 1, func(ctx context.Context) error { return c.typed.Publish(ctx, 2) })
	}},
	{name: "Topic.Subscribe", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		s, err := c.typed.Subscribe(ctx, nothingTyped, nil)
		c.keep(s, err)
		return err
	}},
	{name: "Event.ID", do: readEvent, and: "Event.Topic Event.Source Event.Time Event.NotBefore Event.Expires Event.Duration Event.Err Event.Payload Event.Header Event.Attempt Event.Decode Event.Keep Event.String Event.Instrumented Event.LogValue Event.MarshalJSON Hung.MarshalJSON"},
	{name: "Reply", do: func(_ *cell, ctx context.Context, _ tidings.Event) error {
		_ = tidings.Reply(ctx, 1) // an error where there is no request, or not any more
		return nil
	}},
	{name: "WithTags", and: "Tags WithHeaders Headers Parent Permanent RetryAfter", do: func(c *cell, ctx context.Context, e tidings.Event) error {
		ctx = tidings.WithHeaders(ctx, map[string]string{"a": tidings.Headers(ctx)["traceparent"]})
		ctx = tidings.WithTags(ctx, map[string]any{"a": tidings.Parent(ctx, e), "b": len(tidings.Tags(ctx))})
		return tidings.Permanent(tidings.RetryAfter(c.bus.Publish(ctx, other, 1), time.Second))
	}},
	{name: "Open", and: "New", do: func(c *cell, ctx context.Context, _ tidings.Event) error {
		b, err := tidings.Open(ctx, "mem:"+c.t.Name()+" another", tidings.Options{App: "another"})
		if err != nil {
			return err
		}
		defer b.Close()
		b2, err := tidings.New(tidings.Options{App: "another"})
		if err != nil {
			return err
		}
		if _, err := b.Subscribe(ctx, own, nothing, nil); err != nil {
			return err
		}
		_, _ = b.Publish(ctx, own, 1), b2.Close()
		return b.Drain(ctx)
	}},
	{name: "Default", and: "Publish Subscribe Instrument", do: func(_ *cell, ctx context.Context, _ tidings.Event) error {
		// All cells share this bus: nothing is to be left on it.
		s, err := tidings.Subscribe(ctx, "reentrancy.default", nothing, inline)
		if err != nil {
			return err
		}
		defer s.Stop()
		_ = tidings.Default().Debugger()
		if err := tidings.Publish(ctx, "reentrancy.default", 1); err != nil {
			return err
		}
		return tidings.Instrument(ctx, "reentrancy.default", 1, func(context.Context) error { return nil })
	}},
}

func (c *cell) instrument(ctx context.Context, topic, inner string) error {
	return c.bus.Instrument(ctx, topic, 1, func(ctx context.Context) error { return c.bus.Publish(ctx, inner, 1) })
}

func (c *cell) span(ctx context.Context, topic string) error {
	ctx, s := c.bus.Begin(ctx, topic, 1)
	err := c.bus.Publish(ctx, other, 1)
	s.End(err)
	s.End(nil)
	return err
}

func (c *cell) join(ctx context.Context, pattern string, o *tidings.SubscribeOptions) error {
	s, err := c.bus.Subscribe(ctx, pattern, nothing, o)
	c.keep(s, err)
	return err
}

func (c *cell) request(ctx context.Context, topic string) error {
	_, err := c.bus.Request(ctx, topic, 1)
	return err
}

func readEvent(c *cell, _ context.Context, e tidings.Event) error {
	_, _, _, _, _, _, _ = e.Source(), e.Time(), e.NotBefore(), e.Expires(), e.Duration(), e.Payload(), e.Header("x")
	data, err := json.Marshal(tidings.Hung{Event: e})
	if err != nil || e.LogValue().Any() != e.String() || e.Instrumented() != strings.Contains(string(data), "tidingsduration") {
		c.t.Errorf("in JSON %s, %v", data, err)
	}
	if e.ID() == "" || e.Topic() == "" || e.Keep().String() == "" || e.Attempt() == 0 {
		c.t.Errorf("the event is %v", e)
	}
	var n int
	if err := e.Decode(&n); err != nil {
		return err
	}
	return e.Err()
}

// places are where code of the user's runs. Each prepares its cell and sees to it
// that cell.call is called.
var places = []struct {
	name   string
	worlds world
	run    func(*cell)
}{
	{"inline handler", anywhere, func(c *cell) { c.subscribe(c.handle, inline); c.fire() }},
	{"queued handler", anywhere, func(c *cell) { c.subscribe(c.handle, nil); c.fire() }},
	{"handler of three workers", anywhere, func(c *cell) {
		c.subscribe(c.handle, &tidings.SubscribeOptions{Workers: 3})
		c.fire()
	}},
	{"handler with a key and a timeout", anywhere, func(c *cell) {
		c.subscribe(c.handle, &tidings.SubscribeOptions{Workers: 2, Key: func(tidings.Event) string { return "" }, Timeout: time.Second})
		c.fire()
	}},
	{"batch handler", anywhere, batchHandler},
	{"typed handler", anywhere, typedHandler},
	{"durable handler", attached | remote, func(c *cell) {
		c.durable()
		c.subscribe(c.handle, &tidings.SubscribeOptions{Durable: true})
		c.fire()
	}},
	{"broadcast handler", attached | remote, func(c *cell) {
		c.subscribe(c.handle, &tidings.SubscribeOptions{Broadcast: true})
		c.fire()
	}},
	{"handler that panics", anywhere, func(c *cell) { c.subscribe(c.panics, nil); c.fire() }},
	{"inline handler that panics", anywhere, func(c *cell) { c.subscribe(c.panics, inline); c.fire() }},
	{"second attempt", anywhere, func(c *cell) {
		c.subscribe(func(ctx context.Context, e tidings.Event) error {
			if e.Attempt() == 1 {
				return errPlace
			}
			return c.handle(ctx, e)
		}, &tidings.SubscribeOptions{Retry: tidings.Retry{Attempts: 2}})
		c.fire()
	}},
	{"handler middleware", anywhere, func(c *cell) { c.around(false); c.subscribe(nothing, nil); c.fire() }},
	{"middleware of an inline handler", anywhere, func(c *cell) { c.around(false); c.subscribe(nothing, inline); c.fire() }},
	{"middleware that is put around", here, func(c *cell) {
		c.around(true)
		c.subscribe(nothing, nil)
		c.arm()
		c.keep(c.bus.Subscribe(placeCtx, own, nothing, nil))
	}},
	{"publish middleware", here, func(c *cell) {
		c.opts.PublishMiddleware = []func(tidings.PublishFunc) tidings.PublishFunc{func(next tidings.PublishFunc) tidings.PublishFunc {
			return func(ctx context.Context, topic string, payload any) error {
				c.call(ctx, made)
				return next(ctx, topic, payload)
			}
		}}
		c.subscribe(nothing, nil)
		c.fire()
	}},
	{"Start", here, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, e tidings.Event) context.Context {
			c.call(ctx, e)
			return ctx
		}})
		c.arm()
		_ = c.bus.Instrument(placeCtx, own, 1, nil)
	}},
	{"inline handler of a block", here, func(c *cell) {
		c.subscribe(c.handle, inline)
		c.arm()
		_ = c.bus.Instrument(placeCtx, own, 1, nil)
	}},
	{"instrumented block", here, func(c *cell) { c.subscribe(nothing, nil); c.arm(); _ = c.bus.Instrument(placeCtx, own, 1, c.block) }},
	{"instrumented block with Start", here, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context { return ctx }})
		c.arm()
		_ = c.bus.Instrument(placeCtx, own, 1, c.block)
	}},
	{"typed block", here, func(c *cell) {
		c.subscribe(nothing, inline)
		c.arm()
		_ = tidings.NewTopic[int](own).On(c.bus).Instrument(placeCtx, 1, c.block)
	}},
	{"between Begin and End", here, func(c *cell) {
		c.subscribe(nothing, nil)
		c.arm()
		ctx, s := c.bus.Begin(placeCtx, own, 1)
		c.call(ctx, made)
		s.End(nil)
	}},
	{"request's handler before Reply", here, func(c *cell) { c.answers(nil, true) }},
	{"request's handler after Reply", here, func(c *cell) { c.answers(nil, false) }},
	{"request's inline handler before Reply", here, func(c *cell) { c.answers(inline, true) }},
	{"request's inline handler after Reply", here, func(c *cell) { c.answers(inline, false) }},
	{"done of PublishAsync", here, doneOfAsync},
	{"done of PublishAsync of a durable event", attached, func(c *cell) { c.durable(); doneOfAsync(c) }},
	{"inline handler of PublishAsync", attached, inlineOfAsync},
	{"Filter", anywhere, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Filter: func(string) bool { c.callHere(); return true }})
		c.fire()
	}},
	{"Filter of an inline handler", anywhere, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { c.callHere(); return true }})
		c.fire()
	}},
	{"Key", anywhere, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Workers: 2, Key: func(e tidings.Event) string { c.call(placeCtx, e); return "" }})
		c.fire()
	}},
	{"what PublishLazy builds", here, func(c *cell) {
		c.subscribe(nothing, &tidings.SubscribeOptions{Filter: func(string) bool { return true }})
		c.arm()
		_ = c.bus.PublishLazy(placeCtx, own, func(ctx context.Context) (context.Context, any) {
			c.call(ctx, made)
			return ctx, 1
		})
	}},
	{"OnError of a queued handler", anywhere, func(c *cell) { c.onError(); c.subscribe(fails, nil); c.fire() }},
	{"OnError of an inline handler", anywhere, func(c *cell) { c.onError(); c.subscribe(fails, inline); c.fire() }},
	{"OnError of a Filter", anywhere, func(c *cell) {
		c.onError()
		c.subscribe(nothing, &tidings.SubscribeOptions{Filter: func(string) bool { panic(errPlace) }})
		c.fire()
	}},
	{"Logger of a queued handler", anywhere, func(c *cell) { c.logger("a handler failed"); c.subscribe(fails, nil); c.fire() }},
	{"Logger of an inline handler", anywhere, func(c *cell) { c.logger("a handler failed"); c.subscribe(fails, inline); c.fire() }},
	{"Logger of a hung handler", anywhere, func(c *cell) {
		c.logger("does not return")
		c.subscribe(c.hold, &tidings.SubscribeOptions{HungAfter: time.Second})
		c.fire()
	}},
	{"Logger of a full queue", anywhere, func(c *cell) { c.overflows(tidings.DropNewest) }},
	{"Logger of a full queue without its oldest", anywhere, func(c *cell) { c.overflows(tidings.DropOldest) }},
	{"Logger of a full queue that fails", anywhere, func(c *cell) { c.overflows(tidings.Fail) }},
	{"Logger of a full queue that blocks", anywhere, func(c *cell) { c.overflows(tidings.Block) }},
	{"Logger of what Stop drops", anywhere, func(c *cell) { c.drops(func() { c.own.Stop() }) }},
	{"Logger of what Close drops", anywhere, func(c *cell) { c.drops(func() { _ = c.bus.Close() }) }},
	{"Logger of what a deadline drops", anywhere, func(c *cell) { c.drops(func() { _ = c.own.Drain(expired()) }) }},
	{"Logger of what a bus's deadline drops", anywhere, func(c *cell) {
		c.drops(func() { _ = c.bus.Drain(expired()) })
		c.cut = true
	}},
	{"Encode", attached, func(c *cell) { c.opts.Codec = codec{c, true}; c.subscribe(nothing, nil); c.fire() }},
	{"Encode of AlwaysEncode", here, func(c *cell) {
		c.opts.Codec, c.opts.AlwaysEncode = codec{c, true}, true
		c.subscribe(nothing, inline)
		c.fire()
	}},
	{"Decode", remote, func(c *cell) { c.opts.Codec = codec{c, false}; c.subscribe(decodes, nil); c.fire() }},
	{"Decode in an inline handler", remote, func(c *cell) { c.opts.Codec = codec{c, false}; c.subscribe(decodes, inline); c.fire() }},
	{"Decode of AlwaysEncode", here, func(c *cell) {
		c.opts.Codec, c.opts.AlwaysEncode = codec{c, false}, true
		c.subscribe(decodes, nil)
		c.fire()
	}},
	{"MarshalJSON", attached, func(c *cell) {
		c.subscribe(nothing, nil)
		c.arm()
		_ = c.bus.Publish(placeCtx, own, marshaler{c})
	}},
	{"Watch", anywhere, watchLoop},
	{"filter of Watch", anywhere, func(c *cell) {
		c.subscribe(nothing, nil)
		events, _, err := c.bus.Debugger().Watch(ctx, ">", func(e tidings.Event) bool { c.call(placeCtx, e); return true })
		if err != nil {
			c.t.Fatal(err)
		}
		defer func() {
			for range events {
				break // ends it
			}
		}()
		c.fire()
		c.wait()
	}},
	{"handler while the bus drains", anywhere, func(c *cell) { c.while(func() { _ = c.bus.Drain(ctx) }) }},
	{"handler while the bus closes", anywhere, func(c *cell) { c.while(func() { _ = c.bus.Close() }) }},
	{"handler while its subscription drains", anywhere, func(c *cell) { c.while(func() { _ = c.own.Drain(ctx) }) }},
	{"handler that stopped itself", anywhere, func(c *cell) { c.stopped(nil) }},
	{"inline handler that stopped itself", anywhere, func(c *cell) { c.stopped(inline) }},
}

func fails(context.Context, tidings.Event) error { return errPlace }

func decodes(_ context.Context, e tidings.Event) error { return e.Decode(new(int)) }

func batchHandler(c *cell) {
	c.open()
	s, err := c.bus.SubscribeBatch(ctx, own, func(ctx context.Context, events []tidings.Event) error {
		return c.handle(ctx, events[0])
	}, c.sized(nil))
	c.own = c.keep(s, err)
	c.fire()
}

func typedHandler(c *cell) {
	c.open()
	s, err := tidings.NewTopic[int](own).On(c.bus).Subscribe(ctx, func(ctx context.Context, e tidings.Event, _ int) error {
		return c.handle(ctx, e)
	}, inline)
	c.own = c.keep(s, err)
	c.fire()
}

// panics makes the call while its panic goes up.
func (c *cell) panics(ctx context.Context, e tidings.Event) error {
	defer func() { _ = c.handle(ctx, e) }()
	panic(errPlace)
}

// around makes the call in the middleware, or when it is put around a handler.
func (c *cell) around(putAround bool) {
	c.opts.Middleware = []func(tidings.Handler) tidings.Handler{func(next tidings.Handler) tidings.Handler {
		if putAround {
			c.callHere()
		}
		return func(ctx context.Context, e tidings.Event) error {
			if !putAround && e.Topic() == own {
				_ = c.handle(ctx, e)
			}
			return next(ctx, e)
		}
	}}
}

func (c *cell) block(ctx context.Context) error {
	c.call(ctx, made)
	return nil
}

// answers makes the call in the handler of a request.
func (c *cell) answers(o *tidings.SubscribeOptions, before bool) {
	c.subscribe(func(ctx context.Context, e tidings.Event) error {
		if !before {
			_ = tidings.Reply(ctx, 1)
		}
		c.call(ctx, e)
		return tidings.Reply(ctx, 1)
	}, o)
	c.arm()
	_, _ = c.bus.Request(placeCtx, own, 1) // what the call does may make it fail
}

func (c *cell) onError() {
	c.opts.OnError = func(ctx context.Context, _ error) { c.call(ctx, made) }
}

// logger makes the call where the log is told of one of these.
func (c *cell) logger(about ...string) { c.opts.Logger = slog.New(logHandler{c, about}) }

type logHandler struct {
	c     *cell
	about []string
}

func (logHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h logHandler) WithGroup(string) slog.Handler          { return h }

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	if slices.ContainsFunc(h.about, func(s string) bool { return strings.Contains(r.Message, s) }) {
		h.c.call(ctx, made)
	}
	return nil
}

func (c *cell) hold(context.Context, tidings.Event) error { <-c.released; return nil }

// overflows makes the call where the log is told that a queue is full: there is
// one event in the handler, one in the queue, and one too many.
func (c *cell) overflows(o tidings.Overflow) {
	c.logger("the queue is full")
	c.subscribe(c.hold, &tidings.SubscribeOptions{Queue: 1, Overflow: o})
	for range 3 {
		c.arm()
		_ = c.publisher().Publish(placeCtx, own, 1)
		synctest.Wait()
	}
}

// drops makes the call where the log is told what the end of a subscription
// leaves undone.
func (c *cell) drops(end func()) {
	c.logger("was stopped", "deadline of a drain")
	c.subscribe(c.hold, &tidings.SubscribeOptions{Queue: 2})
	for range 2 {
		_ = c.publisher().Publish(placeCtx, own, 1)
		synctest.Wait()
	}
	c.arm()
	end()
}

func expired() context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// codec is JSON with a call in it.
type codec struct {
	c      *cell
	encode bool
}

func (x codec) Encode(v any) ([]byte, string, error) {
	if x.encode {
		x.c.callHere()
	}
	data, err := json.Marshal(v)
	return data, "application/json", err
}

func (x codec) Decode(data []byte, _ string, v any) error {
	if !x.encode {
		x.c.callHere()
	}
	return json.Unmarshal(data, v)
}

type marshaler struct{ c *cell }

func (m marshaler) MarshalJSON() ([]byte, error) {
	m.c.callHere()
	return []byte("1"), nil
}

// wait waits until the call has returned, or has not in the time it has.
func (c *cell) wait() {
	select {
	case <-c.ended:
	case <-time.After(bounded):
	}
}

func watchLoop(c *cell) {
	c.subscribe(nothing, nil)
	events, _, err := c.bus.Debugger().Watch(ctx, own, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		for e := range events {
			c.call(placeCtx, e)
		}
	}()
	c.fire()
}

// while makes the call in a handler that finds its bus or subscription ending.
func (c *cell) while(end func()) {
	c.subscribe(func(ctx context.Context, e tidings.Event) error {
		<-time.After(time.Second)
		c.call(ctx, e)
		return nil
	}, nil)
	c.fire()
	end()
}

// stopped makes the call in a handler that has ended its own subscription.
func (c *cell) stopped(o *tidings.SubscribeOptions) {
	c.subscribe(func(ctx context.Context, e tidings.Event) error {
		<-time.After(time.Millisecond)
		c.own.Stop()
		c.call(ctx, e)
		return nil
	}, o)
	c.fire()
}
