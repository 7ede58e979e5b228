package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/asaskevich/EventBus"
	"github.com/jilio/ebu"
	"github.com/maniartech/signals"
	"github.com/mustafaturan/bus/v3"
	"github.com/simonfxr/pubsub"
)

// inlinePeers are the buses that call handlers on the publisher's goroutine.
// gookit/event is not among them: never near the fastest, and it brings further
// modules with it.
func inlinePeers(subs int) []candidate {
	peers := []candidate{}
	add := func(label string, build func(o *order) (publish func(n int) error, err error)) {
		peers = append(peers, candidate{label, peer, func() (*rig, error) {
			o := newOrder()
			publish, err := build(o)
			return &rig{op: inline(o, subs, publish)}, err
		}})
	}
	add("maniartech/signals Sync", func(o *order) (func(int) error, error) {
		s, ctx := signals.NewSync[*order](), context.Background()
		for range subs {
			s.AddListener(func(_ context.Context, o *order) { handle(o) })
		}
		return func(n int) error {
			for range n {
				s.Emit(ctx, o)
			}
			return nil
		}, nil
	})
	add(standInName, func(o *order) (func(int) error, error) {
		b := &standIn{}
		for range subs {
			b.subscribe(1, func(o *order) { handle(o) })
		}
		return func(n int) error {
			for range n {
				b.publish(1, o)
			}
			return nil
		}, nil
	})
	add("jilio/ebu (isolates panics)", func(o *order) (func(int) error, error) {
		b := eventbus.New()
		for range subs {
			if err := eventbus.Subscribe(b, func(o *order) { handle(o) }); err != nil {
				return nil, err
			}
		}
		return func(n int) error {
			for range n {
				eventbus.Publish(b, o)
			}
			return nil
		}, nil
	})
	add("simonfxr/pubsub", func(o *order) (func(int) error, error) {
		b := pubsub.NewBus()
		for range subs {
			b.Subscribe(name, func(o *order) { handle(o) })
		}
		return func(n int) error {
			for range n {
				b.Publish(name, o)
			}
			return nil
		}, nil
	})
	add("mustafaturan/bus", func(o *order) (func(int) error, error) {
		b, err := bus.NewBus(constantID{})
		if err != nil {
			return nil, err
		}
		b.RegisterTopics(name)
		for i := range subs {
			b.RegisterHandler(string(rune('A'+i)), bus.Handler{Matcher: "^" + name + "$",
				Handle: func(_ context.Context, e bus.Event) { handle(e.Data.(*order)) }})
		}
		ctx := context.Background()
		return func(n int) error {
			for range n {
				if err := b.Emit(ctx, name, o); err != nil {
					return err
				}
			}
			return nil
		}, nil
	})
	add("asaskevich/EventBus", func(o *order) (func(int) error, error) {
		b := EventBus.New()
		var errs []error
		for range subs {
			errs = append(errs, b.Subscribe(name, func(o *order) { handle(o) }))
		}
		return func(n int) error {
			for range n {
				b.Publish(name, o)
			}
			return nil
		}, errors.Join(errs...)
	})
	return peers
}

// constantID spares mustafaturan/bus the making of ids.
type constantID struct{}

func (constantID) Generate() string { return "1" }

const (
	standInName = "as webmafia/ebus *"
	standInNote = "* stands in for webmafia/ebus, which this module does not depend on: written for this table from its structure alone,\n" +
		"  a sync.Map from a number to a lock-free list of functions. It counts as a peer."
)

// standIn does what the fastest peer with many subscribers does, and no more.
type standIn struct{ topics sync.Map }

type standInKey struct{ event, typ uint32 }

type standInNode struct {
	f    func(*order)
	next atomic.Pointer[standInNode]
}

func (b *standIn) subscribe(event uint32, f func(*order)) {
	head := &standInNode{}
	if v, loaded := b.topics.LoadOrStore(standInKey{event, 1}, head); loaded {
		head = v.(*standInNode)
	}
	added := &standInNode{f: f}
	for {
		next := head.next.Load()
		added.next.Store(next)
		if head.next.CompareAndSwap(next, added) {
			return
		}
	}
}

func (b *standIn) publish(event uint32, o *order) {
	v, ok := b.topics.Load(standInKey{event, 1})
	if !ok {
		return
	}
	for n := v.(*standInNode).next.Load(); n != nil; n = n.next.Load() {
		n.f(o)
	}
}
