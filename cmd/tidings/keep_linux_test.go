package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

// A keeper is a directory with a hub that masters keep, and the masters.
type keeper struct {
	t       *testing.T
	dir     string
	masters []*exec.Cmd
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "keep") // short enough for sockets
	must(t, err)
	k := &keeper{t: t, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"log", "other.log", "hub/hub.log"} {
				text, _ := os.ReadFile(k.path(name))
				t.Logf("%s:\n%s", name, text)
			}
		}
		os.RemoveAll(dir)
	})
	t.Cleanup(func() { // a test that has failed may leave all of it
		for _, cmd := range k.masters {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
		for pid := range k.workers() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if r, err := hub.Find(k.path("hub")); err == nil && r != nil && r.PID != os.Getpid() {
			_ = syscall.Kill(r.PID, syscall.SIGKILL)
		}
	})
	return k
}

func (k *keeper) path(name string) string { return filepath.Join(k.dir, name) }

// master starts one: with pid file, log and events of that name, or none for "".
func (k *keeper) master(name string, env []string, flags ...string) *exec.Cmd {
	k.t.Helper()
	args := append([]string{"run", "-n", "2", "--hub", "hub", "--hub-listen", "127.0.0.1:0", "--pid-file", name + "pid", "--log", name + "log", "--events", name + "events"}, flags...)
	cmd := exec.Command(testkit.Program(k.t, "tidings", "tidings"), append(args, "--", "clerk")...)
	cmd.Dir = k.dir
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+k.dir, "CLERK_JOURNAL="+k.path("journal")), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(k.t, cmd.Start())
	k.masters = append(k.masters, cmd)
	return cmd
}

// logged waits until a log has so many lines with a text.
func (k *keeper) logged(name, text string, times int) {
	k.t.Helper()
	testkit.Until(k.t, patience, func() bool {
		b, err := os.ReadFile(k.path(name + "log"))
		return err == nil && strings.Count(string(b), text) >= times
	})
}

// end has a master end, which must end well.
func (k *keeper) end(cmd *exec.Cmd, sig syscall.Signal) {
	k.t.Helper()
	must(k.t, cmd.Process.Signal(sig))
	if err := cmd.Wait(); err != nil && sig != syscall.SIGKILL {
		k.t.Errorf("the master ends with %v", err)
	}
}

// running is the pid of the hub.
func (k *keeper) running() int {
	k.t.Helper()
	r, err := hub.Find(k.path("hub"))
	must(k.t, err)
	if r == nil {
		return 0
	}
	return r.PID
}

// gone waits until a process that is not a child of the test's has ended.
func (k *keeper) gone(pid int) {
	k.t.Helper()
	testkit.Until(k.t, patience, func() bool { return syscall.Kill(pid, 0) != nil })
}

// entries are the lines of the journal, by worker.
func (k *keeper) entries() (pids []int, what []string) {
	text, _ := os.ReadFile(k.path("journal")) // there is none yet
	for l := range strings.Lines(string(text)) {
		pid, rest, ok := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		n, err := strconv.Atoi(pid)
		if ok && err == nil {
			pids, what = append(pids, n), append(what, rest)
		}
	}
	return pids, what
}

// workers are the pids of all that were ever started, with the brokers they were given.
func (k *keeper) workers() map[int]string {
	all := map[int]string{}
	pids, what := k.entries()
	for i, pid := range pids {
		if url, ok := strings.CutPrefix(what[i], "url="); ok {
			all[pid] = url
		}
	}
	return all
}

// A stream publishes durable events until it is told to stop, and knows which were
// accepted.
type streamOf struct {
	k    *keeper
	bus  *tidings.Bus
	run  *loop.Loop
	mu   sync.Mutex
	sent []string
}

