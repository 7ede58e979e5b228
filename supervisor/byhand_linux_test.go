package supervisor_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// The upgrade by hand of Unicorn's manual: USR2, look, WINCH to the old master,
// look again; then QUIT to it, or back by HUP to it and QUIT to the new one.
func TestUpgradeByHandAndBack(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{false, true} {
		t.Run(map[bool]string{false: "on", true: "back"}[back], func(t *testing.T) {
			t.Parallel()
			addr := freePort(t)
			r := newRig(t, testConfig{Workers: 2, Listen: []string{"tcp://" + addr}})
			old := startReady(r)
			c := startClient(addr)
			defer c.loop.StopAndWait()
			<-c.first
			r.signal(syscall.SIGUSR2)
			next := r.awaitKind(supervisor.EventReexecStarted).PID
			ready := func(master int) {
				t.Helper()
				r.await("a ready generation", func(e supervisor.Event) bool {
					return e.Event == supervisor.EventGenerationReady && e.Master == master
				})
			}
			exits := func(master, n int) {
				t.Helper()
				for range n {
					r.await("a worker's end", func(e supervisor.Event) bool {
						return e.Event == supervisor.EventWorkerExited && e.Master == master
					})
				}
			}
			ready(next)
			r.signal(syscall.SIGWINCH)
			exits(old, 2)
			was, err := supervisor.Control{Path: r.cfg.Control + supervisor.OldSuffix}.Status(t.Context())
			check(t, err)
			if was.State != "paused" || len(was.Workers) != 0 || r.pidIn("pid.oldbin") != old || r.pidIn("pid") != next {
				t.Errorf("old master: %+v", was)
			}
			last := next
			if back {
				r.signal(syscall.SIGHUP)
				ready(old)
				check(t, syscall.Kill(next, syscall.SIGQUIT))
				r.awaitKind(supervisor.EventReexecDied)
				testkit.Until(t, patience, func() bool { _, err := os.Lstat(r.cfg.PIDFile + supervisor.OldSuffix); return err != nil })
				last = old
			} else {
				r.signal(syscall.SIGQUIT)
				r.awaitExit(0)
			}
			if pid := r.pidIn("pid"); pid != last || r.status().Master != last || len(r.status().Workers) != 2 {
				t.Errorf("the pid file holds %d, want %d; %+v", pid, last, r.status())
			}
			c.loop.StopAndWait()
			if len(c.failed) > 0 {
				t.Errorf("%d connections failed, the first: %v", len(c.failed), c.failed[0])
			}
			check(t, syscall.Kill(last, syscall.SIGQUIT))
			r.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == last })
		})
	}
}

// Signals that somebody sends to a worker himself: what ends it has it started
// again, whatever its state.
func TestSignalsToWorkers(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL, syscall.SIGABRT, syscall.SIGUSR1, syscall.SIGHUP} {
		for _, mode := range []string{"ok", "tells", "stopped"} {
			t.Run(sig.String()+"/"+mode, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, testConfig{})
				if mode == "tells" {
					r.mode(mode)
				}
				r.start()
				var pid int
				if mode == "tells" {
					// It catches signals once it has told something.
					pid = r.awaitKind(supervisor.EventWorkerStarted).PID
					testkit.Until(t, patience, func() bool { return r.status().Workers[0].Version != "" })
				} else {
					pid = r.awaitKind(supervisor.EventWorkerReady).PID
				}
				if mode == "stopped" {
					check(t, syscall.Kill(pid, syscall.SIGSTOP))
				}
				check(t, syscall.Kill(pid, sig))
				if mode == "stopped" {
					check(t, syscall.Kill(pid, syscall.SIGCONT))
				}
				r.mode("ok")
				if sig == syscall.SIGUSR1 {
					testkit.Until(t, patience, func() bool { _, err := os.Stat(filepath.Join(r.dir, "usr1")); return err == nil })
				} else {
					r.await("its end", func(e supervisor.Event) bool { return e.Event == supervisor.EventWorkerExited && e.PID == pid })
					r.await("another", func(e supervisor.Event) bool { return e.Event == supervisor.EventWorkerReady && e.PID != pid })
				}
				want := 1
				if sig == syscall.SIGUSR1 {
					want = 0
				}
				if s := r.status(); s.Workers[0].Restarts != want {
					t.Errorf("%d restarts, want %d", s.Workers[0].Restarts, want)
				}
				r.signal(syscall.SIGTERM)
				r.awaitExit(0)
			})
		}
	}
}

// As pid 1 the master is given the orphans of its workers, and reaps them.
func TestPID1ReapsOrphans(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.wrap = asPID1
	orphan := filepath.Join(r.dir, "orphan")
	check(t, syscall.Mkfifo(orphan, 0o600))
	self := r.cfg.Command
	// The inner shell's child outlives it, until somebody reads what it says.
	r.cfg.Command = append([]string{"sh", "-c", `sh -c '(read self rest </proc/self/stat; echo $self >"$0") &' "$0"; exec "$@"`, orphan}, self...)
	startReady(r)
	f, err := os.Open(orphan)
	check(t, err)
	defer f.Close()
	text := make([]byte, 32)
	n, err := f.Read(text)
	check(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	check(t, err)
	testkit.Until(t, patience, func() bool { state, _ := stat(pid); return state == "" })
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}
