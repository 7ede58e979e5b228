//go:build unix

package supervisor_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

func (r *rig) control() supervisor.Control { return supervisor.Control{Path: r.cfg.Control} }

func (r *rig) status() supervisor.Status {
	r.t.Helper()
	s, err := r.control().Status(context.Background())
	check(r.t, err)
	return s
}

func (r *rig) request(name string) supervisor.Done {
	r.t.Helper()
	d, err := r.control().Request(context.Background(), name)
	check(r.t, err)
	return d
}

func TestStatusShowsMasterAndWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"web=tcp://127.0.0.1:0"}}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	info, err := os.Stat(r.cfg.Control)
	check(t, err)
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the socket's mode is %o", mode)
	}
	s := r.status()
	if s.Master != r.cmd.Process.Pid || s.State != "running" || s.Generation != 1 || s.Ready != 1 || s.Want != 2 || s.PIDFile != r.cfg.PIDFile || len(s.Sockets) != 1 || s.Sockets[0] != "web" {
		t.Errorf("master: %+v", s)
	}
	self, err := os.Executable()
	check(t, err)
	for slot, w := range s.Workers {
		if w.Slot != slot || w.State != "ready" || !r.living()[w.PID] || w.Memory < 1<<20 || w.Since.IsZero() || w.Restarts != 0 || filepath.Base(w.Program) != filepath.Base(self) {
			t.Errorf("worker: %+v", w)
		}
	}
	if len(s.Workers) != 2 {
		t.Errorf("%d workers", len(s.Workers))
	}
	check(t, syscall.Kill(s.Workers[1].PID, syscall.SIGKILL))
	r.awaitKind(supervisor.EventWorkerReady)
	if w := r.status().Workers[1]; w.Restarts != 1 || !strings.Contains(w.LastDeath, "killed") {
		t.Errorf("the one that was killed: %+v", w)
	}
	r.request("quit")
	r.awaitExit(0)
	if _, err := r.control().Status(context.Background()); err == nil || !strings.Contains(err.Error(), "no master at control socket "+r.cfg.Control) {
		t.Errorf("of no master: %v", err)
	}
	if _, err := os.Lstat(r.cfg.Control); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// What a worker that is not ready waits for is what it says; and one that
// cannot start shows why, and when it is tried again.
func TestStatusShowsWhatIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.mode("tells")
	r.start()
	var w supervisor.WorkerStatus
	r.awaitKind(supervisor.EventWorkerStarted)
	testkit.Until(t, patience, func() bool { w = r.status().Workers[0]; return w.Version != "" })
	if w.State != "starting" || w.Deadline == nil || w.Status != "waiting for order.*" || w.Version != "v7" || len(w.Subscriptions) != 1 || w.Subscriptions[0].Ready || w.Subscriptions[0].Queued != 3 {
		t.Errorf("worker: %+v", w)
	}
	r.request("stop")
	r.awaitExit(0)

	r = newRig(t, testConfig{Backoff: time.Hour})
	r.mode("crash")
	r.start()
	r.awaitKind(supervisor.EventWorkerExited)
	testkit.Until(t, patience, func() bool { w = r.status().Workers[0]; return w.State == "waiting" })
	if w.Deadline == nil || w.PID != 0 || w.Restarts != 1 || !strings.Contains(w.LastDeath, "exit status 3") {
		t.Errorf("the place of one that died: %+v", w)
	}
	r.request("stop")
	r.awaitExit(0)
}

// A worker's last report is on record with its end, also if it was gone before the
// report was read; of one that never reported there is none.
func TestTheLastReportIsHeard(t *testing.T) {
	t.Parallel()
	const n = 8
	r := newRig(t, testConfig{Workers: n})
	r.mode("last")
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	r.mode("ok")
	r.request("reload")
	want := lastReport()
	for range n {
		e := r.awaitKind(supervisor.EventWorkerExited)
		if e.Report == nil || !reflect.DeepEqual(*e.Report, want) {
			t.Errorf("worker %d exited; of its last report came %d ids", *e.Slot, idsOf(e.Report))
		}
	}
	r.awaitKind(supervisor.EventGenerationReady)
	r.request("quit")
	if e := r.awaitKind(supervisor.EventWorkerExited); e.Report != nil {
		t.Errorf("one that never reported: %+v", e.Report)
	}
	r.awaitExit(0)
}

func idsOf(r *sdnotify.Report) int {
	if r == nil || len(r.Left) == 0 {
		return 0
	}
	return len(r.Left[0].IDs)
}

