package tidings_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// numbered is what publishers of the stress test send: who, and how many before.
type numbered struct{ publisher, n int }

// sequence checks that the events of each publisher come in order, none lost and
// none twice. A subscription with one worker calls it alone; others hold its lock.
type sequence struct {
	name string
	mu   sync.Mutex
	next map[int]int
	errs []string
}

func (q *sequence) handle(_ context.Context, e tidings.Event) error {
	p, ok := e.Payload().(numbered)
	if !ok {
		return nil // a request, or of those who come and go
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if want := q.next[p.publisher]; p.n != want && len(q.errs) < 10 {
		q.errs = append(q.errs, fmt.Sprintf("%s: publisher %d: event %d, want %d", q.name, p.publisher, p.n, want))
	}
	q.next[p.publisher] = p.n + 1
	return nil
}

// stress is what the actors of TestStress share.
type stress struct {
	t     *testing.T
	bus   *tidings.Bus
	typed []tidings.Topic[numbered]
	end   time.Time
	sent  []int // by publisher
	asked atomic.Int64
}

const (
	stressTopics     = 8
	stressPublishers = 4
	stressTime       = time.Second
)

func stressTopic(i int) string { return fmt.Sprintf("stress.group%d.topic%d", i%2, i) }

// Everything at once: stable subscriptions get each event of each publisher once
// and in order, whatever others do to the bus meanwhile.
func TestStress(t *testing.T) {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	var failures errs
	b := newBus(t, tidings.Options{OnError: failures.add})
	x := &stress{t: t, bus: b, end: time.Now().Add(stressTime), sent: make([]int, stressPublishers)}
	for i := range stressTopics {
		x.typed = append(x.typed, tidings.NewTopic[numbered](stressTopic(i)).On(b))
	}
	stable := x.subscribeStable()
	subscribe(t, b, "stress.ask", func(ctx context.Context, e tidings.Event) error { return tidings.Reply(ctx, e.Payload()) }, nil)

	var wg sync.WaitGroup
	for i := range stressPublishers {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() { x.publish(r, i) })
	}
	for i, act := range []func(*rand.Rand){x.comeAndGo, x.comeAndGo, x.ask, x.look, x.watch} {
		r := rand.New(rand.NewPCG(seed, uint64(100+i)))
		wg.Go(func() {
			for time.Now().Before(x.end) {
				act(r)
			}
		})
	}
	wg.Wait()
	drain(t, b)
	x.check(stable)
	if all := failures.list(); len(all) > 0 {
		t.Errorf("%d errors had no caller; the first: %v", len(all), all[0])
	}
	if x.asked.Load() == 0 {
		t.Error("nothing was asked")
	}
}

// subscribeStable makes those that stay: queued, inline and by key; to all topics
// by wildcards, and to each by its type.
func (x *stress) subscribeStable() (all []*sequence) {
	add := func(name, pattern string, o *tidings.SubscribeOptions) {
		q := &sequence{name: name, next: map[int]int{}}
		subscribe(x.t, x.bus, pattern, q.handle, o)
		all = append(all, q)
	}
	add("queued", "stress.>", nil)
	add("queued, small", "stress.*.*", &tidings.SubscribeOptions{Queue: 16, BlockTimeout: time.Minute})
	add("inline", "stress.>", inline)
	add("with a filter", "stress.>", &tidings.SubscribeOptions{Filter: func(string) bool { return true }})
	add("by key", "stress.>", &tidings.SubscribeOptions{Workers: 4, BlockTimeout: time.Minute, Key: func(e tidings.Event) string {
		p, _ := e.Payload().(numbered)
		return fmt.Sprint(p.publisher)
	}})
	batch := &sequence{name: "batch", next: map[int]int{}}
	if _, err := x.bus.SubscribeBatch(ctx, "stress.>", func(ctx context.Context, events []tidings.Event) error {
		for _, e := range events {
			_ = batch.handle(ctx, e) // nil
		}
		return nil
	}, nil); err != nil {
		x.t.Fatal(err)
	}
	typed := &sequence{name: "typed, one queue for each topic", next: map[int]int{}}
	for _, topic := range x.typed {
		if _, err := topic.Subscribe(ctx, func(ctx context.Context, e tidings.Event, _ numbered) error {
			return typed.handle(ctx, e)
		}, inline); err != nil {
			x.t.Fatal(err)
		}
	}
	return append(all, batch, typed)
}

