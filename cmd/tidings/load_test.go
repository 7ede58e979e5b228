//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/natsbus"
)

// A load is a publisher and two groups, which go on while the hub comes and goes.
type load struct {
	total int
	shop  adapter.Adapter
	done  *loop.Loop
	err   error // read after done

	mu   sync.Mutex
	got  [2]map[int]bool
	more chan struct{} // closed and made anew when something was handled
}

// ahead bounds how far the publisher is before its groups: they keep up.
const ahead = 100

// load N LIMIT starts to publish N events to a stream that takes LIMIT of them.
func startLoad(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: load N LIMIT")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	l := &load{total: n, more: make(chan struct{}), got: [2]map[int]bool{{}, {}}}
	l.shop, err = natsbus.Open(ctx, ts.Getenv("TIDINGS_URL")+"&max-msgs="+args[1], adapter.Config{App: "shop", Durable: []string{"order.>"}})
	ts.Check(err)
	ts.Defer(func() { _ = l.shop.Close() })
	for i := range l.got {
		group := fmt.Sprint("group", i)
		_, err := connected(ts, group).Subscribe(ctx, adapter.Spec{Pattern: "order.>", Group: group, Durable: true, Deliver: func(d adapter.Delivery) {
			l.note(i, d.ID)
			d.Settle.Ack(func(error) {})
		}})
		ts.Check(err)
	}
	l.done = loop.Go(func(ctx context.Context) { l.err = l.publish(ctx) })
	ts.Defer(l.done.StopAndWait)
	ts.Value(openedKey{}).(*opened).load = l
}

func (l *load) note(group int, id string) {
	n, err := strconv.Atoi(id)
	if err != nil {
		panic(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got[group][n] = true
	close(l.more)
	l.more = make(chan struct{})
}

// until waits until both groups have handled n.
func (l *load) until(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		least, more := min(len(l.got[0]), len(l.got[1])), l.more
		l.mu.Unlock()
		if least >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d were handled: %w", least, n, ctx.Err())
		}
	}
}

func (l *load) publish(ctx context.Context) error {
	for i := range l.total {
		if err := l.until(ctx, i-ahead); err != nil {
			return err
		}
		if err := l.publishOne(ctx, i); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	return nil
}

// publishOne tries again while the stream is full: of what a killed hub forgets to
// have been acknowledged, nothing is purged before the ack wait is over and it was
// acknowledged again.
func (l *load) publishOne(ctx context.Context, i int) error {
	m := &adapter.Message{ID: strconv.Itoa(i), Topic: "order.placed", Source: "//shop/1", Data: []byte("1")}
	for {
		err := l.shop.Publish(ctx, m, adapter.Durable)
		if !errors.Is(err, adapter.ErrFull) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handled N waits until both groups have handled that many.
func handled(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: handled N")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 3*scriptPatience)
	defer cancel()
	l := ts.Value(openedKey{}).(*opened).load
	if err := l.until(ctx, n); err != nil {
		select {
		case <-l.done.Done():
			err = errors.Join(err, l.err)
		default:
		}
		ts.Check(err)
	}
}

// loaded waits until all was published and handled, by both groups.
func loaded(ts *testscript.TestScript, neg bool, args []string) {
	l := ts.Value(openedKey{}).(*opened).load
	handled(ts, neg, []string{strconv.Itoa(l.total)})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ts.Check(l.done.Wait(ctx))
	ts.Check(l.err)
	if l.shop.Stats().Purged == 0 {
		ts.Fatalf("nothing was purged: %+v", l.shop.Stats())
	}
}
