package supervisor_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// A situation is a state that a master is brought into before it gets a signal.
type situation struct {
	name string
	// enter starts the master and returns the pid that signals go to.
	enter func(r *rig) int
	// end lets a drain end that waits for somebody.
	end      func(r *rig)
	stopping bool // it only can be stopped more quickly
	refuses  bool // USR2
}

func upgrade(r *rig) (next int) {
	startReady(r)
	r.mode("silent")
	r.signal(syscall.SIGUSR2)
	next = r.awaitKind(supervisor.EventReexecStarted).PID
	r.await("a worker of the new master", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventWorkerStarted && e.Master == next
	})
	return next
}

var situations = []situation{
	{name: "ready", enter: startReady},
	{name: "starting", enter: func(r *rig) int {
		r.mode("silent")
		r.start()
		r.awaitKind(supervisor.EventWorkerStarted)
		return r.cmd.Process.Pid
	}},
	{name: "upgrading, to the old", refuses: true, enter: func(r *rig) int { upgrade(r); return r.cmd.Process.Pid }},
	{name: "upgrading, to the new", refuses: true, enter: upgrade},
	{name: "draining", stopping: true, refuses: true, enter: func(r *rig) int {
		r.mode("slow")
		pid := startReady(r)
		r.signal(syscall.SIGQUIT)
		r.awaitKind(supervisor.EventWorkerQuitSent)
		return pid
	}, end: func(r *rig) {
		gate, err := os.OpenFile(filepath.Join(r.dir, "gate"), os.O_WRONLY, 0)
		check(r.t, err)
		gate.Close()
	}},
	{name: "a worker hangs", enter: func(r *rig) int {
		pid := startReady(r)
		for worker := range r.living() {
			check(r.t, syscall.Kill(worker, syscall.SIGSTOP))
		}
		return pid
	}},
	{name: "no worker lives", enter: func(r *rig) int {
		r.cfg.Backoff = time.Hour
		r.mode("crash")
		r.start()
		r.awaitKind(supervisor.EventWorkerExited)
		return r.cmd.Process.Pid
	}},
	{name: "child of a shell", enter: func(r *rig) int {
		// A shell starts what is in the background with INT and QUIT ignored.
		r.wrap = func(cmd *exec.Cmd) {
			cmd.Args = append([]string{"sh", "-c", `"$@" & wait $!`, "sh"}, cmd.Args...)
			cmd.Path = "/bin/sh"
		}
		r.start()
		return r.awaitKind(supervisor.EventGenerationReady).Master
	}},
	{name: "pid 1", refuses: true, enter: func(r *rig) int {
		r.wrap = asPID1
		pid := startReady(r)
		if e := r.seen[0]; e.Master != 1 {
			r.t.Fatalf("the master's pid is %d", e.Master)
		}
		return pid
	}},
}

// asPID1 gives a command a pid namespace; without root, by a user namespace.
func asPID1(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
}

// Every signal of the table in every situation, on real processes.
func TestSignalsInEverySituation(t *testing.T) {
	for _, s := range situations {
		for _, row := range supervisor.Signals() {
			t.Run(s.name+"/"+row.Name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, testConfig{DrainTimeout: patience, StopTimeout: 100 * time.Millisecond, BackoffMax: time.Hour})
				if s.name == "a worker hangs" {
					r.cfg.DrainTimeout = 100 * time.Millisecond
				}
				cell{r, s, s.enter(r)}.check(row.Name)
			})
		}
	}
}

// A cell is one signal in one situation.
type cell struct {
	*rig
	situation
	pid int // gets the signal
}

var signals = map[string]syscall.Signal{
	"CHLD": syscall.SIGCHLD, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "WINCH": syscall.SIGWINCH, "HUP": syscall.SIGHUP,
	"USR2": syscall.SIGUSR2, "TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "USR1": syscall.SIGUSR1, "PIPE": syscall.SIGPIPE,
}

func (c cell) check(name string) {
	c.t.Helper()
	before := c.status()
	check(c.t, syscall.Kill(c.pid, signals[name]))
	if name != "CHLD" && name != "PIPE" {
		c.await("the signal's event", func(e supervisor.Event) bool { return e.Event == supervisor.EventSignal && e.Signal == name })
	}
	switch name {
	case "TERM", "INT", "QUIT":
		c.ends(name)
		return
	case "USR2":
		c.reexecutes()
	case "HUP":
		c.rolls(before)
	case "USR1":
		c.reopens()
	default:
		c.scales(before, map[string]int{"TTIN": before.Want + 1, "TTOU": 0, "WINCH": 0}, name)
	}
	c.noZombies()
	check(c.t, syscall.Kill(c.pid, syscall.SIGTERM))
	c.ends("TERM")
}

// asked is the status of the master that gets the signals.
func (c cell) asked() supervisor.Status {
	c.t.Helper()
	control := c.control()
	if c.name == "upgrading, to the old" {
		control.Path += supervisor.OldSuffix
	}
	s, err := control.Status(c.t.Context())
	check(c.t, err)
	return s
}

func (c cell) scales(before supervisor.Status, want map[string]int, name string) {
	c.t.Helper()
	n, changes := want[name]
	if !changes || c.stopping {
		n = before.Want
	}
	if s := c.asked(); s.Want != n {
		c.t.Errorf("%d workers are wanted, want %d: %+v", s.Want, n, s)
	}
}