// publish is one publisher: each event goes by another way and to another topic.
func (x *stress) publish(r *rand.Rand, publisher int) {
	for n := 0; time.Now().Before(x.end); n++ {
		i, p := r.IntN(stressTopics), numbered{publisher, n}
		var err error
		block := func(context.Context) error { return nil }
		switch r.IntN(6) {
		case 0:
			err = x.typed[i].Publish(ctx, p)
		case 1:
			err = x.bus.Instrument(ctx, stressTopic(i), p, block)
		case 2:
			err = x.typed[i].Instrument(ctx, p, block)
		case 3:
			_, span := x.bus.Begin(ctx, stressTopic(i), p)
			span.End(nil)
		default:
			err = x.bus.Publish(ctx, stressTopic(i), p)
		}
		if err != nil {
			x.t.Errorf("publisher %d, event %d: %v", publisher, n, err)
		}
		x.sent[publisher] = n + 1
	}
}

// comeAndGo subscribes to anything in any way, and ends that somehow.
func (x *stress) comeAndGo(r *rand.Rand) {
	topic := r.IntN(stressTopics)
	pattern := []string{stressTopic(topic), "stress.*.*", "stress.group1.*", "*.group0.>", ">", "stress.nobody"}[r.IntN(6)]
	o := []*tidings.SubscribeOptions{nil, inline, {Inline: true, Prepend: true}, {Workers: 2}, {Queue: 2, Overflow: tidings.DropOldest},
		{Inline: true, Start: func(ctx context.Context, _ tidings.Event) context.Context { return ctx }}}[r.IntN(6)]
	var s *tidings.Subscription
	var err error
	if r.IntN(2) == 0 {
		s, err = x.typed[topic].Subscribe(ctx, func(context.Context, tidings.Event, numbered) error { return nil }, o)
	} else {
		s, err = x.bus.Subscribe(ctx, pattern, nothing, o)
	}
	if err != nil {
		x.t.Error(err)
		return
	}
	if r.IntN(2) == 0 {
		runtime.Gosched()
	}
	if r.IntN(2) == 0 {
		s.Stop()
	} else if err := s.Drain(ctx); err != nil {
		x.t.Error(err)
	}
	<-s.Done()
}

func (x *stress) ask(r *rand.Rand) {
	n := r.IntN(1000)
	if answer, err := x.bus.Request(ctx, "stress.ask", n); err != nil || answer.Payload() != n {
		x.t.Errorf("asked %d: %v, %v", n, answer.Payload(), err)
	}
	x.asked.Add(1)
}

func (x *stress) look(r *rand.Rand) {
	_ = x.bus.Listening(stressTopic(r.IntN(2 * stressTopics)))
	if n := len(x.bus.Debugger().Snapshot().Subscriptions); n < 8 {
		x.t.Errorf("a snapshot has %d subscriptions", n)
	}
}

// watch reads some events and goes away.
func (x *stress) watch(r *rand.Rand) {
	until, cancel := context.WithDeadline(ctx, x.end)
	defer cancel()
	events, _, err := x.bus.Debugger().Watch(until, stressTopic(r.IntN(stressTopics)), nil)
	if err != nil {
		x.t.Error(err)
		return
	}
	left := r.IntN(100)
	for range events {
		if left--; left < 0 {
			break
		}
	}
}

func (x *stress) check(stable []*sequence) {
	for _, q := range stable {
		for _, err := range q.errs {
			x.t.Error(err)
		}
		for p, sent := range x.sent {
			if sent < 100 {
				x.t.Errorf("publisher %d sent only %d events", p, sent)
			}
			if q.next[p] != sent {
				x.t.Errorf("%s: publisher %d: handled up to %d of %d", q.name, p, q.next[p], sent)
			}
		}
	}
}

