package main

import (
	"context"
	"errors"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
)

// placed is the typed topic; rows use it on buses of their own.
var placed = tidings.NewTopic[*order](name)

func newBus() (*tidings.Bus, error) { return tidings.New(tidings.Options{App: "bench"}) }

var inlineOptions = &tidings.SubscribeOptions{Inline: true}

func typedHandler() func(context.Context, tidings.Event, *order) error {
	return func(_ context.Context, _ tidings.Event, o *order) error { handle(o); return nil }
}

// typed makes a candidate of a typed topic with inline subscribers.
func typed(label string, k kind, subs int, op func(t tidings.Topic[*order], o *order) func(n int) error) candidate {
	return candidate{label, k, func() (*rig, error) {
		b, err := newBus()
		if err != nil {
			return nil, err
		}
		t, o := placed.On(b), newOrder()
		for range subs {
			if _, err := t.Subscribe(context.Background(), typedHandler(), inlineOptions); err != nil {
				return nil, errors.Join(err, b.Close())
			}
		}
		return &rig{op: inline(o, subs, op(t, o)), close: b.Close}, nil
	}}
}

func publishTyped(t tidings.Topic[*order], o *order) func(int) error {
	ctx := context.Background()
	return func(n int) error {
		for range n {
			if err := t.Publish(ctx, o); err != nil {
				return err
			}
		}
		return nil
	}
}

func instrumentTyped(t tidings.Topic[*order], o *order) func(int) error {
	ctx, fn := context.Background(), work
	return func(n int) error {
		for range n {
			if err := t.Instrument(ctx, o, fn); err != nil {
				return err
			}
		}
		return nil
	}
}

// byName makes a candidate of publishing by name, among 100 known topics, to
// inline subscribers of a pattern; none if it is empty.
func byName(label string, k kind, pattern string) candidate {
	return candidate{label, k, func() (*rig, error) {
		b, err := newBus()
		if err != nil {
			return nil, err
		}
		ctx, o, subs := context.Background(), newOrder(), 0
		for _, n := range hundred() {
			if err := b.Publish(ctx, n, o); err != nil {
				return nil, errors.Join(err, b.Close())
			}
		}
		if pattern != "" {
			subs = 1
			h := typedHandler()
			_, err := b.Subscribe(ctx, pattern, func(ctx context.Context, e tidings.Event) error {
				return h(ctx, e, e.Payload().(*order))
			}, inlineOptions)
			if err != nil {
				return nil, errors.Join(err, b.Close())
			}
		}
		return &rig{close: b.Close, op: inline(o, subs, func(n int) error {
			for range n {
				if err := b.Publish(ctx, name, o); err != nil {
					return err
				}
			}
			return nil
		})}, nil
	}}
}

// drainLimit bounds what ends a bus with queues; they are empty by then.
const drainLimit = 30 * time.Second

// oursQueued is a typed topic with queued subscribers.
func oursQueued(subs int) candidate {
	return candidate{"tidings", ours, func() (*rig, error) {
		b, err := newBus()
		if err != nil {
			return nil, err
		}
		t, o, c := placed.On(b), newOrder(), newCrowd(subs)
		var all []*tidings.Subscription
		end := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
			defer cancel()
			err := b.Drain(ctx)
			for _, s := range all {
				<-s.Done()
			}
			return err
		}
		for _, m := range c.members {
			s, err := t.Subscribe(context.Background(), func(_ context.Context, _ tidings.Event, o *order) error {
				m.handle(o)
				return nil
			}, &tidings.SubscribeOptions{Queue: 1024})
			if err != nil {
				return nil, errors.Join(err, end())
			}
			all = append(all, s)
		}
		return &rig{op: c.through(publishTyped(t, o)), close: end}, nil
	}}
}

// watched is publishing to one inline subscriber while another goroutine reads
// snapshots without a pause.
var watched = candidate{"tidings", ours, func() (*rig, error) {
	b, err := newBus()
	if err != nil {
		return nil, err
	}
	t, o := placed.On(b), newOrder()
	if _, err := t.Subscribe(context.Background(), typedHandler(), inlineOptions); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &rig{noisy: true, close: b.Close, op: inline(o, 1, publishTyped(t, o)), around: func(run func() error) error {
		reading := make(chan struct{})
		reader := loop.Go(func(ctx context.Context) {
			d := b.Debugger()
			_ = d.Snapshot()
			close(reading)
			for ctx.Err() == nil {
				_ = d.Snapshot()
			}
		})
		defer reader.StopAndWait()
		<-reading
		return run()
	}}, nil
}}
