package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// bare makes a candidate of a loop alone.
func bare(name string, k kind, build func() func(n int)) candidate {
	return candidate{name, k, func() (*rig, error) {
		f := build()
		return &rig{op: func(n int) error { f(n); return nil }}, nil
	}}
}

// Results that nobody reads go here, lest the compiler leave their making out.
var sink atomic.Int64

var floorCall = bare("function call", floor, func() func(int) {
	o := newOrder()
	return func(n int) {
		for range n {
			handle(o)
		}
	}
})

var floorWork = bare("function value call", floor, func() func(int) {
	ctx, fn := context.Background(), work
	return func(n int) {
		for range n {
			_ = fn(ctx)
		}
	}
})

var floorLoad = bare("atomic pointer load", floor, func() func(int) {
	var p atomic.Pointer[order]
	return func(n int) {
		found := 0
		for range n {
			if p.Load() != nil {
				found++
			}
		}
		sink.Store(int64(found))
	}
})

var floorMutex = bare("mutex lock and unlock", floor, func() func(int) {
	var mu sync.Mutex
	held := 0
	return func(n int) {
		for range n {
			mu.Lock()
			held++
			mu.Unlock()
		}
	}
})

var floorAdd = bare("shared atomic add", floor, func() func(int) {
	var c atomic.Int64
	return func(n int) {
		for range n {
			c.Add(1)
		}
	}
})

// hundred is the names that a bus by names knows; one of them is the topic's.
// The strings are copies: a look-up must compare them.
func hundred() []string {
	names := []string{strings.Clone(name)}
	for i := range 99 {
		names = append(names, fmt.Sprintf("order.kind%02d", i))
	}
	return names
}

var floorLookup = bare("map lookup among 100 names", floor, func() func(int) {
	known := map[string]*order{}
	for _, n := range hundred() {
		known[n] = newOrder()
	}
	return func(n int) {
		found := 0
		for range n {
			if known[name] != nil {
				found++
			}
		}
		sink.Store(int64(found))
	}
})

var floorSend = bare("channel send and receive, same goroutine", floor, func() func(int) {
	c, o := make(chan *order, 1024), newOrder()
	return func(n int) {
		for range n {
			c <- o
			<-c
		}
	}
})

var floorNow = bare("time.Now", floor, func() func(int) {
	return func(n int) {
		var last time.Time
		for range n {
			last = time.Now()
		}
		sink.Store(last.UnixNano())
	}
})

var floorClock = bare("two monotonic clock reads", floor, func() func(int) {
	base := time.Now()
	return func(n int) {
		var sum time.Duration
		for range n {
			begin := time.Since(base)
			sum += time.Since(base) - begin
		}
		sink.Store(int64(sum))
	}
})

// floorSlice is the least that calls subscribers who may come and go: an
// immutable slice behind an atomic pointer.
func floorSlice(subs int) candidate {
	return candidate{"atomic load, range over functions", floor, func() (*rig, error) {
		o := newOrder()
		var fs []func(*order)
		for range subs {
			fs = append(fs, func(o *order) { handle(o) })
		}
		var p atomic.Pointer[[]func(*order)]
		p.Store(&fs)
		return &rig{op: inline(o, subs, func(n int) error {
			for range n {
				for _, f := range *p.Load() {
					f(o)
				}
			}
			return nil
		})}, nil
	}}
}

// floorNamed is the same behind a map of 100 names.
func floorNamed(subs int) candidate {
	return candidate{"map lookup, range over functions", floor, func() (*rig, error) {
		o := newOrder()
		known := map[string][]func(any){}
		for _, n := range hundred() {
			for range subs {
				known[n] = append(known[n], func(v any) { handle(v.(*order)) })
			}
		}
		return &rig{op: inline(o, subs, func(n int) error {
			for range n {
				for _, f := range known[name] {
					f(o)
				}
			}
			return nil
		})}, nil
	}}
}

// floorChannel is a buffered channel of pointers and a goroutine for each
// subscriber.
func floorChannel(subs int) candidate {
	return channels("channel of 1024 and goroutine each", floor, subs, func(o *order) *order { return o }, func(o *order) *order { return o })
}

// parcel is as much as an event and its context.
type parcel struct {
	ctx   context.Context
	order *order
	_     [5]uintptr
}

// parcelChannel moves as many bytes as a queue does.
func parcelChannel(subs int) candidate {
	ctx := context.Background()
	return channels("channels of as many bytes as an event", beside, subs,
		func(o *order) parcel { return parcel{ctx: ctx, order: o} }, func(p parcel) *order { return p.order })
}

func channels[T any](name string, k kind, subs int, pack func(*order) T, unpack func(T) *order) candidate {
	return candidate{name, k, func() (*rig, error) {
		o, c := newOrder(), newCrowd(subs)
		var chans []chan T
		var loops []*loop.Loop
		for _, m := range c.members {
			ch := make(chan T, 1024)
			chans = append(chans, ch)
			loops = append(loops, loop.Go(func(context.Context) {
				for v := range ch {
					m.handle(unpack(v))
				}
			}))
		}
		return &rig{
			op: c.through(func(n int) error {
				for range n {
					for _, ch := range chans {
						ch <- pack(o)
					}
				}
				return nil
			}),
			close: func() error {
				for i, ch := range chans {
					close(ch)
					<-loops[i].Done()
				}
				return nil
			},
		}, nil
	}}
}