// ActiveSupport::Notifications can deadlock when one thread instruments while
// another subscribes. Here many do both, with blocks inside blocks, to the same
// names and to wildcards over them.
func TestInstrumentingWhileSubscribing(t *testing.T) {
	const depth, each = 4, 300
	b := newBus(t, tidings.Options{})
	names := []string{"nested.a", "nested.b", "nested.c", "nested.d"}
	var ran, seen atomic.Int64
	subscribe(t, b, "nested.*", func(context.Context, tidings.Event) error { seen.Add(1); return nil }, inline)
	var nest func(context.Context, int) error
	nest = func(ctx context.Context, level int) error {
		ran.Add(1)
		if level == 0 {
			return nil
		}
		return b.Instrument(ctx, names[level-1], level, func(ctx context.Context) error { return nest(ctx, level-1) })
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range each {
				if err := nest(ctx, depth); err != nil {
					t.Error(err)
				}
			}
		})
	}
	patterns := append([]string{"nested.*", ">", "*.a"}, names...)
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range each {
				// Inline handlers and Starts that subscribe in the middle of a block.
				s, err := b.Subscribe(ctx, patterns[r.IntN(len(patterns))], func(ctx context.Context, e tidings.Event) error {
					in, err := b.Subscribe(ctx, e.Topic(), nothing, inline)
					if err == nil {
						in.Stop()
					}
					return err
				}, &tidings.SubscribeOptions{Inline: true, Start: func(ctx context.Context, e tidings.Event) context.Context {
					if in, err := b.Subscribe(ctx, e.Topic(), nothing, inline); err == nil {
						in.Stop()
					}
					return ctx
				}})
				if err != nil {
					t.Error(err)
					continue
				}
				runtime.Gosched()
				s.Stop()
			}
		})
	}
	wg.Wait()
	drain(t, b)
	if want := int64(4 * each * depth); seen.Load() != want || ran.Load() != want+4*each {
		t.Errorf("%d blocks ran, %d events came; want %d and %d", ran.Load(), seen.Load(), want+4*each, want)
	}
}

// heap is what lives after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first one's finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// ActiveSupport::Notifications keeps 169 bytes for each name ever published, for
// ever: names with ids in them are a leak.
func TestTopicsNobodySubscribesToTakeNoMemory(t *testing.T) {
	const railsKeeps = 169
	names := scaled(200_000)
	b := newBus(t, tidings.Options{})
	subscribe(t, b, "elsewhere.>", nothing, nil)
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			if err := b.Publish(ctx, fmt.Sprintf("user.%d.seen", i), i); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(0, 10_000) // what it may remember, it remembers now
	before := heap()
	publish(10_000, 10_000+names)
	grown := heap() - before
	if grown > int64(names*railsKeeps/4) {
		t.Errorf("the heap has grown by %d bytes: %d for each name", grown, grown/int64(names))
	}
	runtime.KeepAlive(b)
}

// effort is what n subscriptions cost each, to make and to stop: bytes allocated,
// which unlike time do not depend on the machine. What is copied for each shows
// here; what is only looked at does not.
func effort(t *testing.T, n int, pattern func(int) string, o *tidings.SubscribeOptions, attach bool) float64 {
	t.Helper()
	b := newBus(t, tidings.Options{})
	if attach {
		if err := b.Attach(ctx, fmt.Sprintf("mem:%s-%d", t.Name(), n)); err != nil {
			t.Fatal(err)
		}
	}
	_ = b.Publish(ctx, "many.x0", 1) // a topic that is known has views to keep up
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	subs := make([]*tidings.Subscription, n)
	for i := range subs {
		subs[i] = subscribe(t, b, pattern(i), nothing, o)
	}
	if !b.Listening("many.x0") {
		t.Error("nobody listens")
	}
	for _, s := range subs {
		s.Stop()
	}
	for _, s := range subs {
		<-s.Done()
	}
	runtime.ReadMemStats(&after)
	if !attach && b.Listening("many.x0") {
		t.Error("somebody listens after all have stopped")
	}
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
}

// scaled is n, or less under the race detector, which makes all this ten times
// slower and finds nothing here that TestStress does not.
func scaled(n int) int {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return n / 10
	}
	return n
}

// A hundred thousand subscriptions cost ten times what ten thousand do.
func TestManySubscriptionsAreNotQuadratic(t *testing.T) {
	distinct := func(i int) string { return fmt.Sprintf("many.x%d", i) }
	same := func(int) string { return "many.x0" }
	wild := func(i int) string { return fmt.Sprintf("*.x%d", i) }
	for name, c := range map[string]struct {
		n       int
		pattern func(int) string
		o       *tidings.SubscribeOptions
		attach  bool
	}{
		"distinct patterns":           {100_000, distinct, inline, false},
		"the same pattern":            {100_000, same, inline, false},
		"wildcards":                   {20_000, wild, inline, false},
		"queued":                      {10_000, distinct, nil, false},
		"attached, distinct patterns": {5_000, distinct, inline, true},
		"attached, the same pattern":  {5_000, same, inline, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := scaled(c.n)
			few, many := effort(t, n/10, c.pattern, c.o, c.attach), effort(t, n, c.pattern, c.o, c.attach)
			if many > 2*few {
				t.Errorf("each of %d costs %.0f bytes, each of %d costs %.0f", n/10, few, n, many)
			}
		})
	}
}