func (c cell) reopens() {
	c.t.Helper()
	c.asked() // the signal was applied before this is answered
	if info, err := os.Stat(c.cfg.EventsFile + ".reopened"); err != nil || info.Size() != 1 {
		c.t.Errorf("the master did not open its log again once: %v, %v", info, err)
	}
	if c.name == "ready" {
		testkit.Until(c.t, patience, func() bool { _, err := os.Stat(filepath.Join(c.dir, "usr1")); return err == nil })
	}
	if c.name != "starting" && !strings.HasPrefix(c.name, "upgrading") {
		return
	}
	for _, w := range c.asked().Workers { // USR1 would end one that does not catch it yet
		if w.Restarts != 0 {
			c.t.Errorf("a worker died of it: %+v", w)
		}
	}
}

func (c cell) rolls(before supervisor.Status) {
	c.t.Helper()
	s := c.asked()
	switch {
	case c.stopping:
		if s.Generation != 1 || s.State != "stopping" {
			c.t.Errorf("status: %+v", s)
		}
	case c.name == "starting", c.name == "upgrading, to the old", c.name == "upgrading, to the new":
		if s.State != "rolling" || len(s.Workers) != 2 { // the new one is silent, too
			c.t.Errorf("status: %+v", s)
		}
	default:
		c.mode("ok") // no worker lives: what has failed before is tried at once
		if c.name == "no worker lives" {
			check(c.t, syscall.Kill(c.pid, syscall.SIGHUP))
		}
		c.await("the next generation", func(e supervisor.Event) bool {
			return e.Event == supervisor.EventGenerationReady && e.Generation > before.Generation
		})
	}
}

func (c cell) reexecutes() {
	c.t.Helper()
	if c.refuses {
		e := c.awaitKind(supervisor.EventReexecRefused)
		if !strings.Contains(e.Reason, "QUIT") && !c.stopping {
			c.t.Errorf("refused without a way out: %q", e.Reason)
		}
		return
	}
	next := c.awaitKind(supervisor.EventReexecStarted).PID
	if err := syscall.Kill(next, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		c.t.Error(err)
	}
	c.await("its end", func(e supervisor.Event) bool { return e.Event == supervisor.EventReexecDied && e.PID == next })
	testkit.Until(c.t, patience, func() bool { // the names are put back just after
		s, err := c.control().Status(c.t.Context())
		return err == nil && s.NewMaster == 0 && s.Control == c.cfg.Control && s.PIDFile == c.cfg.PIDFile
	})
}

// ends checks that the master ends with status 0, with all of its workers, and
// leaves nothing behind; and, in an upgrade, that the other one does the same.
func (c cell) ends(name string) {
	c.t.Helper()
	if c.end != nil && name == "QUIT" {
		c.end(c.rig)
	}
	if c.pid != c.cmd.Process.Pid && strings.HasPrefix(c.name, "upgrading") {
		c.await("the new master's end", func(e supervisor.Event) bool { return e.Event == supervisor.EventReexecDied && e.PID == c.pid })
		testkit.Until(c.t, patience, func() bool { _, err := os.Lstat(c.cfg.PIDFile + supervisor.OldSuffix); return err != nil })
		if pid := c.pidIn("pid"); pid != c.cmd.Process.Pid {
			c.t.Errorf("the pid file holds %d, want the old master", pid)
		}
		c.noZombies()
		c.signal(syscall.SIGTERM)
	}
	c.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && !c.isNew(e.Master) })
	c.awaitExit(0)
	if c.name == "upgrading, to the old" {
		s := c.status() // at its own name
		if pid := c.pidIn("pid"); pid != s.Master || s.OldMaster != 0 {
			c.t.Errorf("the new master: %+v, pid file %d", s, pid)
		}
		check(c.t, syscall.Kill(s.Master, syscall.SIGTERM))
		c.await("its stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == s.Master })
	}
	if c.name != "pid 1" { // the kernel ends what is left, and pids are others there
		for pid := range c.started() {
			testkit.Until(c.t, patience, func() bool { state, _ := stat(pid); return state == "" || state == "Z" })
		}
	}
	var left []string
	for _, pattern := range []string{"pid*", "tidings-*"} {
		found, _ := filepath.Glob(filepath.Join(c.dir, pattern))
		left = append(left, found...)
	}
	if len(left) > 0 && c.name != "upgrading, to the old" { // its directory goes just after its event
		c.t.Errorf("left behind: %q", left)
	}
}

func (c cell) isNew(master int) bool {
	return master != 1 && c.name != "child of a shell" && master != c.cmd.Process.Pid
}

// started are all processes that were seen to start.
func (c cell) started() map[int]bool {
	pids := map[int]bool{}
	for _, e := range c.seen {
		if e.Event == supervisor.EventWorkerStarted || e.Event == supervisor.EventReexecStarted {
			pids[e.PID] = true
		}
	}
	return pids
}

// noZombies waits until the master has no ended child that it does not reap.
func (c cell) noZombies() {
	c.t.Helper()
	testkit.Until(c.t, patience, func() bool {
		procs, err := filepath.Glob("/proc/[0-9]*")
		check(c.t, err)
		for _, p := range procs {
			var pid int
			if _, err := fmt.Sscanf(filepath.Base(p), "%d", &pid); err != nil {
				continue
			}
			if state, parent := stat(pid); state == "Z" && parent == c.pid {
				return false
			}
		}
		return true
	})
}

// stat returns the state and the parent of a process, "" if there is none.
func stat(pid int) (state string, parent int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
		return "", 0
	}
	return state, parent
}
