package adaptertest

import (
	"context"
	"errors"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

func deadRules() []rule {
	return []rule{
		{50, "keeps a dead letter with all that is known, and delivers its event never again", durable, deadKeeps},
		{51, "each group that gives an event up leaves a letter of its own", durable, deadPerGroup},
		{52, "redelivers to the group that gave it up, to nobody else, as a new event", durable, redeliversToOne},
		{53, "Drop removes a letter, and what is not there is ErrNoLetter", durable, dropsLetters},
		{54, "Close waits for dead letters and fails later ones", durable, lateDead},
		{55, "Give reaches one group alone, once for each key", durable, givesToOne},
		{57, "Begin tells of processes that ended without an outcome, not of what Close handed back", durable, beginTells},
		{56, "a dead letter stored while the broker is away is confirmed later", durableRestart, deadOverRestart},
	}
}

// died tells of one event that was given up.
type died struct {
	letter *adapter.DeadLetter
	err    error
}

// burying gives up everything it gets.
func burying(tell chan died) *inbox {
	in := newInbox()
	in.then = func(d adapter.Delivery) {
		l := &adapter.DeadLetter{Group: "g", Pattern: "p", Reason: "it is\nbad: 100 % ü", Stack: "goroutine 1\n\tmain.go:7",
			Attempts: 3, First: time.Unix(1e9, 5).UTC(), Last: time.Unix(2e9, 0).UTC(), Instance: "//app/1"}
		d.Settle.Dead(l, func(err error) { tell <- died{l, err} })
	}
	return in
}

func (e *env) letters(a adapter.Adapter) []*adapter.DeadLetter {
	e.Helper()
	var out []*adapter.DeadLetter
	for l, err := range e.deadLetters(a).Letters(e.ctx()) {
		e.must(err)
		// The rules share one transport.
		if topicOf(e, l) {
			out = append(out, l)
		}
	}
	return out
}

func topicOf(e *env, l *adapter.DeadLetter) bool {
	prefix := e.topic("")
	return len(l.Event.Topic) > len(prefix) && l.Event.Topic[:len(prefix)] == prefix
}

func (e *env) deadLetters(a adapter.Adapter) adapter.DeadLetters {
	e.Helper()
	d, ok := a.(adapter.DeadLetters)
	if !ok {
		e.failf("the adapter has durable events and does not implement adapter.DeadLetters")
	}
	return d
}

// bury makes the events of these ids dead letters of the group g.
func (e *env) bury(p adapter.Adapter, ids ...string) []*adapter.DeadLetter {
	e.Helper()
	tell := make(chan died, len(ids))
	sub := e.subscribe(e.open(), e.durableSpec(burying(tell)))
	var out []*adapter.DeadLetter
	for _, id := range ids {
		m := message(e.topic("durable.x"), id)
		m.Header = map[string]string{"mine": "a: b"}
		m.Data = []byte{0, 0xff, '\n'}
		e.must(p.Publish(e.ctx(), m, adapter.Durable))
		got := receive(e, tell, "the confirmation of Dead")
		e.must(got.err)
		out = append(out, got.letter)
	}
	e.close(sub)
	return out
}

func deadKeeps(e *env) {
	p := e.open()
	l := e.bury(p, "poison")[0]
	all := e.letters(p)
	if len(all) != 1 {
		e.failf("there are %d letters", len(all))
	}
	one, err := e.deadLetters(p).Letter(e.ctx(), l.ID)
	e.must(err)
	for _, got := range []*adapter.DeadLetter{all[0], one} {
		ev := got.Event
		switch {
		case got.ID != l.ID || got.ID == "" || got.Stream != l.Stream || got.Sequence != l.Sequence || got.Sequence == 0:
			e.failf("it is %s of %s %d, was told as %s of %s %d", got.ID, got.Stream, got.Sequence, l.ID, l.Stream, l.Sequence)
		case got.Reason != l.Reason || got.Stack != l.Stack || got.Group != "g" || got.Pattern != "p" || got.Instance != "//app/1":
			e.failf("it says %+v", got)
		case got.Attempts != 3 || got.Deliveries != 1 || !got.First.Equal(l.First) || !got.Last.Equal(l.Last):
			e.failf("it counts %+v", got)
		case ev.ID != "poison" || ev.Topic != e.topic("durable.x") || ev.Source != "//adaptertest/1" || ev.Time.IsZero():
			e.failf("its event is %+v", ev)
		case string(ev.Data) != "\x00\xff\n" || ev.Header["mine"] != "a: b" || ev.ContentType != "text/plain":
			e.failf("its event is %+v", ev)
		}
	}
	rest := acking()
	sub := e.subscribe(e.open(), e.durableSpec(rest))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(rest, 1), []string{"last"})
	e.close(sub)
}