func (k *keeper) publish() *streamOf {
	k.t.Helper()
	r, err := hub.Find(k.path("hub"))
	must(k.t, err)
	bus, err := tidings.Open(k.t.Context(), r.URL, tidings.Options{App: "shop", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	must(k.t, err)
	k.t.Cleanup(func() { _ = bus.Close() })
	s := &streamOf{k: k, bus: bus}
	s.run = loop.Go(func(ctx context.Context) {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			<-tick.C
			id := fmt.Sprint("event-", i)
			until, cancel := context.WithTimeout(context.Background(), patience)
			err := bus.PublishEvent(until, tidings.NewEvent(tidings.EventFields{Topic: "order.placed", ID: id, Payload: id}))
			cancel()
			if err != nil {
				k.t.Errorf("%s: %v", id, err)
				continue
			}
			s.mu.Lock()
			s.sent = append(s.sent, id)
			s.mu.Unlock()
		}
	})
	return s
}

func (s *streamOf) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// more waits until so many more were accepted.
func (s *streamOf) more(n int) {
	s.k.t.Helper()
	before := s.accepted()
	testkit.Until(s.k.t, patience, func() bool { return s.accepted() >= before+n })
}

// end stops it, and waits until what was accepted is handled; it returns how many were
// handled more than once.
func (s *streamOf) end() (doubled int) {
	s.k.t.Helper()
	s.run.StopAndWait()
	var counts map[string]int
	missing := func() (n int) {
		counts = map[string]int{}
		_, what := s.k.entries()
		for _, id := range what {
			counts[id]++
		}
		for _, id := range s.sent {
			if counts[id] == 0 {
				n++
			}
		}
		return n
	}
	testkit.Until(s.k.t, patience, func() bool { return missing() == 0 })
	for _, id := range s.sent {
		doubled += counts[id] - 1
	}
	s.k.t.Logf("%d events were accepted and handled, %d of them again", len(s.sent), doubled)
	return doubled
}

// Neither HUP nor USR2 touches the hub: its process stays, and no event is lost or
// doubled. The new master has it then, and stops it when its workers have ended.
func TestKeptHubOutlivesDeploys(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	first := k.master("", nil)
	k.logged("", "generation ready", 1)
	pid := k.running()
	load := k.publish()
	load.more(50)
	must(t, first.Process.Signal(syscall.SIGHUP))
	k.logged("", "generation ready", 2)
	load.more(50)
	must(t, first.Process.Signal(syscall.SIGUSR2))
	k.logged("", "generation ready", 3)
	second, err := strconv.Atoi(strings.TrimSpace(read(t, k.path("pid"))))
	must(t, err)
	if second == first.Process.Pid {
		t.Fatal("USR2 has made no new master")
	}
	k.end(first, syscall.SIGQUIT)
	load.more(50)
	must(t, syscall.Kill(second, syscall.SIGHUP))
	k.logged("", "generation ready", 4)
	load.more(50)
	if now := k.running(); now != pid || pid == 0 {
		t.Errorf("the hub's pid is %d, it was %d", now, pid)
	}
	if len(k.workers()) != 8 {
		t.Errorf("there were %d workers, want those of 4 generations", len(k.workers()))
	}
	if doubled := load.end(); doubled > 0 {
		t.Errorf("%d events were handled twice", doubled)
	}
	_ = load.bus.Close()
	must(t, syscall.Kill(second, syscall.SIGQUIT))
	k.gone(second)
	if now := k.running(); now != 0 {
		t.Errorf("the hub %d runs after its last master", now)
	}
	events := read(t, k.path("events"))
	if strings.LastIndex(events, `"worker_exited"`) > strings.Index(events, `"hub_exited"`) || strings.Count(events, `"hub_exited"`) != 1 {
		t.Error("the hub did not end once, after the last worker")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// A hub that is killed is started again by the master, whether that has started it or
// has it from another; workers stay, and nothing that was accepted is lost.
func TestKeptHubIsStartedAgain(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	master := k.master("", nil)
	k.logged("", "generation ready", 1)
	load := k.publish()
	for n := range 2 {
		load.more(100)
		pid := k.running()
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		testkit.Until(t, patience, func() bool { now := k.running(); return now != 0 && now != pid })
		load.more(100)
		if n == 0 { // and again under a master that has not started it
			must(t, master.Process.Signal(syscall.SIGUSR2))
			k.logged("", "generation ready", 2)
			k.end(master, syscall.SIGQUIT)
		}
	}
	status := exec.Command(testkit.Program(t, "tidings", "tidings"), "status", "--pid-file", k.path("pid"))
	out, err := status.CombinedOutput()
	must(t, err)
	if want := fmt.Sprintf("hub %d, running for ", k.running()); !strings.Contains(string(out), want) || !strings.Contains(string(out), "1 restarts, the last: it is gone") {
		t.Errorf("tidings status does not show the hub (%q):\n%s", want, out)
	}
	load.end()
	if len(k.workers()) != 4 {
		t.Errorf("there were %d workers, want those of two masters", len(k.workers()))
	}
	last, err := strconv.Atoi(strings.TrimSpace(read(t, k.path("pid"))))
	must(t, err)
	must(t, syscall.Kill(last, syscall.SIGTERM))
	k.gone(last)
	if now := k.running(); now != 0 {
		t.Errorf("the hub %d runs after its last master", now)
	}
}

// A hub that somebody else runs is used, and left alone; a broker that the environment
// names is not replaced.
func TestKeptHubOfOthersIsLeftAlone(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	h, err := hub.Start(t.Context(), hub.Options{Dir: k.path("hub"), Addr: "127.0.0.1:0", Logger: quietLog()})
	must(t, err)
	t.Cleanup(func() { _, err := h.Stop(context.Background()); must(t, err) })
	master := k.master("", []string{"TIDINGS_URL="})
	other := k.master("other.", []string{"TIDINGS_URL=" + h.URL() + "&max-bytes=1GiB"})
	k.logged("", "generation ready", 1)
	k.logged("other.", "generation ready", 1)
	k.end(master, syscall.SIGTERM)
	k.end(other, syscall.SIGTERM)
	if now := k.running(); now != os.Getpid() {
		t.Errorf("the hub is that of %d, want that of this process", now)
	}
	urls := map[string]int{}
	for _, url := range k.workers() {
		urls[url]++
	}
	if urls[h.URL()] != 2 || urls[h.URL()+"&max-bytes=1GiB"] != 2 {
		t.Errorf("the workers were given the brokers %v", urls)
	}
	if strings.Contains(read(t, k.path("log")), "hub started") {
		t.Error("the master has started a hub beside")
	}
}

// Of several masters the last one stops the hub, and one that starts after a master
// was killed finds the hub and has it.
func TestKeptHubStopsWithItsLastMaster(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	first := k.master("", nil)
	k.logged("", "generation ready", 1)
	pid := k.running()
	second := k.master("other.", nil)
	k.logged("other.", "generation ready", 1)
	k.end(first, syscall.SIGKILL)
	must(t, os.Remove(k.path("pid")))
	third := k.master("third.", nil)
	k.logged("third.", "generation ready", 1)
	k.end(second, syscall.SIGTERM)
	if now := k.running(); now != pid {
		t.Fatalf("the hub is %d, want %d, which the last master uses", now, pid)
	}
	k.end(third, syscall.SIGQUIT)
	if now := k.running(); now != 0 {
		t.Errorf("the hub %d runs after its last master", now)
	}
}

// Workers wait for a hub that does not start, and the master says why.
func TestKeptHubDoesNotStart(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	master := k.master("", nil, "--hub-listen", taken.Addr().String())
	k.logged("", "hub died", 2)
	if text := read(t, k.path("log")); !strings.Contains(text, "cannot listen on "+taken.Addr().String()) || strings.Contains(text, "worker started") {
		t.Errorf("the log does not say why the hub does not start, or workers were started:\n%s", text)
	}
	must(t, taken.Close())
	k.logged("", "generation ready", 1)
	k.end(master, syscall.SIGTERM)
	if now := k.running(); now != 0 {
		t.Errorf("the hub %d runs after its master", now)
	}
}
