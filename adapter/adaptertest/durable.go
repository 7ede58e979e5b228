package adaptertest

import (
	"errors"
	"sync"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

func durableRules() []rule {
	return []rule{
		{20, "durable events wait while the group is away", durable, waitsWhileAway},
		{21, "a later group gets the events from the start", durable, laterGroup},
		{22, "confirms an Ack, and delivers what was acked never again", durable, ackConfirmed},
		{23, "redelivers after Nak", durable, nakRedelivers},
		{24, "delivers never again after Term", durable, termEnds},
		{25, "hands back at Close what is not settled", durable, closeHandsBack},
		{26, "keeps MaxInFlight", durable, keepsMaxInFlight},
		{27, "a durable hand-over loses and doubles nothing", durable, func(e *env) { handOver(e, adapter.Durable) }},
		{28, "a durable group gets each event once over its processes", durable, durableGroupOnce},
		{29, "refuses a durable subscription that nothing stores", durable, notDurable},
		{30, "keeps the order of a publisher in a durable group", durable, durableOrder},
		{31, "durable events reach live subscribers too", durable, durableReachesLive},
		{32, "Close waits for acknowledgements and fails later ones", durable, lateAck},
		{33, "Close names exactly what it hands back", durable, closeNames},
		{34, "takes no more than Prefetch says", durable, keepsPrefetch},
	}
}

func (e *env) durableSpec(in *inbox) adapter.Spec {
	return adapter.Spec{Pattern: e.topic("durable.>"), Group: "g", Durable: true, Deliver: in.deliver}
}

func waitsWhileAway(e *env) {
	a, p := e.open(), e.open()
	first, second := acking(), acking()
	sub := e.subscribe(a, e.durableSpec(first))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	e.wait(first, 1)
	e.close(sub)
	e.must(a.Drain(e.ctx()))
	ids := numbered("", 100)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	sub = e.subscribe(e.open(), e.durableSpec(second))
	e.must(sub.Ready(e.ctx()))
	e.wait(second, len(ids))
	e.close(sub)
	e.once(second, ids)
}

func laterGroup(e *env) {
	p, in := e.open(), acking()
	ids := numbered("", 100)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	spec := e.durableSpec(in)
	spec.Group = "later"
	sub := e.subscribe(e.open(), spec)
	e.inOrder(e.wait(in, len(ids)), ids)
	e.close(sub)
}

func ackConfirmed(e *env) {
	a, p := e.open(), e.open()
	confirmed := make(chan error, 10)
	in := newInbox()
	in.then = func(d adapter.Delivery) { d.Settle.Ack(func(err error) { confirmed <- err }) }
	sub := e.subscribe(a, e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), numbered("a", 10)...)
	for range 10 {
		e.must(receive(e, confirmed, "the confirmation of an Ack"))
	}
	e.close(sub)
	rest := acking()
	sub = e.subscribe(e.open(), e.durableSpec(rest))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(rest, 1), []string{"last"})
	e.close(sub)
}

func nakRedelivers(e *env) {
	const delay = 150 * time.Millisecond
	p := e.open()
	at := make(chan time.Time, 4)
	in := newInbox()
	in.then = func(d adapter.Delivery) {
		at <- time.Now()
		if d.Attempt < 3 {
			d.Settle.Nak(delay)
			return
		}
		d.Settle.Ack(func(error) {})
	}
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	got := e.wait(in, 3)
	e.close(sub)
	last := <-at
	for i, d := range got {
		if d.Attempt != i+1 || d.ID != "1" || d.Sequence != got[0].Sequence {
			e.failf("delivery %d is event %q, sequence %d, attempt %d", i+1, d.ID, d.Sequence, d.Attempt)
		}
		if i > 0 {
			now := <-at
			if now.Sub(last) < delay-5*time.Millisecond {
				e.failf("after %v; %v was asked for", now.Sub(last), delay)
			}
			last = now
		}
	}
}

func termEnds(e *env) {
	p, in := e.open(), newInbox()
	in.then = func(d adapter.Delivery) { d.Settle.Term("it is\nbad: 100 %") }
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "poison")
	e.wait(in, 1)
	e.close(sub)
	rest := acking()
	sub = e.subscribe(e.open(), e.durableSpec(rest))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(rest, 1), []string{"last"})
	e.close(sub)
}

