package tidings_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
)

// What is said to allocate nothing allocates nothing, with the panic guard, the
// counters and the Debugger in it.
func TestAllocations(t *testing.T) {
	b := newBus(t, tidings.Options{})
	typed := func(name string, o ...*tidings.SubscribeOptions) tidings.Topic[*order] {
		topic := tidings.NewTopic[*order](name).On(b)
		for _, o := range o {
			if _, err := topic.Subscribe(ctx, func(context.Context, tidings.Event, *order) error { return nil }, o); err != nil {
				t.Fatal(err)
			}
		}
		return topic
	}
	inline := &tidings.SubscribeOptions{Inline: true}
	nobody, one, three := typed("alloc.nobody"), typed("alloc.one", inline), typed("alloc.three", inline, inline, inline)
	queued, both := typed("alloc.queued", nil), typed("alloc.both", nil, nil, inline)
	subscribe(t, b, "wild.*", func(_ context.Context, e tidings.Event) error { e.Payload(); return nil }, inline)
	shared := typed("alloc.shared", nil, nil, nil, nil, nil, nil, nil, nil)
	asks := typed("alloc.asks")
	subscribe(t, b, "alloc.asks", func(_ context.Context, e tidings.Event) error { e.Time(); e.Duration(); return nil }, inline)
	o, fn := &order{1}, func(context.Context) error { return nil }
	with := context.WithValue(ctx, new(int), 1)
	for name, f := range map[string]func(){
		"publish typed, nobody":          func() { _ = nobody.Publish(ctx, o) },
		"publish by name, nobody":        func() { _ = b.Publish(ctx, "alloc.nobody", o) },
		"instrument, nobody":             func() { _ = nobody.Instrument(ctx, o, fn) },
		"instrument by name, nobody":     func() { _ = b.Instrument(ctx, "alloc.nobody", o, fn) },
		"publish, 1 inline":              func() { _ = one.Publish(ctx, o) },
		"publish, 3 inline":              func() { _ = three.Publish(ctx, o) },
		"publish by name, 1 by wildcard": func() { _ = b.Publish(ctx, "wild.x", o) },
		"instrument, 1 inline":           func() { _ = one.Instrument(ctx, o, fn) },
		"instrument, times asked":        func() { _ = asks.Instrument(ctx, o, fn) },
		"publish, times asked":           func() { _ = asks.Publish(ctx, o) },
		"publish, 1 queued":              func() { _ = queued.Publish(ctx, o) },
		"publish, 2 queued and 1 inline": func() { _ = both.Publish(ctx, o) },
		"publish, 8 queued in one ring":  func() { _ = shared.Publish(ctx, o) },
		"publish by name, 8 queued":      func() { _ = b.Publish(ctx, "alloc.shared", o) },
		"publish, 1 inline, a context":   func() { _ = one.Publish(with, o) },
		"Listening":                      func() { b.Listening("wild.x") },
	} {
		f() // what is made once
		if n := testing.AllocsPerRun(2000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	drain(t, b)
}

// Topic.Publish is inlined: to nobody it costs an atomic load. The compiler says
// so, or this claim is wrong.
func TestTypedPublishIsInlined(t *testing.T) {
	cmd := exec.Command("go", "test", "-c", "-o", "/dev/null", "-gcflags=-m", ".")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "inlining call to tidings.Topic[go.shape.*uint8].Publish") {
		t.Error("Topic.Publish is not inlined into its callers any more")
	}
}
