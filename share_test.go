package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// Of several subscriptions that read one ring, one whose handler hangs holds up
// nobody: the others have each event at once, whatever the publisher has to wait for.
func TestASlowReaderHoldsUpNobody(t *testing.T) {
	const queue, events = 32, 40
	for name, c := range map[string]struct {
		policy tidings.Overflow
		errs   int
		after  time.Duration // the publisher's, at least
	}{
		"Block":      {tidings.Block, events - queue, 8 * time.Second},
		"DropNewest": {tidings.DropNewest, 0, 0},
		"Fail":       {tidings.Fail, events - queue, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, tidings.Options{})
				release, others := make(chan struct{}), [2]atomic.Int64{}
				had := func(n int) bool { return others[0].Load() == int64(n) && others[1].Load() == int64(n) }
				o := &tidings.SubscribeOptions{Queue: queue, Overflow: c.policy}
				if c.policy == tidings.Block {
					o.BlockTimeout = time.Second
				}
				slow := subscribe(t, b, "x", func(context.Context, tidings.Event) error { <-release; return nil }, o)
				for i := range others {
					subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
						if n := int(others[i].Add(1)) - 1; n != e.Payload() {
							t.Errorf("event %v, want %d", e.Payload(), n)
						}
						return nil
					}, o)
				}
				start, errs := time.Now(), 0
				for i := range events {
					early := time.AfterFunc(100*time.Millisecond, func() {
						if !had(i + 1) {
							t.Errorf("while event %d waits for the slow one, the others had not all", i)
						}
					})
					err := b.Publish(ctx, "x", i)
					early.Stop()
					var full *tidings.Error
					if err != nil && (!errors.Is(err, tidings.ErrOverflow) || !errors.As(err, &full) || !full.Accepted) {
						t.Errorf("event %d: %v, accepted %v", i, err, full.Accepted)
					}
					if err != nil {
						errs++
					}
					synctest.Wait()
				}
				took := time.Since(start)
				if errs != c.errs || took < c.after || (took > c.after && (c.after == 0 || took > c.after+50*time.Millisecond)) {
					t.Errorf("%d errors after %v; want %d after %v", errs, took, c.errs, c.after)
				}
				if !had(events) {
					t.Errorf("the others had %d and %d of %d", others[0].Load(), others[1].Load(), events)
				}
				snap := b.Debugger().Snapshot()
				if d := snap.Subscriptions[0].Dropped; d != events-queue || snap.Dropped != d {
					t.Errorf("%d drops counted, %d in all; want %d", d, snap.Dropped, events-queue)
				}
				close(release)
				drain(t, b)
				if got := slow.Err(); got != nil {
					t.Error(got)
				}
			})
		})
	}
}

