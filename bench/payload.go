package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// name is the topic of every row, order what is published on it.
const name = "order.placed"

type order struct {
	id   string
	sum  int64
	seen int // deliveries; of handlers that run on the publisher's goroutine
}

// Type makes an order an event of kelindar/event.
func (*order) Type() uint32 { return 1 }

func newOrder() *order { return &order{id: "o-1", sum: 4200} }

// handle is what every handler calls. It is not inlined, as a real one would
// not be, and counts, so that nothing can be left out.
//
//go:noinline
func handle(o *order) { o.seen++ }

// work is what is instrumented.
//
//go:noinline
func work(context.Context) error { return nil }

// inline makes an op of a loop that publishes o n times to subscribers which
// call handle before publishing returns.
func inline(o *order, subs int, publish func(n int) error) func(int) error {
	return func(n int) error {
		before := o.seen
		if err := publish(n); err != nil {
			return err
		}
		if got := o.seen - before; got != n*subs {
			return fmt.Errorf("%d deliveries, not %d, of %d events to %d subscribers", got, n*subs, n, subs)
		}
		return nil
	}
}

// A crowd is subscribers on goroutines of their own.
type crowd struct {
	members []*member
	arrived chan struct{}
	over    atomic.Bool // somebody got more than was published
}

// A member counts what one subscriber has handled. The publisher sets target
// before it publishes; everything else is the subscriber's alone.
type member struct {
	crowd  *crowd
	n      int
	target int
	_      [104]byte // members must not share cache lines
}

func newCrowd(subs int) *crowd {
	c := &crowd{arrived: make(chan struct{}, subs)}
	for range subs {
		c.members = append(c.members, &member{crowd: c})
	}
	return c
}

// handle is what every handler of a crowd calls.
//
//go:noinline
func (m *member) handle(*order) {
	if m.n++; m.n >= m.target {
		m.reached()
	}
}

func (m *member) reached() {
	if m.n > m.target {
		m.crowd.over.Store(true)
		return
	}
	m.crowd.arrived <- struct{}{}
}

// deliveryLimit is far above what a busy machine needs: it turns a lost event
// into a failure.
const deliveryLimit = 30 * time.Second

// through makes an op of a loop that publishes n times to the crowd: it ends
// when each member has handled all.
func (c *crowd) through(publish func(n int) error) func(int) error {
	return func(n int) error {
		for _, m := range c.members {
			m.target += n
		}
		if err := publish(n); err != nil {
			return err
		}
		late := time.NewTimer(deliveryLimit)
		defer late.Stop()
		for i := range c.members {
			select {
			case <-c.arrived:
			case <-late.C:
				return fmt.Errorf("after %v only %d of %d subscribers have handled all of %d events", deliveryLimit, i, len(c.members), n)
			}
		}
		if c.over.Load() {
			return fmt.Errorf("a subscriber was given more than the %d events that were published", n)
		}
		return nil
	}
}
