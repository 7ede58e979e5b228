package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

const (
	unicornPatience = 30 * time.Second
	// unicornProbe is how long a request must not be answered to be called waiting.
	unicornProbe = 250 * time.Millisecond
)

// A peer is a master with two workers that answer with their pids: the real unicorn,
// or tidings run. In its directory, workers boot for as long as a file "hold" is
// there, and fail to if there is a file "broken"; "unreadable" breaks what the master
// itself reads.
type peer struct {
	t       *testing.T
	dir     string
	addr    string
	command []string
	cmd     *exec.Cmd
	exited  *loop.Loop
	names   map[int]string // of workers, by pid: a, b, …
	ready   map[int]bool   // those that the log says are
	next    int            // pid of the new master
}

var peers = []struct {
	name  string
	start func(t *testing.T, p *peer)
}{{"unicorn", ofUnicorn}, {"tidings", ofTidings}}

func ofUnicorn(t *testing.T, p *peer) {
	p.write("unicorn.conf", `
raise "unreadable" if File.size?("unreadable")
working_directory "`+p.dir+`"
worker_processes 2
listen "`+p.addr+`"
pid "pid"
stderr_path "log"
preload_app false
`)
	p.write("config.ru", `
sleep 0.02 while File.size?("hold")
raise "cannot reach the database" if File.size?("broken")
run lambda { |env| [200, {"content-type" => "text/plain"}, ["#{$$}\n"]] }
`)
	p.command = []string{testkit.Program(t, "unicorn", "unicorn"), "-E", "none", "-c", "unicorn.conf"}
}

func ofTidings(t *testing.T, p *peer) {
	worker, err := filepath.Abs("../../examples/workers/worker.py")
	p.check(err)
	p.write("app", `#!/bin/sh
while [ -s hold ]; do sleep 0.02; done
[ ! -s broken ] || { echo cannot reach the database >&2; exit 1; }
exec `+testkit.Python(t)+" "+worker+"\n")
	p.command = []string{testkit.Program(t, "tidings", "tidings"), "run", "-n", "2", "--listen", "web=tcp://" + p.addr,
		"--pid-file", "pid", "--log", "log", "--env-file", "unreadable", "--", "./app"}
}

func (p *peer) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) write(name, text string) {
	p.t.Helper()
	p.check(os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o755))
}

// newPeer starts one, with the workers a and b.
func newPeer(t *testing.T, make func(*testing.T, *peer)) *peer {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "peer") // short enough for sockets
	p := &peer{t: t, dir: dir, names: map[int]string{}, ready: map[int]bool{}}
	p.check(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p.addr = testkit.FreeAddr(t)
	p.write("unreadable", "")
	make(t, p)
	p.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", p.log())
		}
	})
	p.await("old: a b | pid old | answers", false)
	return p
}

func (p *peer) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.command[0], p.command[1:]...)
	p.cmd.Dir = p.dir
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+p.dir)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.check(p.cmd.Start())
	cmd := p.cmd
	exited := loop.Go(func(context.Context) { _ = cmd.Wait() })
	p.exited = exited
	p.t.Cleanup(func() {
		for _, pid := range p.masters() {
			for _, worker := range children(pid) {
				_ = syscall.Kill(worker, syscall.SIGKILL)
			}
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // also a new master
		<-exited.Done()
	})
}

func (p *peer) log() string {
	text, _ := os.ReadFile(filepath.Join(p.dir, "log")) // there is none yet
	return string(text)
}

// masters are the pids of those that live.
func (p *peer) masters() map[string]int {
	m := map[string]int{}
	if !p.exited.Ended() {
		m["old"] = p.cmd.Process.Pid
	}
	if pid := p.pidIn("pid"); pid != 0 && pid != p.cmd.Process.Pid {
		p.next = pid
	}
	if p.next != 0 && lives(p.next) {
		m["new"] = p.next
	}
	return m
}

