//go:build unix

package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// "A new worker has said READY=1 before any old one is asked to go."
// "no connection is refused": HUP.
func TestHupOverlapsAndRefusesNoConnection(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"web=tcp://" + addr}}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	c := startClient(addr)
	defer c.loop.StopAndWait()
	<-c.first
	r.signal(syscall.SIGHUP)
	if e := r.awaitKind(supervisor.EventGenerationReady); e.Generation != 2 {
		t.Errorf("ready: %+v", e)
	}
	c.loop.StopAndWait()
	if len(c.failed) > 0 {
		t.Errorf("%d connections failed, the first: %v", len(c.failed), c.failed[0])
	}
	for slot := range 2 {
		var old, next supervisor.Event
		for _, e := range r.seen {
			if e.Event == supervisor.EventWorkerReady && *e.Slot == slot {
				if e.Generation == 1 {
					old = e
				} else {
					next = e
				}
			}
		}
		if r.index(supervisor.EventWorkerReady, next.PID) > r.index(supervisor.EventWorkerQuitSent, old.PID) {
			t.Errorf("slot %d: QUIT to the old worker before READY of the new one", slot)
		}
		if e := r.seen[r.index(supervisor.EventWorkerExited, old.PID)]; e.ExitCode == nil || *e.ExitCode != 0 {
			t.Errorf("the old worker ended with %+v", e)
		}
	}
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
	if _, err := os.Stat(r.cfg.PIDFile); !os.IsNotExist(err) {
		t.Errorf("the pid file is left: %v", err)
	}
}

func TestUsr2ThenQuitHandsOver(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"tcp://" + addr}}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	old := r.cmd.Process.Pid
	c := startClient(addr)
	defer c.loop.StopAndWait()
	<-c.first
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	if e := r.awaitKind(supervisor.EventGenerationReady); e.Master != next || e.Generation != 2 {
		t.Errorf("ready: %+v", e)
	}
	if p, q := r.pidIn("pid"), r.pidIn("pid.oldbin"); p != next || q != old {
		t.Errorf("pid files hold %d and %d, want %d and %d", p, q, next, old)
	}
	r.signal(syscall.SIGUSR2)
	if e := r.awaitKind(supervisor.EventReexecRefused); !strings.Contains(e.Reason, strconv.Itoa(next)) {
		t.Errorf("refused with %q", e.Reason)
	}
	check(t, syscall.Kill(next, syscall.SIGUSR2))
	if e := r.awaitKind(supervisor.EventReexecRefused); e.Master != next {
		t.Errorf("refused by %d, want %d", e.Master, next)
	}
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
	if _, err := os.Stat(r.cfg.PIDFile + ".oldbin"); !os.IsNotExist(err) {
		t.Errorf("the old pid file is left: %v", err)
	}
	c.loop.StopAndWait()
	if len(c.failed) > 0 {
		t.Errorf("%d connections failed, the first: %v", len(c.failed), c.failed[0])
	}
	// The next upgrade starts from the new master.
	check(t, syscall.Kill(next, syscall.SIGUSR2))
	third := r.awaitKind(supervisor.EventReexecStarted)
	if third.Generation != 3 {
		t.Errorf("third: %+v", third)
	}
	r.awaitKind(supervisor.EventGenerationReady)
	for _, pid := range []int{next, third.PID} {
		check(t, syscall.Kill(pid, syscall.SIGQUIT))
		r.await("stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == pid })
	}
}

func TestUsr2WithABrokenNewMasterChangesNothing(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(r *rig){
		"program": func(r *rig) {
			script := filepath.Join(r.dir, "broken")
			check(t, os.WriteFile(script, []byte("#!/bin/sh\nexit 7\n"), 0o700))
			check(t, os.Symlink(script, r.bin+".new"))
			check(t, os.Rename(r.bin+".new", r.bin))
		},
		"workers": func(r *rig) { r.mode("crash") },
		"gone":    func(r *rig) { check(t, os.Remove(r.bin)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testConfig{}).start()
			worker := r.awaitKind(supervisor.EventWorkerReady).PID
			r.awaitKind(supervisor.EventGenerationReady)
			breakIt(r)
			r.signal(syscall.SIGUSR2)
			r.awaitKind(supervisor.EventReexecDied)
			r.mode("ok")
			r.signal(syscall.SIGHUP) // applied after the pid file was put back
			if e := r.awaitKind(supervisor.EventWorkerQuitSent); e.PID != worker {
				t.Errorf("%d was asked to go, want the old worker %d", e.PID, worker)
			}
			r.awaitKind(supervisor.EventGenerationReady)
			pid, err := os.ReadFile(filepath.Join(r.dir, "pid"))
			if err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(r.cmd.Process.Pid) {
				t.Errorf("the pid file says %q, %v; want the old master, %d", pid, err, r.cmd.Process.Pid)
			}
			if _, err := os.Stat(filepath.Join(r.dir, "pid.oldbin")); !os.IsNotExist(err) {
				t.Errorf("pid.oldbin is left: %v", err)
			}
			r.signal(syscall.SIGQUIT)
			r.awaitExit(0)
			for _, f := range []string{"pid", "pid.oldbin"} {
				if _, err := os.Stat(filepath.Join(r.dir, f)); !os.IsNotExist(err) {
					t.Errorf("%s is left: it was not put back: %v", f, err)
				}
			}
		})
	}
}

