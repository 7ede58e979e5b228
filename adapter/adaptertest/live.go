package adaptertest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

func liveRules() []rule {
	return []rule{
		{1, "a live group gets each event once over its processes", always, groupOnce},
		{2, "without a group every subscription gets each event", always, broadcast},
		{3, "keeps the order of a publisher", always, order},
		{4, "delivers what the pattern matches and nothing else", always, wildcards},
		{5, "carries every field as it is", always, fields},
		{6, "a live subscription exists when Subscribe returns", always, subscribeThenPublish},
		{7, "Deliver is not called once Drain has returned", always, drainStops},
		{8, "a live hand-over loses and doubles nothing", always, func(e *env) { handOver(e, adapter.Live) }},
		{9, "groups and patterns are told apart", always, groupsApart},
	}
}

func groupOnce(e *env) {
	in := newInbox()
	a, b, p := e.open(), e.open(), e.open()
	spec := adapter.Spec{Pattern: e.topic("x"), Group: "g", Deliver: in.deliver}
	sa, sb := e.subscribe(a, spec), e.subscribe(b, spec)
	ids := numbered("", 500)
	e.publish(p, adapter.Live, e.topic("x"), ids...)
	e.wait(in, len(ids))
	e.close(sa, sb) // what is doubled has arrived when both are drained
	e.once(in, ids)
}

func broadcast(e *env) {
	a, b, p := e.open(), e.open(), e.open()
	ids := numbered("", 100)
	var inboxes []*inbox
	var subs []adapter.Subscription
	for _, x := range []adapter.Adapter{a, a, b, p} {
		in := newInbox()
		inboxes = append(inboxes, in)
		subs = append(subs, e.subscribe(x, adapter.Spec{Pattern: e.topic("x"), Deliver: in.deliver}))
	}
	e.publish(p, adapter.Live, e.topic("x"), ids...)
	for _, in := range inboxes {
		e.wait(in, len(ids))
	}
	e.close(subs...)
	for _, in := range inboxes {
		e.once(in, ids)
	}
}

