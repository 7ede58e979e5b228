package adaptertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
)

func replayRules() []rule {
	return []rule{
		{70, "a replay reaches one group alone, in order, as new events", durable, replaysToOne},
		{71, "a replay gives nothing that the group has not settled", durable, replaysNothingPending},
		{72, "a replay is narrowed by topics, sequence and time, and a dry run counts", durable, replaysSome},
		{73, "a replay that was cut is resumed where it was", durable, resumesReplay},
		{74, "new events come to a group while it is given a replay", durable, newEventsDuringReplay},
		{75, "Patterns names those of a group, and an error those there are", durable, patternsOfGroup},
	}
}

func (e *env) replayer(a adapter.Adapter) adapter.Replayer {
	e.Helper()
	r, ok := a.(adapter.Replayer)
	if !ok {
		e.failf("the adapter has durable events and does not implement adapter.Replayer")
	}
	return r
}

// replay is one of everything to the group of durableSpec.
func (e *env) replay() adapter.Replay {
	return adapter.Replay{Group: "g", Pattern: e.topic("durable.>")}
}

// settled subscribes the group of durableSpec and waits until it has
// acknowledged so many.
func (e *env) settled(a adapter.Adapter, publish func(), n int) adapter.Subscription {
	e.Helper()
	acked := make(chan error, n)
	in := newInbox()
	in.then = func(d adapter.Delivery) { d.Settle.Ack(func(err error) { acked <- err }) }
	sub := e.subscribe(a, e.durableSpec(in))
	publish()
	for range n {
		e.must(receive(e, acked, "the confirmation of an Ack"))
	}
	return sub
}

func replaysToOne(e *env) {
	p, other, live := e.open(), acking(), newInbox()
	if _, err := e.replayer(p).Replay(e.ctx(), e.replay()); err == nil {
		e.failf("something was replayed to a group that does not exist")
	}
	spec := e.durableSpec(other)
	spec.Group = "other"
	so := e.subscribe(e.open(), spec)
	sl := e.subscribe(e.open(), adapter.Spec{Pattern: e.topic(">"), Deliver: live.deliver})
	ids := numbered("", 30)
	e.close(e.settled(e.open(), func() {
		m := message(e.topic("durable.x"), ids[0])
		m.Header = map[string]string{"mine": "a: b"}
		e.must(p.Publish(e.ctx(), m, adapter.Durable))
		e.publish(p, adapter.Durable, e.topic("durable.y"), ids[1:]...)
	}, len(ids)))
	done, err := e.replayer(e.open()).Replay(e.ctx(), e.replay())
	e.must(err)
	if done.Events != 30 || done.Given != 30 || done.Gone != 0 || done.First == 0 || done.Stream == "" || done.Next != done.End+1 {
		e.failf("it says %+v", done)
	}
	mine := acking()
	sub := e.subscribe(e.open(), e.durableSpec(mine))
	got := e.wait(mine, 30)
	e.inOrder(got, ids)
	d := got[0]
	if d.Topic != e.topic("durable.x") || d.Source != "//adaptertest/1" || string(d.Data) != ids[0] || d.Header["mine"] != "a: b" || d.Attempt != 1 || d.Time.IsZero() || d.Sequence <= done.End {
		e.failf("the event has changed: %+v", d)
	}
	if _, ok := d.Header[adapter.ReplayHeader]; !ok {
		e.failf("nothing says that it is replayed: %+v", d.Header)
	}
	// What comes later shows that nothing else came before.
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(mine, 31), append(slices.Clone(ids), "last"))
	e.inOrder(e.wait(other, 31), append(slices.Clone(ids), "last"))
	e.inOrder(e.wait(live, 31), append(slices.Clone(ids), "last"))
	later := acking()
	spec.Group, spec.Deliver = "later", later.deliver
	sn := e.subscribe(e.open(), spec)
	e.inOrder(e.wait(later, 31), append(slices.Clone(ids), "last"))
	e.close(sub, so, sl, sn)
}

