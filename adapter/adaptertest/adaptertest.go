// Package adaptertest checks that a transport keeps the promises of package
// adapter. A transport's own test runs it against the real thing:
//
//	func TestConformance(t *testing.T) {
//		adaptertest.Run(t, adaptertest.Harness{Open: func(t *testing.T, cfg adapter.Config) adapter.Adapter { … }})
//	}
//
// The rules are numbered, and a failure begins with the one that is broken:
// "rule 23: redelivers after Nak: …". Which rules are run depends on what the
// transport says it can do. The numbers stay when rules are added.
package adaptertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
)

// A Harness is how the suite gets at a transport.
type Harness struct {
	// Open opens one more process on the same transport. It fails the test when
	// it cannot. The suite closes what it opened.
	Open func(t *testing.T, cfg adapter.Config) adapter.Adapter
	// Restart stops the broker and starts it again, on the test's goroutine. nil
	// when there is nothing to restart; the rules about it are skipped then.
	Restart func()
}

// A rule is one obligation.
type rule struct {
	number int
	name   string
	when   func(h Harness, c adapter.Caps) bool
	check  func(e *env)
}

func always(Harness, adapter.Caps) bool             { return true }
func durable(_ Harness, c adapter.Caps) bool        { return c.Durable }
func restart(h Harness, _ adapter.Caps) bool        { return h.Restart != nil }
func durableRestart(h Harness, c adapter.Caps) bool { return h.Restart != nil && c.Durable }

// Run checks every rule that applies to the transport.
func Run(t *testing.T, h Harness) {
	t.Helper()
	probe := h.Open(t, adapter.Config{App: "probe", Instance: "0"})
	caps := probe.Caps()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules() {
		t.Run(fmt.Sprintf("%02d %s", r.number, r.name), func(t *testing.T) {
			if !r.when(h, caps) {
				t.Skip("the transport does not offer it")
			}
			r.check(&env{T: t, h: h, rule: r, caps: caps})
		})
	}
}

func rules() []rule {
	return slices.Concat(liveRules(), useRules(), durableRules(), restartRules(), deadRules(), laterRules(), asyncRules(), replayRules(), requestRules())
}

// patience turns a hang into a failure; it is far above what anything needs.
const patience = 20 * time.Second

// env is one run of one rule. Its topics, app and durable route are its own.
type env struct {
	*testing.T
	h    Harness
	rule rule
	caps adapter.Caps
	n    int
}

func (e *env) failf(format string, v ...any) {
	e.Helper()
	e.Fatalf("rule %d: %s: %s", e.rule.number, e.rule.name, fmt.Sprintf(format, v...))
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.failf("%v", err)
	}
}

// topic makes a topic or pattern that no other rule uses.
func (e *env) topic(s string) string { return fmt.Sprintf("rule%d.%s", e.rule.number, s) }

// ctx ends with the test, or when patience does.
func (e *env) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	e.Cleanup(cancel)
	return ctx
}

// open opens one more process of the rule's app. durable topics are declared
// where the transport has them.
func (e *env) open() adapter.Adapter {
	e.Helper()
	e.n++
	cfg := adapter.Config{App: fmt.Sprintf("rule%d", e.rule.number), Instance: fmt.Sprint(e.n)}
	if e.caps.Durable {
		cfg.Durable = []string{e.topic("durable.>")}
	}
	a := e.h.Open(e.T, cfg)
	e.Cleanup(func() {
		if err := a.Close(); err != nil {
			e.Errorf("rule %d: Close: %v", e.rule.number, err)
		}
	})
	return a
}

func (e *env) subscribe(a adapter.Adapter, s adapter.Spec) adapter.Subscription {
	e.Helper()
	sub, err := a.Subscribe(e.ctx(), s)
	e.must(err)
	return sub
}

// message makes a message whose body is its id.
func message(topic, id string) *adapter.Message {
	return &adapter.Message{ID: id, Topic: topic, Source: "//adaptertest/1", Time: time.Now(), ContentType: "text/plain", Data: []byte(id)}
}

func (e *env) publish(a adapter.Adapter, c adapter.Class, topic string, ids ...string) {
	e.Helper()
	for _, id := range ids {
		e.must(a.Publish(e.ctx(), message(topic, id), c))
	}
}

func (e *env) close(subs ...adapter.Subscription) {
	e.Helper()
	for _, s := range subs {
		e.must(s.Close(e.ctx()))
	}
}

// An inbox collects deliveries.
type inbox struct {
	mu      sync.Mutex
	got     []adapter.Delivery
	changed chan struct{}
	then    func(adapter.Delivery) // after it was collected
}

func newInbox() *inbox { return &inbox{changed: make(chan struct{})} }

// acking settles everything it gets.
func acking() *inbox {
	in := newInbox()
	in.then = func(d adapter.Delivery) { d.Settle.Ack(func(error) {}) }
	return in
}

func (in *inbox) deliver(d adapter.Delivery) {
	in.mu.Lock()
	in.got = append(in.got, d)
	close(in.changed)
	in.changed = make(chan struct{})
	in.mu.Unlock()
	if in.then != nil {
		in.then(d)
	}
}

func (in *inbox) state() ([]adapter.Delivery, <-chan struct{}) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.got, in.changed
}

// wait returns the deliveries once there are n.
func (e *env) wait(in *inbox, n int) []adapter.Delivery {
	e.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		got, changed := in.state()
		if len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-timeout.C:
			e.failf("%d of %d events arrived in %v", len(got), n, patience)
		}
	}
}

// once fails unless each id was delivered exactly once.
func (e *env) once(in *inbox, ids []string) {
	e.Helper()
	got, _ := in.state()
	count := map[string]int{}
	for _, d := range got {
		count[d.ID]++
	}
	lost, doubled := 0, 0
	for _, id := range ids {
		switch n := count[id]; {
		case n == 0:
			lost++
		case n > 1:
			doubled++
		}
		delete(count, id)
	}
	if lost > 0 || doubled > 0 || len(count) > 0 {
		e.failf("of %d events %d were lost, %d doubled, %d came from nowhere", len(ids), lost, doubled, len(count))
	}
}

// inOrder fails unless the deliveries are exactly ids, in their order.
func (e *env) inOrder(got []adapter.Delivery, ids []string) {
	e.Helper()
	if len(got) != len(ids) {
		e.failf("%d events arrived, want %d", len(got), len(ids))
	}
	for i, d := range got {
		if d.ID != ids[i] {
			e.failf("place %d holds event %q, want %q", i, d.ID, ids[i])
		}
	}
}

func numbered(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%05d", prefix, i)
	}
	return ids
}

// receive waits for a value.
func receive[T any](e *env, ch <-chan T, what string) T {
	e.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		e.failf("%s: nothing in %v", what, patience)
		panic("not reached")
	}
}