// A publisher that is only faster than its readers waits for them, and they stay
// together.
func TestReadersStayTogether(t *testing.T) {
	b := newBus(t, tidings.Options{})
	topic := tidings.NewTopic[int]("share.together").On(b)
	var subs []*tidings.Subscription
	var got [4]int
	for i := range got {
		s, err := topic.Subscribe(ctx, func(_ context.Context, _ tidings.Event, n int) error {
			if got[i] != n {
				t.Errorf("subscription %d: event %d, want %d", i, n, got[i])
			}
			got[i]++
			return nil
		}, &tidings.SubscribeOptions{Queue: 64})
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, s)
	}
	const events = 20_000
	for i := range events {
		if err := topic.Publish(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range subs[1:] {
		if !tidings.ReadOneRing(subs[0], s) {
			t.Error("a subscription has a ring of its own")
		}
	}
	drain(t, b)
	if got != [4]int{events, events, events, events} {
		t.Errorf("got %v of %d", got, events)
	}
}

// follower checks one subscription that comes while others publish: from its first
// event of a publisher on, none is missing and none comes twice.
type follower struct{ next map[int]int }

func (f *follower) handle(e numbered) error {
	if want, known := f.next[e.publisher]; known && want != e.n {
		return fmt.Errorf("publisher %d: event %d, want %d", e.publisher, e.n, want)
	}
	f.next[e.publisher] = e.n + 1
	return nil
}

// Subscriptions come, go and fall behind while others publish, by a type and by
// name: whatever rings they read meanwhile, each misses nothing and gets nothing
// twice between its first and its last event, and those that stay get everything.
func TestReadersComeAndGo(t *testing.T) {
	const publishers, events, visitors = 3, 6000, 4
	var failures errs
	b := newBus(t, tidings.Options{OnError: failures.add})
	topic := tidings.NewTopic[numbered]("share.come").On(b)
	o := &tidings.SubscribeOptions{Queue: 64, BlockTimeout: time.Minute}
	join := func(f *follower) *tidings.Subscription {
		s, err := topic.Subscribe(ctx, func(_ context.Context, _ tidings.Event, n numbered) error { return f.handle(n) }, o)
		if err != nil {
			t.Error(err)
		}
		return s
	}
	var stable []*follower
	for range 3 {
		f := &follower{map[int]int{}}
		join(f)
		stable = append(stable, f)
	}
	subscribe(t, b, "share.*", func(context.Context, tidings.Event) error { return nil }, o) // a second ring
	subscribe(t, b, "share.>", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Overflow: tidings.DropOldest})

	done := make(chan struct{})
	var publish, visit sync.WaitGroup
	for p := range publishers {
		publish.Go(func() {
			for n := range events {
				e := numbered{p, n}
				var err error
				switch {
				case n%512 == 511: // the slow way, with what is there otherwise
					err = b.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "share.come", Payload: e}))
				case n%2 == 0:
					err = topic.Publish(ctx, e)
				default:
					err = b.Publish(ctx, "share.come", e)
				}
				if err != nil {
					t.Errorf("publisher %d, event %d: %v", p, n, err)
				}
			}
		})
	}
	for v := range visitors {
		visit.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				f := &follower{map[int]int{}}
				s := join(f)
				for range 50 {
					_ = b.Listening("share.come")
				}
				if (i+v)%2 == 0 {
					s.Stop()
				} else if err := s.Drain(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publish.Wait()
	close(done)
	visit.Wait()
	drain(t, b)
	for i, f := range stable {
		for p := range publishers {
			if f.next[p] != events {
				t.Errorf("subscription %d had %d of publisher %d, want %d", i, f.next[p], p, events)
			}
		}
	}
	if all := failures.list(); len(all) > 0 {
		t.Errorf("%d handlers failed; the first: %v", len(all), all[0])
	}
}

// Whoever is left out of an event must not get it by way of a ring.
func TestARequestSkipsWhoAsksAmongReaders(t *testing.T) {
	b := newBus(t, tidings.Options{})
	asked, answered := 0, 0
	subscribe(t, b, "share.ask", func(ctx context.Context, e tidings.Event) error {
		if asked++; asked > 1 {
			return errors.New("asked itself")
		}
		reply, err := b.Request(ctx, "share.ask", "again")
		if err == nil && reply.Payload() != "yes" {
			err = fmt.Errorf("reply %v", reply.Payload())
		}
		if err != nil {
			t.Error(err)
		}
		return nil
	}, nil)
	subscribe(t, b, "share.ask", func(ctx context.Context, e tidings.Event) error {
		if answered++; e.Payload() == "again" {
			return tidings.Reply(ctx, "yes")
		}
		return nil
	}, nil)
	if err := b.Publish(ctx, "share.ask", "first"); err != nil {
		t.Fatal(err)
	}
	if err := b.Debugger().Idle(ctx); err != nil {
		t.Fatal(err)
	}
	drain(t, b)
	if asked != 1 || answered != 2 {
		t.Errorf("asked %d times and answered %d, want 1 and 2", asked, answered)
	}
}

// A handler that publishes into its own full queue is told at once, and others that
// read the same ring get the event.
func TestAHandlerThatFillsTheRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, tidings.Options{})
		o := &tidings.SubscribeOptions{Queue: 32}
		others, failed := 0, 0
		subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error {
			for i := range 40 {
				if e.Payload() == nil && b.Publish(context.Background(), "x", i) != nil {
					failed++
				}
			}
			return nil
		}, o)
		subscribe(t, b, "x", func(context.Context, tidings.Event) error { others++; return nil }, o)
		start := time.Now()
		if err := b.Publish(ctx, "x", nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if others != 41 || failed != 9 || time.Since(start) > 0 {
			t.Errorf("the other had %d of 41; %d publishes failed, want 9; after %v", others, failed, time.Since(start))
		}
		drain(t, b)
	})
}