func deadPerGroup(e *env) {
	p := e.open()
	tell := make(chan died, 4)
	for _, group := range []string{"g", "other"} {
		spec := e.durableSpec(burying(tell))
		spec.Group = group
		sub := e.subscribe(e.open(), spec)
		if group == "g" {
			e.publish(p, adapter.Durable, e.topic("durable.x"), "poison")
		}
		e.must(receive(e, tell, "the confirmation of Dead").err)
		e.close(sub)
	}
	if n := len(e.letters(p)); n != 2 {
		e.failf("two groups have given it up, and there are %d letters", n)
	}
}

func redeliversToOne(e *env) {
	p, other := e.open(), acking()
	spec := e.durableSpec(other)
	spec.Group = "other"
	so := e.subscribe(e.open(), spec)
	live := newInbox()
	sl := e.subscribe(e.open(), adapter.Spec{Pattern: e.topic(">"), Deliver: live.deliver})
	letters := e.bury(p, "one", "two")
	e.wait(other, 2)
	e.wait(live, 2)
	e.must(e.deadLetters(p).Redeliver(e.ctx(), letters[0].ID))
	mine := acking()
	sub := e.subscribe(e.open(), e.durableSpec(mine))
	d := e.wait(mine, 1)[0]
	if d.ID != "one" || d.Topic != e.topic("durable.x") || d.Source != "//adaptertest/1" || string(d.Data) != "\x00\xff\n" || d.Header["mine"] != "a: b" {
		e.failf("the event has changed: %+v", d.Message)
	}
	if d.Attempt != 1 || d.Sequence == letters[0].Sequence || !d.Time.Equal(letters[0].Event.Time) {
		e.failf("attempt %d, sequence %d, time %v", d.Attempt, d.Sequence, d.Time)
	}
	if left := e.letters(p); len(left) != 1 || left[0].ID != letters[1].ID {
		e.failf("%d letters are left", len(left))
	}
	if err := e.deadLetters(p).Redeliver(e.ctx(), letters[0].ID); !errors.Is(err, adapter.ErrNoLetter) {
		e.failf("redriving it again returned %v", err)
	}
	// What comes later shows that nothing else came before.
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(mine, 2), []string{"one", "last"})
	e.inOrder(e.wait(other, 3), []string{"one", "two", "last"})
	e.inOrder(e.wait(live, 3), []string{"one", "two", "last"})
	later := acking()
	spec.Group, spec.Deliver = "later", later.deliver
	sn := e.subscribe(e.open(), spec)
	e.inOrder(e.wait(later, 3), []string{"one", "two", "last"})
	e.close(sub, so, sl, sn)
}

func dropsLetters(e *env) {
	p := e.open()
	l := e.bury(p, "one")[0]
	d := e.deadLetters(p)
	e.must(d.Drop(e.ctx(), l.ID))
	if n := len(e.letters(p)); n != 0 {
		e.failf("%d letters are left", n)
	}
	for _, id := range []string{l.ID, "", "x", "a:1:b", "*:1:*", ">"} {
		_, err := d.Letter(e.ctx(), id)
		for _, err := range []error{err, d.Drop(e.ctx(), id), d.Redeliver(e.ctx(), id)} {
			if !errors.Is(err, adapter.ErrNoLetter) {
				e.failf("of %q, which is not there: %v", id, err)
			}
		}
	}
}