func replaysNothingPending(e *env) {
	p := e.open()
	e.close(e.settled(e.open(), func() { e.publish(p, adapter.Durable, e.topic("durable.x"), "1", "2") }, 2))
	in := newInbox()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "3", "4", "5")
	got := e.wait(in, 3)
	got[1].Settle.Ack(func(error) {}) // 3 is not settled: what comes after it is not replayed
	done, err := e.replayer(p).Replay(e.ctx(), e.replay())
	e.must(err)
	if done.Given != 2 {
		e.failf("%d events were given, want 2", done.Given)
	}
	got = e.wait(in, 5)
	e.inOrder(got, []string{"3", "4", "5", "1", "2"})
	for _, i := range []int{0, 2, 3, 4} {
		got[i].Settle.Ack(func(error) {})
	}
	e.close(sub)
}

func replaysSome(e *env) {
	p, r := e.open(), e.replayer(e.open())
	var middle time.Time
	sub := e.settled(e.open(), func() {
		e.publish(p, adapter.Durable, e.topic("durable.a.x"), "1", "2")
		e.publish(p, adapter.Durable, e.topic("durable.b.x"), "3")
		middle = time.Now()
		e.publish(p, adapter.Durable, e.topic("durable.b.y"), "4")
		e.publish(p, adapter.Durable, e.topic("durable.a.x"), "5")
	}, 5)
	e.close(sub)
	all := e.replay()
	all.DryRun = true
	whole, err := r.Replay(e.ctx(), all)
	e.must(err)
	in := acking()
	sub = e.subscribe(e.open(), e.durableSpec(in))
	var want []string
	for _, c := range []struct {
		change func(*adapter.Replay)
		ids    []string
	}{
		{func(q *adapter.Replay) {}, []string{"1", "2", "3", "4", "5"}},
		{func(q *adapter.Replay) { q.Topics = e.topic("durable.a.x") }, []string{"1", "2", "5"}},
		{func(q *adapter.Replay) { q.Topics = e.topic("*.b.*") }, []string{"3", "4"}},
		{func(q *adapter.Replay) { q.Topics = "*." + "durable.*.x" }, []string{"1", "2", "3", "5"}},
		{func(q *adapter.Replay) { q.From = whole.First + 3 }, []string{"4", "5"}},
		{func(q *adapter.Replay) { q.From = whole.End + 100 }, nil},
		{func(q *adapter.Replay) { q.Since = middle }, []string{"4", "5"}},
		{func(q *adapter.Replay) { q.Until = middle }, []string{"1", "2", "3"}},
		{func(q *adapter.Replay) { q.Until = middle; q.Topics = e.topic("durable.a.>") }, []string{"1", "2"}},
		{func(q *adapter.Replay) { q.Since = time.Now().Add(time.Hour) }, nil},
		{func(q *adapter.Replay) { q.Until = middle.Add(-time.Hour) }, nil},
	} {
		q := e.replay()
		c.change(&q)
		q.DryRun = true
		done, err := r.Replay(e.ctx(), q)
		e.must(err)
		// What was replayed before is not replayed.
		if done.Events != uint64(len(c.ids)) || done.Given != 0 {
			e.failf("a dry run of %+v says %+v, want %d events", q, done, len(c.ids))
		}
		q.DryRun = false
		done, err = r.Replay(e.ctx(), q)
		e.must(err)
		if done.Given != uint64(len(c.ids)) {
			e.failf("%+v gave %d events, want %d", q, done.Given, len(c.ids))
		}
		want = append(want, c.ids...)
		e.inOrder(e.wait(in, len(want)), want)
	}
	for _, topics := range []string{"elsewhere.>", e.topic("durable")} {
		q := e.replay()
		q.Topics = topics
		if _, err := r.Replay(e.ctx(), q); err == nil || !strings.Contains(err.Error(), topics) {
			e.failf("a replay of %q, which the group does not get: %v", topics, err)
		}
	}
	e.close(sub)
}

