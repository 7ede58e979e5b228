//go:build unix

package supervisor_test

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// A manager's TERM in the middle of an upgrade is for the service: the old master
// ends after the new one. Without a manager it is for the one that is sent it.
func TestTermInTheMiddleOfAnUpgrade(t *testing.T) {
	t.Parallel()
	for _, managed := range []bool{true, false} {
		r := newRig(t, testConfig{TermGraceful: true})
		if managed {
			above, err := sdnotify.Receive(filepath.Join(r.dir, "above"), func(sdnotify.Message) {})
			check(t, err)
			defer above.Close()
			r.start("NOTIFY_SOCKET=" + above.Path())
		} else {
			r.start()
		}
		r.awaitKind(supervisor.EventGenerationReady)
		r.signal(syscall.SIGUSR2)
		next := r.awaitKind(supervisor.EventReexecStarted).PID
		r.awaitKind(supervisor.EventGenerationReady)
		r.signal(syscall.SIGTERM)
		r.awaitExit(0)
		if gone := errors.Is(syscall.Kill(next, 0), syscall.ESRCH); gone != managed {
			t.Errorf("managed %v: when the old master has ended, that the new one has is %v", managed, gone)
		}
		if !managed {
			check(t, syscall.Kill(next, syscall.SIGTERM))
			r.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
		}
	}
}