// pidIn is the pid in a file, 0 if there is none.
func (p *peer) pidIn(name string) int {
	text, _ := os.ReadFile(filepath.Join(p.dir, name)) // or 0
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// The pid in what the logs say of a worker that is ready: unicorn's, and ours.
var saysReady = regexp.MustCompile(`(?m)#(\d+)\].* worker=\d+ ready$|msg="worker ready" .*\bpid=(\d+)`)

func (p *peer) readLog() {
	for _, m := range saysReady.FindAllStringSubmatch(p.log(), -1) {
		pid, _ := strconv.Atoi(m[1] + m[2]) // one of them is empty
		p.ready[pid] = true
	}
}

// view is what can be seen from outside, in the same terms for both peers: each
// master with its workers, in parentheses if they boot, and the pid files. With known,
// only workers are shown that were there before. Names has letters also for those that
// it sees for the first time.
func (p *peer) view(known bool) (text string, names map[int]string) {
	names = maps.Clone(p.names)
	masters := p.masters()
	p.readLog()
	var parts []string
	for _, who := range []string{"old", "new"} {
		pid, alive := masters[who]
		switch {
		case alive:
			workers := slices.DeleteFunc(children(pid), func(w int) bool { return w == masters["new"] })
			parts = append(parts, who+": "+p.label(names, workers, known))
		case who == "old":
			parts = append(parts, "old: "+p.cmd.ProcessState.String())
			if left := slices.DeleteFunc(slices.Sorted(maps.Keys(p.names)), func(w int) bool { return !lives(w) || masters["new"] != 0 }); len(left) > 0 {
				parts = append(parts, "left: "+p.label(names, left, true))
			}
		}
	}
	for _, file := range []string{"pid", "pid.oldbin"} {
		switch pid := p.pidIn(file); {
		case pid == p.cmd.Process.Pid:
			parts = append(parts, file+" old")
		case pid != 0 && pid == masters["new"]:
			parts = append(parts, file+" new")
		case pid != 0:
			parts = append(parts, file+" stale")
		}
	}
	return strings.Join(parts, " | "), names
}

// label names workers, and gives new ones the next letters in the order of their pids.
func (p *peer) label(names map[int]string, workers []int, known bool) string {
	var out []string
	for _, w := range workers {
		if names[w] == "" && known {
			continue
		}
		if names[w] == "" {
			names[w] = string(rune('a' + len(names)))
		}
		if name := names[w]; p.ready[w] {
			out = append(out, name)
		} else {
			out = append(out, "("+name+")")
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

// probe is what becomes of a request.
func (p *peer) probe(within time.Duration) string {
	_, err := testkit.Get(p.addr, within)
	switch {
	case err == nil:
		return "answers"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "waits"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses"
	}
	return err.Error()
}

// await waits until a view and a request are as wanted, and remembers the workers.
func (p *peer) await(want string, known bool) {
	p.t.Helper()
	end := strings.LastIndex(want, " | ")
	within := unicornProbe
	if want[end:] == " | answers" {
		within = unicornPatience // on a busy machine
	}
	var seen []string
	deadline := time.After(unicornPatience)
	for {
		got, names := p.view(known)
		if got == want[:end] {
			if got += " | " + p.probe(within); got == want {
				p.names = names
				return
			}
		}
		if len(seen) == 0 || seen[len(seen)-1] != got {
			seen = append(seen, got)
		}
		select {
		case <-time.After(20 * time.Millisecond): // to look costs the machine more than that
		case <-deadline:
			p.t.Fatalf("never was\n\t%s\nbut\n\t%s", want, strings.Join(seen[max(len(seen)-5, 0):], "\n\t"))
		}
	}
}

// pid is that of "old", which is "" too, "new" or a worker by its letter; 0 if there
// is none.
func (p *peer) pid(who string) int {
	if pid, ok := p.masters()[cmp.Or(who, "old")]; ok {
		return pid
	}
	for pid, name := range p.names {
		if name == who {
			return pid
		}
	}
	return 0
}

// children are the living processes whose parent is pid, in order.
func children(pid int) (pids []int) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range threads {
		text, _ := os.ReadFile(path) // that thread may have ended
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil && lives(child) {
				pids = append(pids, child)
			}
		}
	}
	slices.Sort(pids)
	return pids
}

// lives says whether there is a process that is no zombie.
func lives(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // there is none
	_, rest, found := strings.Cut(string(text), ") ")
	return found && rest[0] != 'Z'
}

// A visitor makes one request after the other and counts those that fail. It waits
// for as long as they wait.
type visitor struct {
	loop   *loop.Loop
	failed atomic.Int64
	first  atomic.Pointer[error]
}

func visit(addr string) *visitor {
	v := &visitor{}
	v.loop = loop.Go(func(ctx context.Context) {
		pause := time.NewTicker(10 * time.Millisecond)
		defer pause.Stop()
		for ; ctx.Err() == nil; <-pause.C {
			if _, err := testkit.Get(addr, unicornPatience); err != nil {
				v.failed.Add(1)
				v.first.CompareAndSwap(nil, &err)
			}
		}
	})
	return v
}
