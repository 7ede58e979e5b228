package supervisor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// example is the path of a worker in examples/workers.
func example(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../examples/workers/" + name)
	check(t, err)
	_, err = os.ReadFile(path) // tells go test when its cached result is out of date
	check(t, err)
	return path
}

// begin sends half of a request, and waits until a worker has it.
func begin(t *testing.T, addr string) testkit.Visit {
	t.Helper()
	v := testkit.Begin(addr, patience)
	check(t, v.Err)
	testkit.Accepted(t, patience, addr)
	return v
}

// A worker in Python with nothing but its standard library.
func TestPythonWorker(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"web=tcp://" + addr}})
	r.cfg.Command = []string{testkit.Python(t), example(t, "worker.py")}
	startReady(r)
	testkit.Until(t, patience, func() bool { return r.status().Workers[0].Status == "serving 1 sockets" })

	var failed []error
	served := map[int]bool{}
	visitor := loop.Go(func(ctx context.Context) {
		pause := time.NewTicker(time.Millisecond)
		defer pause.Stop()
		for ; ctx.Err() == nil; <-pause.C {
			if pid, err := testkit.Get(addr, patience); err != nil {
				failed = append(failed, err)
			} else {
				served[pid] = true
			}
		}
	})
	defer visitor.StopAndWait()
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGUSR1)
	testkit.Until(t, patience, func() bool {
		s := r.status()
		return s.Workers[0].Status == "logs opened again" && s.Workers[1].Status == "logs opened again"
	})
	visitor.StopAndWait()
	if len(failed) > 0 {
		t.Errorf("%d requests failed over HUP, the first: %v", len(failed), failed[0])
	}
	for pid := range served {
		if !r.started(pid) {
			t.Errorf("answered by %d, which is no worker", pid)
		}
	}

	one, other := begin(t, addr), begin(t, addr) // one for each worker
	r.signal(syscall.SIGQUIT)
	awaitRefusalAfterAnswers(t, addr, one, other)
	r.awaitExit(0)
	r.allEnded()
}

// awaitRefusalAfterAnswers checks that what workers have in hand is answered after
// QUIT.
func awaitRefusalAfterAnswers(t *testing.T, addr string, under ...testkit.Visit) {
	t.Helper()
	pids := map[int]bool{}
	for _, l := range under {
		pid, err := l.Finish()
		if err != nil {
			t.Errorf("a request that was accepted before QUIT: %v", err)
		}
		pids[pid] = true
	}
	if len(pids) != len(under) {
		t.Errorf("answered by %v, want %d workers", pids, len(under))
	}
	awaitRefusal(t, "tcp", addr)
}

// started says whether it was a worker.
func (r *rig) started(pid int) bool {
	for _, e := range r.seen {
		if e.Event == supervisor.EventWorkerStarted && e.PID == pid {
			return true
		}
	}
	return false
}

// allEnded checks that every worker has ended by itself, with status 0.
func (r *rig) allEnded() {
	r.t.Helper()
	timeout := time.After(patience)
	for waiting := true; waiting && len(r.living()) > 0; { // what the master has said may still be on its way when it has ended
		select {
		case e := <-r.events:
			r.seen = append(r.seen, e)
		case <-timeout:
			waiting = false
		}
	}
	for _, e := range r.seen {
		if e.Event == supervisor.EventWorkerExited && (e.ExitCode == nil || *e.ExitCode != 0) {
			r.t.Errorf("a worker ended with %+v", e)
		}
	}
	if left := r.living(); len(left) > 0 {
		r.t.Errorf("workers %v are left", left)
	}
}

// TERM and INT end it at once.
func TestPythonWorkerEndsAtOnce(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Listen: []string{"web=tcp://" + addr}})
	r.cfg.Command = []string{testkit.Python(t), example(t, "worker.py")}
	startReady(r)
	under := begin(t, addr)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	if _, err := under.Finish(); err == nil {
		t.Error("it was answered")
	}
}

// A worker in shell, which needs systemd-notify to say that it is ready. That is
// another process than the worker, so under systemd the unit would need
// NotifyAccess=all; here each worker has a socket of its own, and what comes there is
// the worker's, whoever sends it.
func TestShellWorker(t *testing.T) {
	t.Parallel()
	testkit.Program(t, "systemd-notify", "systemd")
	r := newRig(t, testConfig{Workers: 2})
	inbox, done := filepath.Join(r.dir, "inbox"), filepath.Join(r.dir, "done")
	check(t, os.Mkdir(inbox, 0o700))
	r.cfg.Command = []string{example(t, "worker.sh"), inbox}
	put := func(name string) {
		t.Helper()
		check(t, os.WriteFile(filepath.Join(inbox, "new"), []byte(name), 0o600))
		check(t, os.Rename(filepath.Join(inbox, "new"), filepath.Join(inbox, name+".order")))
	}
	doneBy := func(name string) (pid int) {
		t.Helper()
		testkit.Until(t, patience, func() bool {
			text, err := os.ReadFile(done)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			_, rest, found := strings.Cut(string(text), name+" by ")
			line, _, whole := strings.Cut(rest, "\n")
			pid, err = strconv.Atoi(line)
			return found && whole && err == nil
		})
		return pid
	}
	startReady(r)
	if s := r.status().Workers[0].Status; s != "works through "+inbox {
		t.Errorf("status %q", s)
	}
	put("first")
	if pid := doneBy("first"); !r.living()[pid] {
		t.Errorf("done by %d, which is no worker", pid)
	}
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGUSR1)
	testkit.Until(t, patience, func() bool { return r.status().Workers[1].Status == "logs opened again" })

	// One has a file in hand when QUIT comes: a pipe, which it has read only when
	// somebody has written it.
	long := filepath.Join(inbox, "long.order")
	check(t, syscall.Mkfifo(long, 0o600))
	pipe, err := os.OpenFile(long, os.O_WRONLY, 0)
	check(t, err)
	r.signal(syscall.SIGQUIT)
	r.awaitKind(supervisor.EventWorkerQuitSent)
	put("late") // not taken any more, or by the worker that is still asleep
	_, err = pipe.WriteString("long")
	check(t, errors.Join(err, pipe.Close()))
	if pid := doneBy("long"); !r.started(pid) {
		t.Errorf("done by %d, which is no worker", pid)
	}
	r.awaitExit(0)
	r.allEnded()
	if taken, err := filepath.Glob(filepath.Join(inbox, "*.taken.*")); err != nil || len(taken) > 0 {
		t.Errorf("left undone: %q, %v", taken, err)
	}
}

// Workers in any language see the end of a master that is killed.
func TestForeignWorkersSeeTheEndOfTheirMaster(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]func(r *rig) []string{
		"python": func(r *rig) []string {
			return []string{testkit.Python(t), example(t, "worker.py")}
		},
		"shell": func(r *rig) []string { return []string{example(t, "worker.sh"), r.dir} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testConfig{Workers: 2})
			r.cfg.Command = command(r)
			startReady(r)
			r.signal(syscall.SIGKILL)
			r.awaitExit(-1)
			for pid := range r.living() {
				testkit.Until(t, patience, func() bool { state, _ := stat(pid); return state == "" || state == "Z" })
			}
		})
	}
}
