package adaptertest

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

func restartRules() []rule {
	return []rule{
		{40, "live events flow again after a restart of the broker", restart, liveAfterRestart},
		{41, "a restart of the broker loses, doubles and reorders no durable event", durableRestart, durableOverRestart},
		{42, "an Ack given while the broker is away is confirmed later", durableRestart, ackOverRestart},
	}
}

func liveAfterRestart(e *env) {
	a, p, in := e.open(), e.open(), newInbox()
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Group: "g", Deliver: in.deliver})
	e.h.Restart()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(e.ctx(), patience)
	defer cancel()
	for {
		e.publish(p, adapter.Live, e.topic("x"), "1")
		_, changed := in.state()
		if got, _ := in.state(); len(got) > 0 {
			break
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			e.failf("nothing in %v", patience)
		}
	}
	if s := p.Stats(); s.Disconnects == 0 || s.LastError == "" || !s.Connected {
		e.failf("Stats do not tell of it: %+v", s)
	}
	e.close(sub)
}

func durableOverRestart(e *env) {
	a, p, in := e.open(), e.open(), acking()
	sub := e.subscribe(a, e.durableSpec(in))
	e.must(sub.Ready(e.ctx()))
	flow := startFlow(e, p, adapter.Durable, e.topic("durable.x"), in)
	flow.begin()
	for range 3 {
		got, _ := in.state()
		e.wait(in, len(got)+200)
		e.h.Restart()
	}
	got, _ := in.state()
	e.wait(in, len(got)+200)
	ids := flow.stop()
	got = e.wait(in, len(ids))
	e.close(sub)
	e.once(in, ids)
	e.inOrder(got, ids)
}

func ackOverRestart(e *env) {
	a, p, in := e.open(), e.open(), newInbox()
	sub := e.subscribe(a, e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	d := e.wait(in, 1)[0]
	confirmed := make(chan error, 1)
	e.h.Restart()
	d.Settle.Ack(func(err error) { confirmed <- err })
	e.must(receive(e, confirmed, "the confirmation"))
	e.close(sub)
	rest := acking()
	sub = e.subscribe(e.open(), e.durableSpec(rest))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(rest, 1), []string{"last"})
	e.close(sub)
}