func TestReadyTimeoutKeepsTheOldGeneration(t *testing.T) {
	t.Parallel()
	for mode, why := range map[string]string{"silent": "no READY=1 within", "crash": "cannot reach the database"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, testConfig{ReadyTimeout: 5 * time.Second}).start()
			old := r.awaitKind(supervisor.EventWorkerReady).PID
			r.mode(mode)
			r.signal(syscall.SIGHUP)
			r.awaitKind(supervisor.EventRollFailed)
			for _, e := range r.seen {
				if e.PID == old && e.Event != supervisor.EventWorkerStarted && e.Event != supervisor.EventWorkerReady {
					t.Errorf("the old worker: %+v", e)
				}
			}
			// A repaired command is taken by the next HUP.
			r.mode("ok")
			r.signal(syscall.SIGHUP)
			if e := r.awaitKind(supervisor.EventGenerationReady); e.Generation != 3 {
				t.Errorf("ready: %+v", e)
			}
			if !strings.Contains(r.stderr.String(), why) {
				t.Errorf("the log does not say %q", why)
			}
			r.signal(syscall.SIGTERM)
			r.awaitExit(0)
		})
	}
}

func TestDeadWorkersAreStartedAgainEverMoreSlowly(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{Backoff: 40 * time.Millisecond})
	r.mode("crash")
	r.start()
	var exits, starts []supervisor.Event
	for len(exits) < 4 {
		if e := r.await("exit", func(e supervisor.Event) bool {
			return e.Event == supervisor.EventWorkerExited || e.Event == supervisor.EventWorkerStarted
		}); e.Event == supervisor.EventWorkerStarted {
			starts = append(starts, e)
		} else {
			exits = append(exits, e)
			if e.ExitCode == nil || *e.ExitCode != 3 {
				t.Errorf("exit: %+v", e)
			}
		}
	}
	for i := range len(starts) - 1 {
		// At least half of 40, 80, 160 ms.
		if pause, least := starts[i+1].MonoNS-exits[i].MonoNS, (20*time.Millisecond)<<i; pause < int64(least)*9/10 {
			t.Errorf("pause %d was %v, want at least %v", i, time.Duration(pause), least)
		}
	}
	r.mode("ok")
	r.awaitKind(supervisor.EventGenerationReady)
	if log := r.stderr.String(); !strings.Contains(log, "cannot reach the database") || !strings.Contains(log, "exit status 3") {
		t.Error("the log lacks the last lines or the exit status")
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

func TestKilledWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	pid := r.awaitKind(supervisor.EventWorkerReady).PID
	check(t, syscall.Kill(pid, syscall.SIGKILL))
	if e := r.awaitKind(supervisor.EventWorkerExited); e.Signal != "killed" || e.ExitCode != nil {
		t.Errorf("exit: %+v", e)
	}
	r.awaitKind(supervisor.EventWorkerReady)
	r.signal(syscall.SIGINT)
	r.awaitExit(0)
}

func TestQuitWaitsForTheDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.mode("slow")
	r.start()
	pid := r.awaitKind(supervisor.EventWorkerReady).PID
	r.signal(syscall.SIGQUIT)
	r.awaitKind(supervisor.EventWorkerQuitSent)
	// The worker ends only once this open of the gate has met its own.
	gate, err := os.OpenFile(filepath.Join(r.dir, "gate"), os.O_WRONLY, 0)
	check(t, err)
	check(t, syscall.Kill(r.cmd.Process.Pid, 0))
	gate.Close()
	r.awaitKind(supervisor.EventStopped)
	r.awaitExit(0)
	if e := r.seen[r.index(supervisor.EventWorkerExited, pid)]; e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("the worker did not end by itself: %+v", e)
	}
}

func TestWhoDoesNotGoIsKilledAndNamed(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			r := newRig(t, testConfig{DrainTimeout: 50 * time.Millisecond, StopTimeout: 50 * time.Millisecond})
			r.mode("stubborn")
			r.start()
			r.awaitKind(supervisor.EventWorkerReady)
			r.signal(sig)
			if e := r.awaitKind(supervisor.EventWorkerExited); e.Signal != "killed" || !strings.Contains(e.Reason, "not gone within") {
				t.Errorf("exit: %+v", e)
			}
			r.awaitExit(0)
			if !strings.Contains(r.stderr.String(), "worker killed") {
				t.Error("the log does not name it")
			}
		})
	}
}

func TestTermCutsADrainShort(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{StopTimeout: 50 * time.Millisecond})
	r.mode("stubborn")
	r.start()
	r.awaitKind(supervisor.EventWorkerReady)
	r.signal(syscall.SIGQUIT)
	r.awaitKind(supervisor.EventWorkerQuitSent)
	r.signal(syscall.SIGTERM)
	if e := r.awaitKind(supervisor.EventWorkerQuitSent); e.Signal != "TERM" {
		t.Errorf("sent: %+v", e)
	}
	r.awaitExit(0)
}

