//go:build unix

package worker

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/activity"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/sdnotify"
)

// What a worker does.
const (
	stageSetup int32 = iota
	stageWaiting
	stageServing
	stageDraining
)

// tellEvery is how often the manager is told, if there is something new.
const tellEvery = time.Second

// named is how many subscriptions STATUS names.
const named = 8

func (l *life) enter(stage int32) {
	l.stage.Store(stage)
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// tell keeps the manager informed until it is stopped.
func (l *life) tell() *loop.Loop {
	return loop.Go(func(ctx context.Context) {
		if os.Getenv("NOTIFY_SOCKET") == "" {
			return
		}
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		last, failed := "", false
		for {
			subs := l.Bus.Debugger().Snapshot().Subscriptions
			var err error
			if status := statusOf(l.stage.Load(), subs); status != last {
				last, err = status, sdnotify.Notify(sdnotify.Status(status))
			}
			if err == nil && underMaster() {
				err = l.send(l.report(subs))
			}
			if err != nil && !failed {
				l.Logger.Warn("the manager is not told how this worker is", "err", err)
			}
			failed = err != nil
			select {
			case <-tick.C:
			case <-l.changed:
			case <-ctx.Done():
				return
			}
		}
	})
}

// statusOf is a line for people. It changes only with what they may have to act
// on, as it is logged by managers.
func statusOf(stage int32, subs []tidings.SubscriptionInfo) string {
	var waits, hung []string
	for _, s := range subs {
		if !s.Ready {
			waits = append(waits, label(s))
		}
		if len(s.Hung) > 0 {
			hung = append(hung, label(s))
		}
	}
	text := ""
	switch stage {
	case stageSetup:
		return "setting up"
	case stageWaiting:
		if text = "waiting for the transport"; len(waits) > 0 {
			text = "waiting for " + list(waits)
		}
	case stageServing:
		text = fmt.Sprintf("serving %d subscriptions", len(subs))
	case stageDraining:
		text = "draining"
	}
	if len(hung) > 0 {
		text += "; handlers hang: " + list(hung)
	}
	return text
}

func label(s tidings.SubscriptionInfo) string {
	switch {
	case s.Durable:
		return fmt.Sprintf("%s (durable, group %s)", s.Pattern, s.Group)
	case s.Group != "":
		return fmt.Sprintf("%s (group %s)", s.Pattern, s.Group)
	}
	return s.Pattern
}

func list(names []string) string {
	if n := len(names) - named; n > 0 {
		names = append(names[:named:named], fmt.Sprintf("%d more", n))
	}
	text := strings.Join(names, ", ")
	return text[:min(len(text), sdnotify.MaxDatagram/2)]
}

// underMaster reports whether the manager knows reports: one of Tidings.
func underMaster() bool { return os.Getenv("NOTIFY_SOCKET") != "" && os.Getenv("TIDINGS_WORKER") != "" }

// mutantMiscounts is a defect that the drill must catch by name: a handling that never
// was, in counts that add up. See package mutant.
const mutantMiscounts = "receipt-miscounts"

// tellLast tells the master what this worker did in all. The bus was drained, and
// nobody else tells anything any more.
func (l *life) tellLast() error {
	if !underMaster() {
		return nil
	}
	subs := l.Bus.Debugger().Snapshot().Subscriptions
	r, next := l.report(subs)
	r.Final = true
	if mutant.On(mutantMiscounts) {
		for i := range r.Subscriptions {
			r.Subscriptions[i].Received++
			r.Subscriptions[i].Handled++
		}
	}
	for _, s := range subs {
		if !s.Ended {
			r.Final = false // somebody else has closed the bus, or drains it
		}
		if len(s.HandedBack)+len(s.Unconfirmed) > 0 {
			r.Left = append(r.Left, sdnotify.LeftReport{Pattern: s.Pattern, Group: s.Group, IDs: ids(s.HandedBack), Unconfirmed: ids(s.Unconfirmed)})
		}
	}
	return l.send(r, next)
}

// send sends a report. Activity that was not told is told next time.
func (l *life) send(r sdnotify.Report, next int64) error {
	err := r.Send()
	if err == nil {
		l.told = next
	}
	return err
}

func ids(events []tidings.Event) (ids []string) {
	for _, e := range events {
		ids = append(ids, e.ID())
	}
	return ids
}

// report also returns with which slot of activity the next one begins.
func (l *life) report(subs []tidings.SubscriptionInfo) (r sdnotify.Report, next int64) {
	next = activity.Now()
	r.Version, r.Until = version(), next
	for _, s := range subs {
		first, active := s.Active(l.told)
		r.Subscriptions = append(r.Subscriptions, sdnotify.SubscriptionReport{
			Name: s.Name, Pattern: s.Pattern, Group: s.Group, Durable: s.Durable, Ready: s.Ready, Queued: s.Queued,
			Running: s.Running, Hung: len(s.Hung), Received: s.Received, Redelivered: s.Redelivered, Handled: s.Handled,
			GaveUp: s.GaveUp, Returned: s.Returned, Expired: s.Expired, Dropped: s.Dropped, Left: s.Left, Failed: s.Failed,
			Acked: s.Acked, Lag: s.Lag, LagKnown: s.LagKnown, ActiveFrom: first, Active: active,
		})
	}
	return r, next
}

// align makes slots of activity comparable between processes.
func align() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("worker: CLOCK_MONOTONIC: %w", err)
	}
	activity.Align(ts.Nano())
	return nil
}

// version is what the program was built from: its module's version or, of a
// working tree, the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	commit := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value[:min(12, len(s.Value))]
		}
	}
	v := info.Main.Version
	if v == "(devel)" {
		v = ""
	}
	return cmp.Or(v, commit)
}
