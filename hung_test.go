package tidings_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

// lines is a log that can be read.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *lines) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.all {
		if strings.Contains(s, text) {
			found = append(found, s)
		}
	}
	return found
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func hangOnPurpose(release chan struct{}) { <-release }

// A handler that hangs is named, with its stack, and holds up nobody else.
func TestAHungHandlerIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		b := newBus(t, tidings.Options{Logger: log.logger()})
		release, others := make(chan struct{}), 0
		subscribe(t, b, "x.*", func(context.Context, tidings.Event) error { hangOnPurpose(release); return nil }, nil)
		subscribe(t, b, "x.*", func(context.Context, tidings.Event) error { others++; return nil }, nil)
		subscribe(t, b, "slow", func(context.Context, tidings.Event) error { time.Sleep(9 * time.Second); return nil }, nil)
		start := time.Now()
		for range 3 {
			_ = b.Publish(ctx, "x.y", nil)
			_ = b.Publish(ctx, "slow", nil)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if others != 3 {
			t.Errorf("the other subscription handled %d of 3", others)
		}
		got := log.with("does not return")
		if len(got) != 1 || !strings.Contains(got[0], "pattern=x.*") || !strings.Contains(got[0], "hangOnPurpose") || !strings.Contains(got[0], "hung_test.go") {
			t.Errorf("logged %q", got)
		}
		s := b.Debugger().Snapshot().Subscriptions[0]
		if len(s.Hung) != 1 || s.HungEver != 1 || s.Running != 1 || s.Queued != 2 {
			t.Fatalf("snapshot: %+v", s)
		}
		h := s.Hung[0]
		if h.Event.Topic() != "x.y" || h.Since.Sub(start) > 4*time.Second || !strings.Contains(string(h.Stack), "hangOnPurpose") {
			t.Errorf("hung: %v since %v\n%s", h.Event, h.Since.Sub(start), h.Stack)
		}
		close(release)
		synctest.Wait()
		time.Sleep(30 * time.Second)
		if s := b.Debugger().Snapshot().Subscriptions[0]; s.Handled != 3 || s.HungEver != 1 {
			t.Errorf("after it returned: %+v", s)
		}
		drain(t, b)
	})
}

// A handler that waits to try again does not hang.
func TestARetryDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		b := newBus(t, tidings.Options{Logger: log.logger()})
		subscribe(t, b, "x", func(_ context.Context, e tidings.Event) error { return fmt.Errorf("attempt %d", e.Attempt()) },
			&tidings.SubscribeOptions{HungAfter: time.Second, Retry: tidings.Retry{Attempts: 3, Backoff: 20 * time.Second}})
		_ = b.Publish(ctx, "x", nil)
		drain(t, b)
		if got := log.with("does not return"); len(got) != 0 {
			t.Errorf("logged %q", got)
		}
	})
}

// A drop is counted each time and logged once a burst, with its cause.
func TestDropsAreLoggedOncePerBurst(t *testing.T) {
	for name, o := range map[string]tidings.SubscribeOptions{
		"oldest": {Queue: 2, Overflow: tidings.DropOldest},
		"newest": {Queue: 2, Overflow: tidings.DropNewest},
		"fail":   {Queue: 2, Overflow: tidings.Fail},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				b := newBus(t, tidings.Options{Logger: log.logger()})
				release := make(chan struct{})
				s := subscribe(t, b, "x", func(context.Context, tidings.Event) error { <-release; return nil }, &o)
				burst := func() {
					for range 10 {
						_ = b.Publish(ctx, "x", nil)
						synctest.Wait()
					}
				}
				burst()
				for range 3 {
					release <- struct{}{}
				}
				synctest.Wait()
				burst()
				close(release)
				drain(t, b)
				if got := log.with("the queue is full"); len(got) != 2 || !strings.Contains(got[0], "pattern=x") || !strings.Contains(got[0], "queue=2") {
					t.Errorf("%d lines for 2 bursts: %q", len(got), got)
				}
				<-s.Done()
			})
		})
	}
}