func closeHandsBack(e *env) {
	p, held := e.open(), newInbox() // settles nothing
	ids := numbered("", 20)
	sub := e.subscribe(e.open(), e.durableSpec(held))
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	e.wait(held, len(ids))
	rest := acking()
	other := e.subscribe(e.open(), e.durableSpec(rest))
	e.must(other.Ready(e.ctx()))
	e.closeLeaving(sub, ids...)
	began := time.Now()
	for _, d := range e.wait(rest, len(ids)) {
		if d.Attempt < 2 {
			e.failf("event %q says that it is delivered for the first time", d.ID)
		}
	}
	if d := time.Since(began); d > 3*time.Second {
		e.failf("it took %v", d)
	}
	e.close(other)
	e.once(rest, ids)
}

func keepsMaxInFlight(e *env) {
	const limit = 5
	p := e.open()
	var mu sync.Mutex
	var open []adapter.Delivery
	most, in := 0, newInbox()
	full := make(chan struct{}, 1000)
	in.then = func(d adapter.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		open = append(open, d)
		most = max(most, len(open))
		if len(open) >= limit {
			full <- struct{}{}
		}
	}
	spec := e.durableSpec(in)
	spec.MaxInFlight = limit
	sub := e.subscribe(e.open(), spec)
	ids := numbered("", 50)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	for range len(ids) - limit + 1 { // each time one more is let in
		receive(e, full, "the bound")
		mu.Lock()
		d := open[0]
		open = open[1:]
		mu.Unlock()
		d.Settle.Ack(func(error) {})
	}
	e.wait(in, len(ids))
	mu.Lock()
	for _, d := range open {
		d.Settle.Ack(func(error) {})
	}
	mu.Unlock()
	e.close(sub)
	e.once(in, ids)
	if most > limit {
		e.failf("%d were not settled, the bound is %d", most, limit)
	}
}

func durableGroupOnce(e *env) {
	p, in := e.open(), acking()
	sa, sb := e.subscribe(e.open(), e.durableSpec(in)), e.subscribe(e.open(), e.durableSpec(in))
	ids := numbered("", 300)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	e.wait(in, len(ids))
	e.close(sa, sb)
	e.once(in, ids)
}

func notDurable(e *env) {
	_, err := e.open().Subscribe(e.ctx(), adapter.Spec{Pattern: e.topic("elsewhere.>"), Group: "g", Durable: true, Deliver: func(adapter.Delivery) {}})
	if !errors.Is(err, adapter.ErrNotDurable) {
		e.failf("Subscribe returned %v", err)
	}
}

func durableOrder(e *env) {
	p, in := e.open(), acking()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	ids := numbered("", 500)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	got := e.wait(in, len(ids))
	e.inOrder(got, ids)
	for i := 1; i < len(got); i++ {
		if got[i].Sequence <= got[i-1].Sequence {
			e.failf("sequence %d comes after %d", got[i].Sequence, got[i-1].Sequence)
		}
	}
	e.close(sub)
}

func durableReachesLive(e *env) {
	a, p, in := e.open(), e.open(), newInbox()
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("durable.*"), Group: "live", Deliver: in.deliver})
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	if d := e.wait(in, 1)[0]; d.Settle != nil || d.Sequence != 0 {
		e.failf("a live delivery has a settler or a sequence: %+v", d)
	}
	e.close(sub)
}

func lateAck(e *env) {
	p, in := e.open(), newInbox()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1", "2")
	got := e.wait(in, 2)
	early, late := make(chan error, 2), make(chan error, 2)
	got[0].Settle.Ack(func(err error) { early <- err })
	e.closeLeaving(sub, "2")
	select {
	case err := <-early:
		e.must(err)
	default:
		e.failf("Close returned before an Ack was confirmed")
	}
	got[1].Settle.Ack(func(err error) { late <- err })
	if err := receive(e, late, "the answer to a late Ack"); err == nil {
		e.failf("an Ack after Close was confirmed although the event was handed back")
	}
}