func TestWatchdogDumpsAHungWorker(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{Watchdog: 100 * time.Millisecond})
	r.mode("hung")
	r.start()
	if e := r.awaitKind(supervisor.EventWorkerKillSent); e.Signal != "ABRT" {
		t.Errorf("sent: %+v", e)
	}
	r.mode("crash")
	r.awaitKind(supervisor.EventWorkerExited)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	if !strings.Contains(r.stderr.String(), "SIGABRT") {
		t.Error("no stacks were dumped")
	}
}

func TestWorkerSeesTheEndOfItsMaster(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	marker := filepath.Join(r.dir, "orphaned")
	check(t, syscall.Mkfifo(marker, 0o600))
	r.start()
	r.awaitKind(supervisor.EventWorkerReady)
	r.signal(syscall.SIGKILL)
	// The worker opens the marker to write when it sees the end; until then
	// this blocks.
	f, err := os.Open(marker)
	check(t, err)
	f.Close()
}

func TestTtinTtouWinch(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	r.awaitKind(supervisor.EventWorkerReady)
	r.signal(syscall.SIGTTIN)
	second := r.awaitKind(supervisor.EventWorkerReady)
	if *second.Slot != 1 {
		t.Errorf("second: %+v", second)
	}
	r.signal(syscall.SIGTTOU)
	if e := r.awaitKind(supervisor.EventWorkerExited); e.PID != second.PID {
		t.Errorf("%d went, want %d", e.PID, second.PID)
	}
	r.signal(syscall.SIGWINCH)
	r.awaitKind(supervisor.EventWorkerExited)
	r.signal(syscall.SIGHUP)
	if e := r.awaitKind(supervisor.EventGenerationReady); e.Generation != 2 {
		t.Errorf("ready: %+v", e)
	}
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
}

// "No kind of signal is lost in a burst."
func TestBurstLosesNoKind(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	for range 1000 {
		r.signal(syscall.SIGHUP)
	}
	r.signal(syscall.SIGQUIT)
	r.awaitKind(supervisor.EventStopped)
	r.awaitExit(0)
}

func TestPIDFile(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	second := r.command()
	second.Stderr, second.Stdout = nil, nil
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use by process "+strconv.Itoa(r.cmd.Process.Pid)) {
		t.Errorf("a second master: %v\n%s", err, out)
	}
	// A kill leaves the file behind; the next start replaces it.
	r.signal(syscall.SIGKILL)
	r.awaitExit(-1)
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	if pid := r.pidIn("pid"); pid != r.cmd.Process.Pid {
		t.Errorf("the pid file holds %d, want %d", pid, r.cmd.Process.Pid)
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

func TestManagerAboveIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	states := make(chan sdnotify.Message, 64)
	above, err := sdnotify.Receive(filepath.Join(r.dir, "above"), func(m sdnotify.Message) { states <- m })
	check(t, err)
	defer above.Close()
	expect := func(what string, fits func(sdnotify.Message) bool) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case m := <-states:
				if fits(m) {
					return
				}
			case <-timeout:
				t.Fatalf("the manager was not told %s", what)
			}
		}
	}
	r.start("NOTIFY_SOCKET=" + above.Path())
	atLeast := func(d time.Duration) func(sdnotify.Message) bool {
		return func(m sdnotify.Message) bool { return m.ExtendTimeout > d }
	}
	expect("how long a start takes", atLeast(30*time.Second))
	expect("READY", func(m sdnotify.Message) bool { return m.Ready && m.MainPID == r.cmd.Process.Pid })
	r.signal(syscall.SIGHUP)
	expect("RELOADING", func(m sdnotify.Message) bool { return m.Reloading })
	expect("how long it takes", atLeast(60*time.Second))
	expect("READY after it", func(m sdnotify.Message) bool { return m.Ready })
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	expect("that it can be QUIT", func(m sdnotify.Message) bool {
		return m.MainPID == 0 && m.Status == fmt.Sprintf("upgrade: new master %d has 1 of 1 workers ready: QUIT %d to go on, or QUIT %[1]d to go back", next, r.cmd.Process.Pid)
	})
	r.signal(syscall.SIGQUIT)
	expect("MAINPID by the old one", func(m sdnotify.Message) bool { return !m.Ready && !m.Stopping && m.MainPID == next })
	// systemd asks whose child a MAINPID is only if it is another one than before.
	expect("another MAINPID", func(m sdnotify.Message) bool { return m.MainPID != 0 && m.MainPID != next })
	expect("MAINPID, now that the old one is gone", func(m sdnotify.Message) bool { return m.MainPID == next })
	r.awaitExit(0)
	check(t, syscall.Kill(next, syscall.SIGQUIT))
	expect("STOPPING", func(m sdnotify.Message) bool { return m.Stopping })
	expect("how long the drain takes", atLeast(30*time.Second))
	r.await("stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
}
