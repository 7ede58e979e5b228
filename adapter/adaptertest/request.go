package adaptertest

import (
	"errors"
	"fmt"

	"github.com/tidings-go/tidings/adapter"
)

func requestRules() []rule {
	return []rule{
		{85, "a reply comes back with every field as it is", always, requestFields},
		{86, "says ErrNobody at once when nobody listens", always, requestNobody},
		{87, "a request reaches what a live message does, and each may reply", always, requestMany},
		{88, "a process that gives no reply says why", always, requestNone},
		{89, "reply is not called once stop has returned", always, requestStopped},
		{90, "Close ends requests with ErrClosed", always, requestClosed},
		{91, "only requests can be replied to", always, requestOnly},
		{92, "a request finds its responder, or is in doubt, over a restart of the broker", restart, requestRestart},
	}
}

// requester opens a process that can send requests; the rule is over if the transport cannot.
func (e *env) requester() (adapter.Adapter, adapter.Requester) {
	a := e.open()
	q, ok := a.(adapter.Requester)
	if !ok {
		e.Skip("the transport does not offer it")
	}
	return a, q
}

// replies collects what comes back.
type replies chan adapter.Reply

func (e *env) request(q adapter.Requester, topic, id string) (replies, func()) {
	e.Helper()
	got := make(replies, 100)
	stop, err := q.Request(e.ctx(), message(topic, id), func(a adapter.Reply) { got <- a })
	e.must(err)
	return got, stop
}

// responding replies to what it gets with the id that it has, and prefix before.
func (e *env) responding(prefix string) *inbox {
	in := newInbox()
	in.then = func(d adapter.Delivery) {
		if d.Reply == nil {
			e.Errorf("rule %d: %s was delivered without Reply", e.rule.number, d.ID)
			return
		}
		if err := d.Reply(adapter.Reply{Message: message(d.Topic, prefix+d.ID)}); err != nil {
			e.Errorf("rule %d: Reply: %v", e.rule.number, err)
		}
	}
	return in
}

func requestFields(e *env) {
	_, q := e.requester()
	topic := e.topic("x")
	for i, m := range odd(topic) {
		in := newInbox()
		in.then = func(d adapter.Delivery) { e.must(d.Reply(adapter.Reply{Message: m})) }
		sub := e.subscribe(e.open(), adapter.Spec{Pattern: topic, Group: "g", Deliver: in.deliver})
		got, stop := e.request(q, topic, fmt.Sprint(i))
		a := receive(e, got, "a reply")
		if a.Message == nil {
			e.failf("no reply: %v", a.Err)
		}
		if diff := differ(m, a.Message); diff != "" {
			e.failf("message %d: %s", i+1, diff)
		}
		stop()
		e.close(sub)
	}
}

func requestNobody(e *env) {
	a, q := e.requester()
	got, stop := e.request(q, e.topic("x"), "1")
	defer stop()
	if a := receive(e, got, "a reply"); a.Message != nil || !errors.Is(a.Err, adapter.ErrNobody) {
		e.failf("%+v", a)
	}
	if e.must(a.Close()); len(got) > 0 {
		e.failf("then came %+v", <-got)
	}
}

func requestMany(e *env) {
	_, q := e.requester()
	topic := e.topic("x")
	var subs []adapter.Subscription
	for _, group := range []string{"g", "g", "h", ""} {
		in := e.responding(group + "/")
		subs = append(subs, e.subscribe(e.open(), adapter.Spec{Pattern: e.topic("*"), Group: group, Deliver: in.deliver}))
	}
	got, stop := e.request(q, topic, "1")
	seen := map[string]int{}
	for range 3 {
		a := receive(e, got, "a reply")
		if a.Message == nil {
			e.failf("no reply: %v", a.Err)
		}
		seen[a.Message.ID]++
	}
	e.close(subs...) // what is doubled has been sent when all are drained
	stop()
	if len(got) > 0 || seen["g/1"] != 1 || seen["h/1"] != 1 || seen["/1"] != 1 {
		e.failf("replies %v and %d more", seen, len(got))
	}
}

func requestNone(e *env) {
	_, q := e.requester()
	topic := e.topic("x")
	boom := errors.New("boom: ä\r\n100 %")
	in := newInbox()
	in.then = func(d adapter.Delivery) { e.must(d.Reply(adapter.Reply{Err: boom})) }
	sub := e.subscribe(e.open(), adapter.Spec{Pattern: topic, Group: "g", Deliver: in.deliver})
	got, stop := e.request(q, topic, "1")
	defer stop()
	if a := receive(e, got, "a reply"); a.Message != nil || a.Err == nil || a.Err.Error() != boom.Error() || errors.Is(a.Err, adapter.ErrNobody) {
		e.failf("%+v", a)
	}
	e.close(sub)
}

func requestStopped(e *env) {
	_, q := e.requester()
	topic := e.topic("x")
	first := make(chan adapter.Delivery, 1)
	sub := e.subscribe(e.open(), adapter.Spec{Pattern: topic, Group: "g", Deliver: func(d adapter.Delivery) {
		if d.ID == "1" {
			first <- d
		} else {
			_ = d.Reply(adapter.Reply{Message: &d.Message})
		}
	}})
	got, stop := e.request(q, topic, "1")
	d := receive(e, first, "the request")
	stop()
	e.must(d.Reply(adapter.Reply{Message: message(topic, "late")}))
	next, stop := e.request(q, topic, "2") // its reply comes after the late one
	receive(e, next, "a reply")
	stop()
	if len(got) > 0 {
		e.failf("a reply came after stop: %+v", <-got)
	}
	e.close(sub)
}

func requestClosed(e *env) {
	a, q := e.requester()
	topic := e.topic("x")
	in := newInbox()
	e.subscribe(e.open(), adapter.Spec{Pattern: topic, Group: "g", Deliver: in.deliver})
	got, stop := e.request(q, topic, "1")
	defer stop()
	e.wait(in, 1)
	e.must(a.Close())
	if a := receive(e, got, "a reply"); !errors.Is(a.Err, adapter.ErrClosed) {
		e.failf("%+v", a)
	}
	if _, err := q.Request(e.ctx(), message(topic, "2"), func(adapter.Reply) {}); !errors.Is(err, adapter.ErrClosed) {
		e.failf("Request after Close returned %v", err)
	}
}

func requestOnly(e *env) {
	a, _ := e.requester()
	in := newInbox()
	sub := e.subscribe(e.open(), adapter.Spec{Pattern: e.topic(">"), Deliver: in.deliver})
	e.publish(a, adapter.Live, e.topic("x"), "1")
	n := 1
	if e.caps.Durable {
		e.publish(a, adapter.Durable, e.topic("durable.x"), "2")
		n++
	}
	for _, d := range e.wait(in, n) {
		if d.Reply != nil {
			e.failf("%s can be replied to", d.ID)
		}
	}
	e.close(sub)
}

func requestRestart(e *env) {
	_, q := e.requester()
	topic := e.topic("x")
	sub := e.subscribe(e.open(), adapter.Spec{Pattern: topic, Group: "g", Deliver: e.responding("").deliver})
	for _, id := range numbered("", 3) {
		e.h.Restart()
		for again := true; again; {
			got, stop := e.request(q, topic, id)
			a := receive(e, got, "a reply")
			stop()
			if again = errors.Is(a.Err, adapter.ErrInDoubt); !again && (a.Message == nil || a.Message.ID != id) {
				e.failf("%+v", a)
			}
		}
	}
	e.close(sub)
}
