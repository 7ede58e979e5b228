// Package loop runs goroutines that have an owner.
//
// Every goroutine of this module is started by [Go], so that whoever started
// it can ask it to stop and can wait until it has. A test bans the go
// statement elsewhere.
package loop

import "context"

// A Loop is one running goroutine. Its methods may be called concurrently and
// more than once.
type Loop struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Go starts f on a goroutine of its own. The context that f gets is cancelled
// by [Loop.Stop] and carries nothing of the caller's.
func Go(f func(ctx context.Context)) *Loop {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Loop{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer cancel()
		f(ctx)
	}()
	return l
}

// Stop asks the goroutine to end and returns at once.
func (l *Loop) Stop() { l.cancel() }

// Done is closed once the goroutine has ended.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Ended reports whether the goroutine has ended.
func (l *Loop) Ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// StopAndWait asks the goroutine to end and waits until it has. It must not be
// called by the goroutine itself.
func (l *Loop) StopAndWait() {
	l.cancel()
	<-l.done
}

// Wait waits until the goroutine has ended or ctx has; it returns ctx's error
// in the second case.
func (l *Loop) Wait(ctx context.Context) error {
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		if l.Ended() {
			return nil
		}
		return context.Cause(ctx)
	}
}
