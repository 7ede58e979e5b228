package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/kelindar/event"
	messagebus "github.com/vardius/message-bus"

	"github.com/tidings-go/tidings/internal/loop"
)

// queuedPeers are the buses that call handlers on goroutines of their own, one
// event after the other, and hold the publisher back when a queue is full.
// Those that start a goroutine for each event are left out: what they cost is
// decided by how many the benchmark lets them start.
func queuedPeers(subs int) []candidate {
	return []candidate{
		{"kelindar/event", peer, func() (*rig, error) { return kelindar(subs) }},
		{"vardius/message-bus", peer, func() (*rig, error) { return vardius(subs) }},
		{"watermill gochannel, blocking", peer, func() (*rig, error) { return gochan(subs) }},
	}
}

// kelindar hands over in batches, at a tick of 500 us.
func kelindar(subs int) (*rig, error) {
	d, o, c := event.NewDispatcher(), newOrder(), newCrowd(subs)
	var cancels []context.CancelFunc
	for _, m := range c.members {
		cancels = append(cancels, event.Subscribe(d, func(o *order) { m.handle(o) }))
	}
	return &rig{
		op: c.through(func(n int) error {
			for range n {
				event.Publish(d, o)
			}
			return nil
		}),
		close: func() error {
			left := runtime.NumGoroutine() - subs
			for _, cancel := range cancels {
				cancel()
			}
			// Its subscribers hear of the end at a tick, and there is none after Close.
			for range 1000 {
				if runtime.NumGoroutine() <= left {
					break
				}
				time.Sleep(time.Millisecond)
			}
			return d.Close()
		},
	}, nil
}

func vardius(subs int) (*rig, error) {
	b, o, c := messagebus.New(1024), newOrder(), newCrowd(subs)
	for _, m := range c.members {
		if err := b.Subscribe(name, func(o *order) { m.handle(o) }); err != nil {
			return nil, err
		}
	}
	return &rig{
		op: c.through(func(n int) error {
			for range n {
				b.Publish(name, o)
			}
			return nil
		}),
		close: func() error { b.Close(name); return nil },
	}, nil
}

// gochan blocks until the subscribers have acknowledged: the mode that keeps
// order and bounds what is under way, and the faster one on one core. The
// payload needs no encoding here.
func gochan(subs int) (*rig, error) {
	p := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 1024, BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	o, c := newOrder(), newCrowd(subs)
	var loops []*loop.Loop
	end := func() error {
		err := p.Close()
		for _, l := range loops {
			<-l.Done()
		}
		return err
	}
	for _, m := range c.members {
		ch, err := p.Subscribe(context.Background(), name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe: %w", err), end())
		}
		loops = append(loops, loop.Go(func(context.Context) {
			for msg := range ch {
				m.handle(o)
				msg.Ack()
			}
		}))
	}
	payload := []byte("o-1")
	return &rig{close: end, op: c.through(func(n int) error {
		for range n {
			if err := p.Publish(name, message.NewMessage(watermill.NewUUID(), payload)); err != nil {
				return err
			}
		}
		return nil
	})}, nil
}