func order(e *env) {
	a, in := e.open(), newInbox()
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("*"), Group: "g", Deliver: in.deliver})
	p, q := e.open(), e.open()
	var wg sync.WaitGroup
	for name, x := range map[string]adapter.Adapter{"p": p, "q": q} {
		wg.Go(func() {
			for _, id := range numbered(name, 1000) {
				if err := x.Publish(context.Background(), message(e.topic("x"), id), adapter.Live); err != nil {
					e.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := e.wait(in, 2000)
	e.close(sub)
	for _, name := range []string{"p", "q"} {
		e.inOrder(slices.DeleteFunc(slices.Clone(got), func(d adapter.Delivery) bool { return d.ID[:1] != name }), numbered(name, 1000))
	}
}

func wildcards(e *env) {
	topics := []string{"a", "a.b", "a.b.c", "b", "b.a", "a.c", "a.b.d.e", "ü.ö"}
	for pattern, want := range map[string][]string{
		"a":   {"a"},
		"a.*": {"a.b", "a.c"}, "a.>": {"a.b", "a.b.c", "a.c", "a.b.d.e"}, "*": {"a", "b"},
		"*.b.*": {"a.b.c"}, "*.>": {"a.b", "a.b.c", "b.a", "a.c", "a.b.d.e", "ü.ö"}, "ü.*": {"ü.ö"},
	} {
		a, p, in := e.open(), e.open(), newInbox()
		sub := e.subscribe(a, adapter.Spec{Pattern: e.topic(pattern), Group: "g", Deliver: in.deliver})
		end := newInbox()
		fence := e.subscribe(a, adapter.Spec{Pattern: e.topic("fence"), Deliver: end.deliver})
		for _, s := range topics {
			e.publish(p, adapter.Live, e.topic(s), s)
		}
		e.publish(p, adapter.Live, e.topic("fence"), "fence")
		e.wait(end, 1)
		e.close(sub, fence)
		got, _ := in.state()
		got = slices.DeleteFunc(slices.Clone(got), func(d adapter.Delivery) bool { return d.ID == "fence" })
		e.inOrder(got, slices.DeleteFunc(slices.Clone(topics), func(s string) bool { return !slices.Contains(want, s) }))
		for _, d := range got {
			if d.Topic != e.topic(d.ID) {
				e.failf("topic %q arrived as %q", e.topic(d.ID), d.Topic)
			}
		}
		e.must(a.Close())
		e.must(p.Close())
	}
}

// odd holds what transports tend to change.
func odd(topic string) []*adapter.Message {
	return []*adapter.Message{
		{
			ID: "1/ä %41", Topic: topic, Source: "//shöp/host 1#7", Time: time.Now().Round(0), ContentType: `application/json; charset="utf-8"`,
			Data: []byte("{\"a\":\r\n1}\x00\xff"), Instrumented: true, Duration: 1234567891 * time.Nanosecond, Err: "order 7: \"broken\"\n100 % ✗",
			Header: map[string]string{
				"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "empty": "", "space": "  a b  ", "percent": "100%25 %zz",
				"uni-code": "grüße, 世界", "quoted": `"quoted"`, "nats-msg-id": "mine", "ce-id": "mine too", "status": "503", "a:b c": "odd key", "content-type": "text/x",
			},
			Served:  []string{"billing|order.>", "with,comma", "ü%2C", "a b", ""},
			Expires: time.Now().Add(time.Hour).Round(0),
		},
		{ID: "2", Topic: topic, Source: "s", Time: time.Unix(1, 1)},
		{ID: "3", Topic: topic, Source: "s", Time: time.Unix(0, 1e9+1), Data: []byte{}, Served: []string{""}, Instrumented: true, Duration: -1},
		{ID: "4", Topic: topic, Source: "s", Time: time.Now(), Data: bytes.Repeat([]byte("x"), 100_000), ContentType: "application/cloudevents+json"},
		{ID: "5", Topic: topic, Source: "s", Time: time.Unix(2, 1), Instrumented: true}, // and it took no time
	}
}

func fields(e *env) {
	classes := map[adapter.Class]string{adapter.Live: "x"}
	if e.caps.Durable {
		classes[adapter.Durable] = "durable.x"
	}
	for class, name := range classes {
		a, p, in := e.open(), e.open(), newInbox()
		if class == adapter.Durable {
			in = acking()
		}
		sub := e.subscribe(a, adapter.Spec{Pattern: e.topic(name), Group: "g", Durable: class == adapter.Durable, Deliver: in.deliver})
		for i, m := range odd(e.topic(name)) {
			e.must(p.Publish(e.ctx(), m, class))
			got := e.wait(in, i+1)[i]
			if diff := differ(m, &got.Message); diff != "" {
				e.failf("message %d: %s", i+1, diff)
			}
			if got.Attempt != 1 || (got.Settle != nil) != (class == adapter.Durable) || (got.Sequence > 0) != (class == adapter.Durable) {
				e.failf("message %d: attempt %d, sequence %d, settler %v", i+1, got.Attempt, got.Sequence, got.Settle)
			}
		}
		e.close(sub)
	}
}

// differ names the first field that is not the same.
func differ(a, b *adapter.Message) string {
	for _, f := range []struct {
		name string
		same bool
		a, b any
	}{
		{"ID", a.ID == b.ID, a.ID, b.ID}, {"Topic", a.Topic == b.Topic, a.Topic, b.Topic}, {"Source", a.Source == b.Source, a.Source, b.Source},
		{"Time", a.Time.Equal(b.Time), a.Time, b.Time}, {"ContentType", a.ContentType == b.ContentType, a.ContentType, b.ContentType},
		{"Data", bytes.Equal(a.Data, b.Data), len(a.Data), len(b.Data)}, {"Duration", a.Duration == b.Duration, a.Duration, b.Duration},
		{"Instrumented", a.Instrumented == b.Instrumented, a.Instrumented, b.Instrumented},
		{"Err", a.Err == b.Err, a.Err, b.Err}, {"Header", maps.Equal(a.Header, b.Header), a.Header, b.Header},
		{"Served", slices.Equal(a.Served, b.Served), a.Served, b.Served},
		{"NotBefore", a.NotBefore.Equal(b.NotBefore), a.NotBefore, b.NotBefore}, {"Expires", a.Expires.Equal(b.Expires), a.Expires, b.Expires},
	} {
		if !f.same {
			return fmt.Sprintf("%s is %q, want %q", f.name, fmt.Sprint(f.b), fmt.Sprint(f.a))
		}
	}
	return ""
}

func subscribeThenPublish(e *env) {
	a, p := e.open(), e.open()
	for i := range 200 {
		in := newInbox()
		topic := e.topic(fmt.Sprintf("x%d", i))
		sub := e.subscribe(a, adapter.Spec{Pattern: topic, Group: "g", Deliver: in.deliver})
		e.publish(p, adapter.Live, topic, "1")
		e.wait(in, 1)
		e.close(sub)
	}
}

func drainStops(e *env) {
	a, p := e.open(), e.open()
	var over, late atomic.Bool
	in := newInbox()
	in.then = func(adapter.Delivery) {
		if over.Load() {
			late.Store(true)
		}
	}
	sub := e.subscribe(a, adapter.Spec{Pattern: e.topic("x"), Group: "g", Deliver: in.deliver})
	end := newInbox()
	fence := e.subscribe(a, adapter.Spec{Pattern: e.topic("fence"), Deliver: end.deliver})
	ids := numbered("", 200)
	e.publish(p, adapter.Live, e.topic("x"), ids...)
	e.wait(in, 1)
	e.must(sub.Drain(e.ctx()))
	over.Store(true)
	e.publish(p, adapter.Live, e.topic("x"), ids...)
	e.publish(p, adapter.Live, e.topic("fence"), "fence")
	e.wait(end, 1)
	if late.Load() {
		e.failf("it was")
	}
	e.must(sub.Drain(e.ctx())) // again does no harm
	e.close(sub, fence)
	e.close(sub)
}

func groupsApart(e *env) {
	a, p := e.open(), e.open()
	var inboxes []*inbox
	var subs []adapter.Subscription
	for _, s := range []adapter.Spec{
		{Group: "g", Pattern: e.topic("x")}, {Group: "h", Pattern: e.topic("x")},
		{Group: "g", Pattern: e.topic("*")}, {Group: "g h|%", Pattern: e.topic(">")},
	} {
		in := newInbox()
		s.Deliver = in.deliver
		inboxes, subs = append(inboxes, in), append(subs, e.subscribe(a, s))
	}
	ids := numbered("", 50)
	e.publish(p, adapter.Live, e.topic("x"), ids...)
	for _, in := range inboxes {
		e.wait(in, len(ids))
	}
	e.close(subs...)
	for _, in := range inboxes {
		e.once(in, ids)
	}
}

// handOver lets several generations follow each other while events flow: the
// new one subscribes, then the old one drains and closes.
func handOver(e *env, class adapter.Class) {
	const generations, each = 8, 150
	name, in := "x", newInbox()
	if class == adapter.Durable {
		name, in = "durable.x", acking()
	}
	p := e.open()
	flow := startFlow(e, p, class, e.topic(name), in)
	spec := adapter.Spec{Pattern: e.topic(name), Group: "g", Durable: class == adapter.Durable, Deliver: in.deliver, MaxInFlight: 64}
	var old adapter.Adapter
	var oldSub adapter.Subscription
	for range generations {
		a := e.open()
		sub := e.subscribe(a, spec)
		e.must(sub.Ready(e.ctx()))
		if old == nil {
			flow.begin()
		} else {
			e.close(oldSub)
			e.must(old.Drain(e.ctx()))
		}
		old, oldSub = a, sub
		got, _ := in.state()
		e.wait(in, len(got)+each)
	}
	ids := flow.stop()
	e.wait(in, len(ids))
	e.close(oldSub)
	e.once(in, ids)
}

// A flow publishes numbered events, never far ahead of what has arrived.
type flow struct {
	e     *env
	start chan struct{}
	end   chan struct{}
	wg    sync.WaitGroup
	ids   []string
}

func startFlow(e *env, p adapter.Adapter, class adapter.Class, topic string, in *inbox) *flow {
	f := &flow{e: e, start: make(chan struct{}), end: make(chan struct{})}
	e.Cleanup(func() { f.stop() })
	f.wg.Go(func() {
		select {
		case <-f.start:
		case <-f.end:
			return
		}
		for i := 0; ; i++ {
			for {
				got, changed := in.state()
				if i-len(got) < 100 {
					break
				}
				select {
				case <-changed:
				case <-f.end:
					return
				}
			}
			select {
			case <-f.end:
				return
			default:
			}
			id := fmt.Sprintf("%06d", i)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			err := p.Publish(ctx, message(topic, id), class)
			cancel()
			if err != nil {
				e.Errorf("rule %d: publish: %v", e.rule.number, err)
				return
			}
			f.ids = append(f.ids, id)
		}
	})
	return f
}

func (f *flow) begin() { close(f.start) }

// stop ends it and returns the ids that were accepted.
func (f *flow) stop() []string {
	select {
	case <-f.end:
	default:
		close(f.end)
	}
	f.wg.Wait()
	return f.ids
}
