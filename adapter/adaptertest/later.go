package adaptertest

import (
	"time"

	"github.com/tidings-go/tidings/adapter"
)

func delay(_ Harness, c adapter.Caps) bool        { return c.Durable && c.Delay }
func delayRestart(h Harness, c adapter.Caps) bool { return h.Restart != nil && delay(h, c) }
func delayed(topic, id string, at time.Time) *adapter.Message {
	m := message(topic, id)
	m.NotBefore = at
	return m
}

func laterRules() []rule {
	return []rule{
		{60, "delivers what is delayed to everybody when it is due", delay, deliversWhenDue},
		{61, "Cancel takes back what waits, and says whether it did", delay, cancels},
		{62, "the same topic and id again moves what waits", delay, moves},
		{63, "what is delayed waits over a restart of the broker and of the app", delayRestart, waitsOverRestart},
		{64, "delays only what is durable", delay, delaysOnlyDurable},
	}
}

func deliversWhenDue(e *env) {
	a, p := e.open(), e.open()
	in, live, own := acking(), newInbox(), newInbox()
	subs := []adapter.Subscription{
		e.subscribe(a, e.durableSpec(in)),
		e.subscribe(a, adapter.Spec{Pattern: e.topic("durable.*"), Group: "live", Deliver: live.deliver}),
		e.subscribe(p, adapter.Spec{Pattern: e.topic(">"), Deliver: own.deliver}),
	}
	topic := e.topic("durable.x")
	due := time.Now().Add(700 * time.Millisecond)
	want := delayed(topic, "an id. that * is > odd", due)
	want.Header = map[string]string{"tidings-tags": `{"a":1}`, "traceparent": "00-1-2-3"}
	want.Expires = due.Add(time.Hour)
	e.must(p.Publish(e.ctx(), want, adapter.Durable))
	e.publish(p, adapter.Durable, topic, "at once")
	e.inOrder(e.wait(in, 1), []string{"at once"})
	for _, inbox := range []*inbox{in, live, own} {
		got := e.wait(inbox, 2)[1]
		if now := time.Now(); now.Before(due) {
			e.failf("it came %v early", due.Sub(now))
		}
		if diff := differ(want, &got.Message); diff != "" {
			e.failf("%s", diff)
		}
	}
	if got, _ := own.state(); len(got) != 2 {
		e.failf("a subscription to everything got %d events instead of two: %+v", len(got), got)
	}
	e.close(subs...)
}

func cancels(e *env) {
	a, p, in := e.open(), e.open(), acking()
	c, topic := p.(adapter.Canceler), e.topic("durable.x")
	cancel := func(id string, want bool) {
		e.Helper()
		got, err := c.Cancel(e.ctx(), topic, id)
		e.must(err)
		if got != want {
			e.failf("Cancel of %q returned %v", id, got)
		}
	}
	cancel("1", false)
	sub := e.subscribe(a, e.durableSpec(in))
	due := time.Now().Add(time.Second)
	e.must(p.Publish(e.ctx(), delayed(topic, "1", due), adapter.Durable))
	e.must(p.Publish(e.ctx(), delayed(topic, "2", due.Add(300*time.Millisecond)), adapter.Durable))
	cancel("1", true)
	cancel("1", false)
	e.inOrder(e.wait(in, 1), []string{"2"})
	cancel("2", false) // it is no longer waiting
	// And it is not refused when it is published once more.
	e.must(p.Publish(e.ctx(), delayed(topic, "1", due.Add(time.Second)), adapter.Durable))
	e.inOrder(e.wait(in, 2), []string{"2", "1"})
	e.close(sub)
}

func moves(e *env) {
	a, p, in := e.open(), e.open(), acking()
	topic := e.topic("durable.x")
	sub := e.subscribe(a, e.durableSpec(in))
	now := time.Now()
	e.must(p.Publish(e.ctx(), delayed(topic, "moved", now.Add(700*time.Millisecond)), adapter.Durable))
	e.must(p.Publish(e.ctx(), delayed(topic, "fence", now.Add(1200*time.Millisecond)), adapter.Durable))
	e.must(p.Publish(e.ctx(), delayed(topic, "moved", now.Add(1800*time.Millisecond)), adapter.Durable))
	e.inOrder(e.wait(in, 2), []string{"fence", "moved"})
	e.close(sub)
}

// The app that delayed it has gone, and so has the broker for a while. Whoever of
// the app comes next has it delivered.
func waitsOverRestart(e *env) {
	a, in := e.open(), acking()
	e.close(e.subscribe(a, e.durableSpec(in))) // the group is known
	p := e.open()
	e.must(p.Publish(e.ctx(), delayed(e.topic("durable.x"), "1", time.Now().Add(time.Second)), adapter.Durable))
	e.must(p.Drain(e.ctx()))
	e.must(a.Drain(e.ctx()))
	e.h.Restart()
	sub := e.subscribe(e.open(), e.durableSpec(in))
	e.inOrder(e.wait(in, 1), []string{"1"})
	e.close(sub)
}

func delaysOnlyDurable(e *env) {
	p := e.open()
	if err := p.Publish(e.ctx(), delayed(e.topic("x"), "1", time.Now().Add(time.Minute)), adapter.Live); err == nil {
		e.failf("a delayed live event was accepted")
	}
}
