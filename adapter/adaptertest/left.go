package adaptertest

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/tidings-go/tidings/adapter"
)

// closeLeaving closes a subscription that has not settled ids, and checks that it
// says so.
func (e *env) closeLeaving(sub adapter.Subscription, ids ...string) {
	e.Helper()
	err := sub.Close(e.ctx())
	var left *adapter.LeftError
	if !errors.As(err, &left) {
		e.failf("Close left %d events unsettled and returned %v", len(ids), err)
	}
	var named []string
	for _, m := range left.HandedBack {
		named = append(named, m.ID)
	}
	slices.Sort(named)
	if want := slices.Sorted(slices.Values(ids)); !slices.Equal(named, want) {
		e.failf("Close names %q as handed back, want %q", named, want)
	}
	if left.Undelivered != 0 {
		e.failf("all of what was handed back had been delivered, but of %d the error says that it was not", left.Undelivered)
	}
	if len(left.Unconfirmed) > 0 {
		e.failf("the store was there, but %d acknowledgements are said to be unconfirmed", len(left.Unconfirmed))
	}
}

// closeNames settles every third event, and lets a deadline that has passed cut
// the rest.
func closeNames(e *env) {
	p, held := e.open(), newInbox()
	ids := numbered("", 60)
	sub := e.subscribe(e.open(), e.durableSpec(held))
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	var want []string
	for i, d := range e.wait(held, len(ids)) {
		if i%3 == 0 {
			d.Settle.Ack(func(error) {})
		} else {
			want = append(want, d.ID)
		}
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	err := sub.Close(over)
	var left *adapter.LeftError
	if !errors.As(err, &left) {
		e.failf("Close returned %v", err)
	}
	rest := acking()
	other := e.subscribe(e.open(), e.durableSpec(rest))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.wait(rest, len(want)+1)
	e.close(other)
	e.once(rest, append(want, "last"))
	named := map[string]bool{}
	for _, m := range left.HandedBack {
		named[m.ID] = true
	}
	for _, id := range want {
		if !named[id] {
			e.failf("event %q was redelivered and is not named", id)
		}
	}
	if left.Undelivered != 0 {
		e.failf("all %d events were delivered, but of %d the error says that they were not", len(ids), left.Undelivered)
	}
	if len(named) != len(want) {
		e.failf("%d events are named, %d were redelivered", len(named), len(want))
	}
}

func keepsPrefetch(e *env) {
	p, held := e.open(), newInbox()
	var limit atomic.Int64
	limit.Store(3)
	spec := e.durableSpec(held)
	spec.MaxInFlight, spec.Prefetch = 50, func() int { return int(limit.Load()) }
	ids := numbered("", 100)
	e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
	sub := e.subscribe(e.open(), spec)
	e.wait(held, 3)
	marker := acking() // what was on its way is there once another group has all
	spec2 := e.durableSpec(marker)
	spec2.Group = "marker"
	second := e.subscribe(e.open(), spec2)
	e.wait(marker, len(ids))
	got, _ := held.state()
	if len(got) != 3 {
		e.failf("%d events were taken, Prefetch is 3", len(got))
	}
	limit.Store(50)
	for _, d := range got {
		d.Settle.Ack(func(error) {})
	}
	got = e.wait(held, 53)
	for _, d := range got[3:] {
		d.Settle.Ack(func(error) {})
	}
	for _, d := range e.wait(held, len(ids))[53:] {
		d.Settle.Ack(func(error) {})
	}
	e.close(sub, second)
	e.once(held, ids)
}