// "each request counts"
func TestRequestsCount(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	const n = 1000
	each := func(names ...string) {
		t.Helper()
		var asking sync.WaitGroup
		for k := range 8 {
			asking.Go(func() {
				for i := k; i < len(names); i += 8 {
					if _, err := r.control().Request(context.Background(), names[i]); err != nil {
						t.Errorf("%s: %v", names[i], err)
					}
				}
			})
		}
		asking.Wait()
	}
	times := func(name string, n int) (names []string) {
		for range n {
			names = append(names, name)
		}
		return names
	}
	each(times("reopen", n)...)
	info, err := os.Stat(r.cfg.EventsFile + ".reopened")
	if s := r.status(); s.Requests != n || err != nil || info.Size() != n {
		t.Errorf("%d requests, and log files opened again %d times (%v); want %d", s.Requests, info.Size(), err, n)
	}
	each(times("scale-up", 9)...)
	each(append(times("scale-up", 6), times("scale-down", 9)...)...)
	if s := r.status(); s.Want != 7 {
		t.Errorf("%d workers are wanted, want 7", s.Want)
	}
	each(times("scale-down", 6)...)
	each(times("reload", 10)...)
	if e := r.await("the last generation", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventGenerationReady && e.Generation >= 11
	}); e.Generation != 11 {
		t.Errorf("generation %d", e.Generation)
	}
	if s := r.status(); s.Requests != n+9+15+6+10 || s.Generation != 11 || s.Reloads != 0 {
		t.Errorf("status: %+v", s)
	}
	r.request("quit")
	r.awaitExit(0)
}

func TestUpgradeOverTheControlSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start()
	r.awaitKind(supervisor.EventGenerationReady)
	// A new master that comes to nothing leaves the socket where it was.
	r.mode("crash")
	died := r.request("upgrade").PID
	r.await("its end", func(e supervisor.Event) bool { return e.Event == supervisor.EventReexecDied && e.PID == died })
	r.mode("ok")
	testkit.Until(t, patience, func() bool {
		s, err := r.control().Status(context.Background())
		return err == nil && s.Master == r.cmd.Process.Pid && s.NewMaster == 0
	})
	d := r.request("upgrade")
	r.await("the new generation", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventGenerationReady && e.Master == d.PID
	})
	old := supervisor.Control{Path: r.cfg.Control + ".oldbin"}
	was, err := old.Status(context.Background())
	check(t, err)
	if now := r.status(); now.Master != d.PID || now.OldMaster != r.cmd.Process.Pid || was.Master != r.cmd.Process.Pid || was.NewMaster != d.PID || now.Workers[0].Generation != d.Generation {
		t.Errorf("new: %+v\nold: %+v\nasked: %+v", now, was, d)
	}
	if _, err := old.Request(context.Background(), "upgrade"); err == nil || !strings.Contains(err.Error(), "is not over: QUIT") {
		t.Errorf("a second upgrade: %v", err)
	}
	_, err = old.Request(context.Background(), "quit")
	check(t, err)
	r.awaitExit(0)
	if _, err := os.Lstat(old.Path); !os.IsNotExist(err) {
		t.Errorf("the old one's socket is left: %v", err)
	}
	r.request("quit")
	r.await("stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == d.PID })
}

func TestRequestsThatCannotBe(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.mode("slow")
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	expect := func(name, want string) {
		t.Helper()
		if _, err := r.control().Request(context.Background(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	expect("explode", `no request "explode": there are reload, upgrade,`)
	r.request("pause")
	if s := r.status(); s.State != "paused" {
		t.Errorf("state %s", s.State)
	}
	expect("scale-down", "no worker to take away")
	r.request("quit")
	for _, name := range []string{"reload", "upgrade", "scale-up"} {
		expect(name, "this master is stopping")
	}
	r.request("stop")
	r.awaitExit(0)
}

// A path that is taken is somebody's; one whose owner was killed is free.
func TestControlSocketThatIsTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.cfg.PIDFile = ""
	for name, take := range map[string]func(){
		"it exists and is not a stale socket": func() { check(t, os.WriteFile(r.cfg.Control, []byte("notes"), 0o600)) },
		"a live process serves it": func() {
			l, err := net.Listen("unix", r.cfg.Control)
			check(t, err)
			t.Cleanup(func() { l.Close() })
		},
	} {
		take()
		second := r.command()
		second.Stderr, second.Stdout = nil, nil
		out, err := second.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "control socket: ") || !strings.Contains(string(out), name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		check(t, os.Rename(r.cfg.Control, filepath.Join(r.dir, "moved")))
	}
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGKILL)
	r.awaitExit(-1)
	if _, err := os.Lstat(r.cfg.Control); err != nil {
		t.Errorf("a killed master removed its socket: %v", err)
	}
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	if s := r.status(); s.Master != r.cmd.Process.Pid {
		t.Errorf("answered by %d", s.Master)
	}
	r.request("stop")
	r.awaitExit(0)
	r.cfg.Control = filepath.Join(r.dir, strings.Repeat("x", 100))
	tooLong := r.command()
	tooLong.Stderr, tooLong.Stdout = nil, nil
	if out, err := tooLong.CombinedOutput(); err == nil || !strings.Contains(string(out), "choose a shorter path") {
		t.Errorf("a path that is too long: %v %s", err, out)
	}
}
