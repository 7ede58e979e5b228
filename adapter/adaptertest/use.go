package adaptertest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/adapter"
)

func useRules() []rule {
	return []rule{
		{10, "refuses with ErrClosed after Drain and Close", always, closedRefuses},
		{11, "every method may be called from inside Deliver", always, fromInside},
		{12, "may be used concurrently", always, concurrent},
		{13, "leaves no goroutine behind", always, noLeak},
		{14, "Stats say that it is connected, and where", always, stats},
		{15, "Drain sends what was accepted", always, drainSends},
	}
}

func closedRefuses(e *env) {
	for _, end := range []func(adapter.Adapter) error{
		func(a adapter.Adapter) error { return a.Close() },
		func(a adapter.Adapter) error { return a.Drain(e.ctx()) },
	} {
		a := e.open()
		sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Deliver: func(adapter.Delivery) {}})
		e.must(end(a))
		if err := a.Publish(e.ctx(), message(e.topic("x"), "1"), adapter.Live); !errors.Is(err, adapter.ErrClosed) {
			e.failf("a live Publish returned %v", err)
		}
		if err := a.Publish(e.ctx(), message(e.topic("durable.x"), "1"), adapter.Durable); e.caps.Durable && !errors.Is(err, adapter.ErrClosed) {
			e.failf("a durable Publish returned %v", err)
		}
		if _, err := a.Subscribe(e.ctx(), adapter.Spec{Pattern: e.topic("x"), Deliver: func(adapter.Delivery) {}}); !errors.Is(err, adapter.ErrClosed) {
			e.failf("Subscribe returned %v", err)
		}
		if a.Stats().Connected {
			e.failf("Stats say that it is connected")
		}
		e.must(a.Close())
		e.must(a.Drain(e.ctx()))
		if err := sub.Close(e.ctx()); err != nil && !errors.Is(err, adapter.ErrClosed) {
			e.failf("closing a subscription then returned %v", err)
		}
	}
}

func fromInside(e *env) {
	a, other := e.open(), e.open()
	again := newInbox()
	nop := func(d adapter.Delivery) {
		if d.Settle != nil {
			d.Settle.Ack(nil)
		}
	}
	victim := e.subscribe(a, adapter.Spec{Pattern: e.topic("victim"), Deliver: nop})
	done := make(chan error, 1)
	var once sync.Once
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Deliver: func(adapter.Delivery) {
		once.Do(func() {
			ctx := context.Background()
			var errs []error
			errs = append(errs, a.Publish(ctx, message(e.topic("again"), "1"), adapter.Live))
			if a.Caps().Durable {
				errs = append(errs, a.Publish(ctx, message(e.topic("durable.x"), "1"), adapter.Durable))
				s, err := a.Subscribe(ctx, adapter.Spec{Pattern: e.topic("durable.x"), Group: "g", Durable: true, Deliver: nop})
				if errs = append(errs, err); err == nil {
					errs = append(errs, s.Ready(ctx), s.Close(ctx))
				}
			}
			s, err := a.Subscribe(ctx, adapter.Spec{Pattern: e.topic("again"), Deliver: again.deliver})
			if errs = append(errs, err); err == nil {
				errs = append(errs, s.Ready(ctx), a.Publish(ctx, message(e.topic("again"), "2"), adapter.Live))
			}
			_ = a.Stats()
			errs = append(errs, victim.Drain(ctx), victim.Close(ctx), other.Drain(ctx))
			done <- errors.Join(errs...)
		})
	}})
	e.publish(a, adapter.Live, e.topic("x"), "1")
	e.must(receive(e, done, "the calls from inside Deliver"))
	e.wait(again, 1)
	e.must(sub.Ready(e.ctx()))

	// Close of its own adapter comes back too.
	b := e.open()
	closed := make(chan error, 1)
	e.subscribe(b, adapter.Spec{Pattern: e.topic("close"), Deliver: func(adapter.Delivery) { closed <- b.Close() }})
	e.publish(b, adapter.Live, e.topic("close"), "1")
	e.must(receive(e, closed, "Close from inside Deliver"))
}

func concurrent(e *env) {
	a := e.open()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				in := newInbox()
				topic := e.topic(fmt.Sprintf("x%d.%d", i, j))
				sub, err := a.Subscribe(context.Background(), adapter.Spec{Pattern: topic, Group: "g", Deliver: in.deliver})
				if err != nil {
					e.Error(err)
					return
				}
				for _, id := range numbered("", 10) {
					if err := a.Publish(context.Background(), message(topic, id), adapter.Live); err != nil {
						e.Error(err)
					}
				}
				_ = a.Stats()
				if err := errors.Join(sub.Ready(context.Background()), sub.Drain(context.Background()), sub.Close(context.Background())); err != nil {
					e.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func noLeak(e *env) {
	round := func() {
		a := e.open()
		in := newInbox()
		subs := []adapter.Subscription{e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Group: "g", Deliver: in.deliver})}
		if e.caps.Durable {
			ack := acking()
			s := e.subscribe(a, adapter.Spec{Pattern: e.topic("durable.x"), Group: "g", Durable: true, Deliver: ack.deliver})
			e.must(s.Ready(e.ctx()))
			subs = append(subs, s)
			e.publish(a, adapter.Durable, e.topic("durable.x"), fmt.Sprint(e.n))
			e.wait(ack, 1)
		}
		e.publish(a, adapter.Live, e.topic("x"), "1")
		e.wait(in, 1)
		e.close(subs...)
		e.must(a.Drain(e.ctx()))
	}
	round() // what a broker in this process starts once is not counted
	before := goleak.IgnoreCurrent()
	round()
	if err := goleak.Find(before); err != nil {
		e.failf("%v", err)
	}
}

func stats(e *env) {
	a := e.open()
	s := a.Stats()
	if !s.Connected || s.URL == "" || s.Disconnects != 0 || s.Dropped != 0 || s.Buffered != 0 {
		e.failf("%+v", s)
	}
}

func drainSends(e *env) {
	a, in := e.open(), newInbox()
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Group: "g", Deliver: in.deliver})
	var ids []string
	for i := range 10 {
		p := e.open()
		mine := numbered(fmt.Sprint(i, "-"), 200)
		ids = append(ids, mine...)
		e.publish(p, adapter.Live, e.topic("x"), mine...)
		e.must(p.Drain(e.ctx()))
		if s := p.Stats(); s.Buffered != 0 || s.Dropped != 0 || s.InDoubt != 0 {
			e.failf("Stats after Drain: %+v", s)
		}
	}
	e.wait(in, len(ids))
	e.close(sub)
	e.once(in, ids)
}
