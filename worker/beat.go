//go:build unix

package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/sdnotify"
)

// beat tells the manager's watchdog, if there is one, that the worker is alive, or
// why it is not.
func (l *life) beat() *loop.Loop {
	return loop.Go(func(ctx context.Context) {
		interval, err := sdnotify.WatchdogInterval()
		if err != nil {
			l.Logger.Warn("the watchdog is not told that this worker is alive", "err", err)
		}
		if interval <= 0 {
			return
		}
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		for {
			state := []string{sdnotify.Watchdog}
			if err := l.alive(ctx); err != nil && ctx.Err() == nil {
				l.Logger.Error("this worker is not alive: its manager is asked to end it", "err", err)
				state = []string{sdnotify.Status("not alive: " + err.Error()), sdnotify.WatchdogTrigger}
			}
			if err := sdnotify.Notify(state...); err != nil {
				l.Logger.Warn("the watchdog was not told", "err", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

func (l *life) alive(ctx context.Context) error {
	for _, s := range l.Bus.Debugger().Snapshot().Subscriptions {
		for _, h := range s.Hung {
			if d := time.Since(h.Since); l.HandlerLimit > 0 && d > l.HandlerLimit {
				return fmt.Errorf("a handler of %s, subscribed at %s, runs since %v with event %s", label(s), s.Place, d.Round(time.Millisecond), h.Event.ID())
			}
		}
	}
	if l.Alive == nil {
		return nil
	}
	return l.Alive(ctx)
}