func lateDead(e *env) {
	p, in := e.open(), newInbox()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1", "2")
	got := e.wait(in, 2)
	early, late := make(chan error, 2), make(chan error, 2)
	got[0].Settle.Dead(&adapter.DeadLetter{Reason: "early"}, func(err error) { early <- err })
	e.closeLeaving(sub, "2")
	select {
	case err := <-early:
		e.must(err)
	default:
		e.failf("Close returned before a dead letter was confirmed")
	}
	got[1].Settle.Dead(&adapter.DeadLetter{Reason: "late"}, func(err error) { late <- err })
	if err := receive(e, late, "the answer to a late Dead"); err == nil {
		e.failf("a Dead after Close was confirmed although the event was handed back")
	}
	if all := e.letters(p); len(all) != 1 || all[0].Reason != "early" {
		e.failf("there are %d letters", len(all))
	}
}

func givesToOne(e *env) {
	p, mine, other := e.open(), acking(), acking()
	g, ok := p.(adapter.Giver)
	if !ok {
		e.failf("the adapter has durable events and does not implement adapter.Giver")
	}
	give := func(id, key string) error {
		return g.Give(e.ctx(), message(e.topic("durable.x"), id), "g", e.topic("durable.>"), key)
	}
	if err := give("1", "a"); err == nil {
		e.failf("something was given to a group that does not exist")
	}
	sub := e.subscribe(e.open(), e.durableSpec(mine))
	spec := e.durableSpec(other)
	spec.Group = "other"
	so := e.subscribe(e.open(), spec)
	for _, x := range [][2]string{{"1", "b"}, {"1", "b"}, {"2", "c"}, {"2", "d"}} {
		e.must(give(x[0], x[1]))
	}
	if err := g.Give(context.Background(), message("elsewhere", "3"), "g", e.topic("durable.>"), "e"); err == nil {
		e.failf("something was given to a group that its pattern does not match")
	}
	e.publish(p, adapter.Durable, e.topic("durable.x"), "last")
	e.inOrder(e.wait(mine, 4), []string{"1", "2", "2", "last"})
	e.inOrder(e.wait(other, 1), []string{"last"})
	e.close(sub, so)
}

func beginTells(e *env) {
	p := e.open()
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	begin := func(d adapter.Delivery) int {
		type answer struct {
			n   int
			err error
		}
		ch := make(chan answer, 2)
		d.Settle.Begin(func(n int, err error) { ch <- answer{n, err} })
		a := receive(e, ch, "the answer to Begin")
		e.must(a.err)
		return a.n
	}
	for died := range 2 {
		a, in := e.open(), newInbox()
		e.subscribe(a, e.durableSpec(in))
		if n := begin(e.wait(in, 1)[0]); n != died {
			e.failf("%d deaths are told, want %d", n, died)
		}
		e.must(a.Close()) // no outcome
	}
	in := newInbox()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	d := e.wait(in, 1)[0]
	if n := begin(d); n != 2 {
		e.failf("%d deaths are told, want 2", n)
	}
	d.Settle.Nak(0)
	d = e.wait(in, 2)[1]
	if n := begin(d); n != 0 {
		e.failf("%d deaths are told after an outcome, want 0", n)
	}
	e.closeLeaving(sub, d.ID)
	in = newInbox()
	sub = e.subscribe(e.open(), e.durableSpec(in))
	d = e.wait(in, 1)[0]
	if n := begin(d); n != 0 {
		e.failf("%d deaths are told after Close has handed it back, want 0", n)
	}
	d.Settle.Ack(func(error) {})
	e.close(sub)
}

func deadOverRestart(e *env) {
	p, in := e.open(), newInbox()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.publish(p, adapter.Durable, e.topic("durable.x"), "1")
	d := e.wait(in, 1)[0]
	confirmed := make(chan error, 1)
	e.h.Restart()
	d.Settle.Dead(&adapter.DeadLetter{Group: "g", Reason: "x"}, func(err error) { confirmed <- err })
	e.must(receive(e, confirmed, "the confirmation"))
	e.close(sub)
	if n := len(e.letters(p)); n != 1 {
		e.failf("there are %d letters", n)
	}
}
