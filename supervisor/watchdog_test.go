//go:build unix

package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
	"github.com/tidings-go/tidings/worker"
)

// appMain is a worker built on package worker. Its loop or its handler hangs, or it
// says that it is not alive, once the file of that name is in dir.
func appMain(dir string) int {
	is := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{App: "app"})
	if err != nil {
		panic(err)
	}
	err = worker.Run(ctx, worker.Options{Bus: bus, HandlerLimit: 20 * time.Millisecond,
		Alive: func(context.Context) error {
			if is("loop") {
				theLoopHangs()
			}
			if is("sick") {
				return errors.New("the database is gone")
			}
			return nil
		},
		Setup: func(ctx context.Context) error {
			_, err := bus.Subscribe(ctx, "order.*", func(context.Context, tidings.Event) error {
				if is("handler") {
					theHandlerHangs()
				}
				return nil
			}, &tidings.SubscribeOptions{HungAfter: 10 * time.Millisecond})
			return errors.Join(err, bus.Publish(ctx, "order.placed", nil))
		}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

//go:noinline
func theLoopHangs() { select {} }

//go:noinline
func theHandlerHangs() { select {} }

// A worker that hangs is dumped, named and started again, whatever hangs in it.
func TestHungWorkersAreDumpedNamedAndReplaced(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]struct{ reason, dump string }{
		"loop":    {"no WATCHDOG=1 within 2s", "theLoopHangs"},
		"handler": {"a handler of order.* (group app), subscribed at", "theHandlerHangs"},
		"sick":    {"not alive: the database is gone", "goroutine "},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testConfig{Watchdog: 2 * time.Second, StopTimeout: patience})
			r.mode("app")
			file := filepath.Join(r.dir, what)
			if what == "handler" { // its event comes before it is ready
				check(t, os.WriteFile(file, nil, 0o600))
			}
			r.start()
			pid := r.awaitKind(supervisor.EventWorkerReady).PID
			check(t, os.WriteFile(file, nil, 0o600))
			e := r.awaitKind(supervisor.EventWorkerKillSent)
			if e.PID != pid || e.Signal != "ABRT" || !strings.Contains(e.Reason, want.reason) {
				t.Errorf("sent: %+v", e)
			}
			check(t, os.Remove(file))
			// Go ends with status 2 after its dump.
			if e := r.awaitKind(supervisor.EventWorkerExited); e.PID != pid || e.ExitCode == nil || *e.ExitCode != 2 {
				t.Errorf("exit: %+v", e)
			}
			if e := r.awaitKind(supervisor.EventWorkerBackoff); e.PID != pid || !strings.Contains(e.Reason, want.reason) {
				t.Errorf("started again: %+v", e)
			}
			next := r.awaitKind(supervisor.EventWorkerReady)
			if w := r.status().Workers[0]; w.PID != next.PID || w.Restarts != 1 || !strings.Contains(w.LastDeath, want.reason) {
				t.Errorf("status: %+v", w)
			}
			if log := r.stderr.String(); !strings.Contains(log, want.dump) {
				t.Errorf("the dump does not show %s", want.dump)
			}
			r.signal(syscall.SIGTERM)
			r.awaitExit(0)
		})
	}
}

// Who looks at systemd sees it, too.
func TestACrashLoopIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{LogPrefix: true})
	told := make(chan sdnotify.Message, 64)
	above, err := sdnotify.Receive(filepath.Join(r.dir, "above"), func(m sdnotify.Message) { told <- m })
	check(t, err)
	defer above.Close()
	r.mode("crash")
	r.start("NOTIFY_SOCKET=" + above.Path())
	timeout := time.After(patience)
	for said := ""; said != "0 of 1 workers ready; worker 0 has died 3 times in a row: it ended before READY=1, exit status 3, with the last words: cannot reach the database"; {
		select {
		case m := <-told:
			said = m.Status
		case <-timeout:
			t.Fatalf("the manager was told %q", said)
		}
	}
	var pid int
	for n := 0; n < 3; {
		e := r.await("a death", func(e supervisor.Event) bool { return e.Event == supervisor.EventWorkerBackoff })
		pid, n = e.PID, n+1
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	for _, want := range []string{"worker keeps dying: it is started again ever more slowly", fmt.Sprintf("[0 %d] cannot reach the database\n", pid)} {
		if !strings.Contains(r.stderr.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}