func resumesReplay(e *env) {
	p, r := e.open(), e.replayer(e.open())
	ids := numbered("", 700)
	sub := e.settled(e.open(), func() {
		e.publish(p, adapter.Durable, e.topic("durable.x"), ids...)
		e.publish(p, adapter.Durable, e.topic("durable.y"), "not asked for")
	}, len(ids)+1)
	e.close(sub)
	q := e.replay()
	q.Resume = true
	if _, err := r.Replay(e.ctx(), q); !errors.Is(err, adapter.ErrNoReplay) {
		e.failf("there is nothing to resume: %v", err)
	}
	// The group is away, so that a part is given and the rest waits.
	ctx, cancel := context.WithCancel(e.ctx())
	defer cancel()
	q = e.replay()
	q.Topics = e.topic("*.x")
	q.Progress = func(now adapter.Replayed) {
		if now.Waits != "" {
			cancel()
		}
	}
	first, err := r.Replay(ctx, q)
	if err == nil || !errors.Is(err, context.Canceled) || first.Given == 0 || first.Given >= first.Events {
		e.failf("it was cut, and says %+v, %v", first, err)
	}
	mine := acking()
	sub = e.subscribe(e.open(), e.durableSpec(mine))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "new")
	e.wait(mine, int(first.Given)+1)
	q = e.replay()
	q.Resume = true
	second, err := r.Replay(e.ctx(), q)
	e.must(err)
	if second.Given != first.Events-first.Given || second.End != first.End {
		e.failf("%d of %d were given, then %d; from %+v to %+v", first.Given, first.Events, second.Given, first, second)
	}
	got := e.wait(mine, len(ids)+1)
	got = slices.DeleteFunc(slices.Clone(got), func(d adapter.Delivery) bool { return d.ID == "new" })
	e.inOrder(got, ids)
	if third, err := r.Replay(e.ctx(), q); err != nil || third.Given != 0 {
		e.failf("resumed once more it gave %d, %v", third.Given, err)
	}
	e.close(sub)
}

func newEventsDuringReplay(e *env) {
	p, r := e.open(), e.replayer(e.open())
	ids := numbered("", 600)
	e.close(e.settled(e.open(), func() { e.publish(p, adapter.Durable, e.topic("durable.x"), ids...) }, len(ids)))
	ctx, cancel := context.WithCancel(e.ctx())
	half, over := make(chan struct{}), make(chan error, 1)
	told := false
	q := e.replay()
	q.Progress = func(now adapter.Replayed) {
		if now.Waits != "" && !told {
			told = true
			close(half)
		}
	}
	run := loop.Go(func(context.Context) {
		_, err := r.Replay(ctx, q)
		over <- err
	})
	defer func() { cancel(); run.StopAndWait() }()
	receive(e, half, "a replay that waits for the group")
	e.publish(p, adapter.Durable, e.topic("durable.x"), "new")
	in := acking()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	got := e.wait(in, len(ids)+1)
	e.must(receive(e, over, "the end of the replay"))
	at := slices.IndexFunc(got, func(d adapter.Delivery) bool { return d.ID == "new" })
	if at < 0 || at == len(ids) {
		e.failf("the new event came after all %d that were replayed (place %d)", len(ids), at)
	}
	e.inOrder(slices.Delete(slices.Clone(got), at, at+1), ids)
	e.close(sub)
}

func patternsOfGroup(e *env) {
	p := e.open()
	var subs []adapter.Subscription
	for _, s := range []string{"durable.>", "durable.a"} {
		spec := e.durableSpec(acking())
		spec.Group, spec.Pattern = "many", e.topic(s)
		subs = append(subs, e.subscribe(p, spec))
	}
	got, err := e.replayer(p).Patterns(e.ctx(), "many")
	e.must(err)
	// The rules share one transport.
	got = slices.DeleteFunc(got, func(s string) bool { return !strings.HasPrefix(s, e.topic("")) })
	if !slices.Equal(got, []string{e.topic("durable.>"), e.topic("durable.a")}) {
		e.failf("they are %q", got)
	}
	if got, err := e.replayer(p).Patterns(e.ctx(), "nobody"); err == nil || !strings.Contains(err.Error(), "many") {
		e.failf("of a group that is not there: %q, %v", got, err)
	}
	e.close(subs...)
}
