//go:build unix

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/worker"
)

// leavingChild handles the first quick events at once, prints so, and holds the
// others until they are cut; of the live ones it handles all.
func leavingChild(ctx context.Context) error {
	quick, err := strconv.Atoi(os.Getenv("WORKER_TEST_QUICK"))
	if err != nil {
		return err
	}
	bus, err := openBilling(ctx)
	if err != nil {
		return err
	}
	var n atomic.Int64
	return worker.Run(ctx, worker.Options{Bus: bus, DrainTimeout: time.Second, Setup: func(ctx context.Context) error {
		_, err := bus.Subscribe(ctx, "order.*", func(ctx context.Context, e tidings.Event) error {
			switch k := n.Add(1); {
			case k == int64(quick)+1:
				fmt.Println("busy")
			case k <= int64(quick):
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}, &tidings.SubscribeOptions{Durable: true, Queue: 2500})
		_, live := bus.Subscribe(ctx, "cart.*", func(context.Context, tidings.Event) error { return nil }, nil)
		return errors.Join(err, live)
	}})
}

// lastReport has the worker drain, and returns its last report. What it prints is
// read meanwhile.
func (p *process) lastReport(t *testing.T) (last sdnotify.Report) {
	t.Helper()
	check(t, p.Process.Signal(syscall.SIGQUIT))
	var parts sdnotify.Reports
	p.await(t, "a final report", func(m sdnotify.Message) bool {
		r, err := parts.Take(m)
		check(t, err)
		if r != nil {
			last = *r
		}
		return last.Final
	})
	return last
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The last report is exact: what came is what was handled and what is named as left,
// and that is what the broker has not heard of; nothing else is delivered again.
func TestTheLastReportIsExact(t *testing.T) {
	broker := testkit.Server(t)
	const events, quick = 4000, 500
	shop, err := tidings.Open(t.Context(), broker.URL(), tidings.Options{App: "shop", Routes: routes})
	check(t, err)
	t.Cleanup(func() { _ = shop.Close() })
	for i := range events {
		check(t, shop.Publish(t.Context(), "order.placed", i))
	}
	p := start(t, "leaves", "TIDINGS_WORKER=0", "WORKER_TEST_URL="+broker.URL(), fmt.Sprintf("WORKER_TEST_QUICK=%d", quick))
	p.ready(t)
	for range 7 {
		check(t, shop.Publish(t.Context(), "cart.filled", 1))
	}
	if !p.lines.Scan() || p.lines.Text() != "busy" {
		t.Fatalf("printed %q", p.lines.Text())
	}
	var parts sdnotify.Reports
	var before sdnotify.Report
	p.await(t, "a report with all that was handled", func(m sdnotify.Message) bool {
		if r, _ := parts.Take(m); r != nil {
			before = *r
		}
		if len(before.Subscriptions) != 2 {
			return false
		}
		s, live := before.Subscriptions[0], before.Subscriptions[1] // of some moment when nothing is on its way
		return s.Handled == quick && live.Handled == 7 && s.LagKnown && s.Lag == events-s.Received && s.Received == s.Handled+uint64(s.Queued)+s.Running
	})
	if s := before.Subscriptions[0]; before.Final || s.Left != 0 || s.Lag == 0 || s.Running != 1 {
		t.Errorf("while it serves: %+v", before)
	}
	last := p.lastReport(t)
	p.end(t, 1)
	if len(last.Subscriptions) != 2 || len(last.Left) != 1 {
		t.Fatalf("%d subscriptions, %d left something", len(last.Subscriptions), len(last.Left))
	}
	d, live, left := last.Subscriptions[0], last.Subscriptions[1], last.Left[0]
	if d.Handled != quick || d.Acked != quick || d.Received != d.Handled+d.Left || d.GaveUp+d.Returned+d.Expired+d.Dropped != 0 || int(d.Left) != len(left.IDs) || len(left.Unconfirmed) != 0 {
		t.Errorf("%d named of %+v", len(left.IDs), d)
	}
	if live.Received != 7 || live.Handled != 7 || live.Left != 0 || left.Pattern != "order.*" || left.Group != "billing" {
		t.Errorf("live %+v, left of %s, %s", live, left.Pattern, left.Group)
	}
	if d.Left < 500 {
		t.Errorf("%d were left: too few for several datagrams", d.Left)
	}
	again := map[string]bool{}
	for _, id := range left.IDs {
		again[id] = true
	}
	p = start(t, "leaves", "TIDINGS_WORKER=0", "WORKER_TEST_URL="+broker.URL(), fmt.Sprintf("WORKER_TEST_QUICK=%d", events))
	p.ready(t)
	parts = sdnotify.Reports{}
	p.await(t, "a report of the rest", func(m sdnotify.Message) bool {
		r, _ := parts.Take(m)
		return r != nil && r.Subscriptions[0].Acked == events-quick
	})
	if next := p.lastReport(t).Subscriptions[0]; next.Redelivered != uint64(len(again)) || next.Received != events-quick || next.Handled != next.Received || next.Left != 0 {
		t.Errorf("%d ids were named; then: %+v", len(again), next)
	}
	p.end(t, 0, "clean")
}

// Reports say to 10 ms when events came, by a clock that all processes share.
func TestReportsSayWhenEventsCame(t *testing.T) {
	broker := testkit.Server(t)
	shop, err := tidings.Open(t.Context(), broker.URL(), tidings.Options{App: "shop", Routes: routes})
	check(t, err)
	t.Cleanup(func() { _ = shop.Close() })
	p := start(t, "durable", "TIDINGS_WORKER=0", "WORKER_TEST_URL="+broker.URL())
	p.ready(t)
	var parts sdnotify.Reports
	var line activity.Timeline
	handled := func(n uint64) {
		t.Helper()
		p.await(t, "a report", func(m sdnotify.Message) bool {
			r, err := parts.Take(m)
			check(t, err)
			if r == nil || len(r.Subscriptions) != 2 {
				return false
			}
			check(t, line.Add(r.Subscriptions[0].ActiveFrom, r.Subscriptions[0].Active))
			return r.Subscriptions[0].Handled == n
		})
	}
	before := slot(t)
	check(t, shop.Publish(t.Context(), "order.placed", 1))
	middle := before
	for middle < before+5 { // the first report may come in the slot of the event
		handled(1)
		middle = slot(t)
	}
	check(t, shop.Publish(t.Context(), "order.placed", 2))
	handled(2)
	after := slot(t)
	if gap, at := line.LongestGap(before, middle-1); gap == time.Duration(middle-before)*activity.Slot {
		t.Errorf("no event came from %d to %d", before, at)
	}
	if gap, at := line.LongestGap(middle, after); gap == time.Duration(after+1-middle)*activity.Slot {
		t.Errorf("no event came from %d to %d", middle, at)
	}
	if gap, _ := line.LongestGap(before, after); gap < activity.Slot || gap > time.Duration(after-before-1)*activity.Slot {
		t.Errorf("the gap between them is %v of %v", gap, time.Duration(after-before)*activity.Slot)
	}
	check(t, p.Process.Signal(os.Interrupt))
	p.end(t, 0, "clean")
}

func slot(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	check(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return activity.SlotOf(ts.Nano())
}
