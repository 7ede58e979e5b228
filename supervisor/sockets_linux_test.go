package supervisor_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// An endpoint is where a socket is, and the name that workers know it by.
type endpoint struct{ network, addr, name string }

// dial asks who serves an endpoint.
func (e endpoint) dial(t *testing.T) (pid, generation int) {
	t.Helper()
	conn, err := net.DialTimeout(e.network, e.addr, patience)
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	text, err := io.ReadAll(conn)
	var name string
	if _, scan := fmt.Sscan(string(text), &pid, &generation, &name); err != nil || scan != nil || name != e.name {
		t.Errorf("%s %s: answered %q (%v), want the name %s", e.network, e.addr, text, errors.Join(err, scan), e.name)
	}
	return pid, generation
}

// serves checks that all endpoints are served by workers of one generation.
func (r *rig) serves(endpoints []endpoint, generation int) {
	r.t.Helper()
	for _, e := range endpoints {
		if pid, g := e.dial(r.t); g != generation || !r.living()[pid] {
			r.t.Errorf("%s is served by %d of generation %d, want a worker of %d", e.addr, pid, g, generation)
		}
	}
}

// fileOf returns the file of a unix socket, to see that it stays the same.
func fileOf(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	check(t, err)
	return info
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", path, err)
	}
}

// everyKind is a master's flags for sockets of every kind, named and not.
func everyKind(t *testing.T, r *rig) (path string, endpoints []endpoint) {
	t.Helper()
	a, b := freePort(t), freePort(t)
	path = filepath.Join(r.dir, "admin.sock")
	r.cfg.Listen = []string{"web=tcp://" + a, "tcp://" + b, "admin=unix://" + path, "unix://" + path + "2"}
	return path, []endpoint{{"tcp", a, "web"}, {"tcp", b, "listen1"}, {"unix", path, "admin"}, {"unix", path + "2", "listen3"}}
}

// Sockets are the same over HUP and USR2, for old workers and new ones; the file of a
// unix socket lasts until the last master ends.
func TestSocketsOutliveWorkersAndMasters(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	path, endpoints := everyKind(t, r)
	old := startReady(r)
	file := fileOf(t, path)
	same := func() {
		t.Helper()
		if !os.SameFile(file, fileOf(t, path)) {
			t.Error("the unix socket is another one")
		}
	}
	ready := func(master int) (generation int) {
		t.Helper()
		return r.await("a ready generation", func(e supervisor.Event) bool {
			return e.Event == supervisor.EventGenerationReady && e.Master == master
		}).Generation
	}
	r.serves(endpoints, 1)
	r.signal(syscall.SIGHUP)
	ready(old)
	r.serves(endpoints, 2)
	same()

	// An upgrade that is taken back: the new master's end leaves the file.
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	ready(next)
	check(t, syscall.Kill(next, syscall.SIGQUIT))
	r.awaitKind(supervisor.EventReexecDied)
	r.serves(endpoints, 2)
	same()

	// One that goes on: so does the old master's.
	r.signal(syscall.SIGUSR2)
	next = r.awaitKind(supervisor.EventReexecStarted).PID
	generation := ready(next)
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
	r.serves(endpoints, generation)
	same()

	check(t, syscall.Kill(next, syscall.SIGQUIT))
	r.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
	for _, e := range endpoints {
		awaitRefusal(t, e.network, e.addr)
	}
	testkit.Until(t, patience, func() bool { _, err := os.Lstat(path); return err != nil }) // just after its event
}

// What listens where a socket should be is not taken over, unless nobody lives there.
func TestSocketsThatAreTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.mode("slow")
	path, endpoints := everyKind(t, r)
	startReady(r)
	worker := r.awaitWorker()
	for listen, want := range map[string]string{
		"web=tcp://" + endpoints[0].addr: "listen on tcp://" + endpoints[0].addr + ": find the owner with lsof",
		"unix://" + path:                 "listen on " + path + ": a live process serves it: find it with lsof " + path,
		"unix://" + r.cfg.EventsFile:     "listen on " + r.cfg.EventsFile + ": it exists and is not a stale socket",
		"unix://" + r.dir + "/no/where":  "listen on unix://" + r.dir + "/no/where: ",
	} {
		second := newRig(t, testConfig{Listen: []string{"first=unix://" + r.dir + "/first", listen}})
		second.cmd = second.command()
		second.cmd.Stdout, second.cmd.Stderr = nil, nil
		out, err := second.cmd.CombinedOutput()
		if err == nil || second.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s\nwant %q", listen, err, out, want)
		}
		gone(t, r.dir+"/first") // it had been opened
		gone(t, second.cfg.PIDFile)
	}
	r.serves(endpoints[:3], 1)

	// Killed, a master leaves its files; its workers go on for a while, and it is
	// them that a second master would find.
	r.signal(syscall.SIGKILL)
	r.awaitExit(-1)
	testkit.Until(t, patience, func() bool { state, _ := stat(worker); return state == "" || state == "Z" })
	fileOf(t, path)
	r.seen = nil
	startReady(r)
	r.serves(endpoints, 1)
	r.mode("ok")
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	gone(t, path)
}

// awaitWorker is the pid of the one worker that was seen to start.
func (r *rig) awaitWorker() int {
	r.t.Helper()
	for pid := range r.living() {
		return pid
	}
	r.t.Fatal("no worker was started")
	return 0
}
