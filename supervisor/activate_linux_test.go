package supervisor_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// An activated is systemd-socket-activate: it listens and, at the first connection,
// becomes the command. NOTIFY_SOCKET is ours, as systemd's would be.
type activated struct {
	cmd    *exec.Cmd
	exited *loop.Loop
	mu     sync.Mutex
	told   []sdnotify.Message
}

// activate starts a command so; the first connection is the caller's to make. Sockets
// are NAME=ADDRESS.
func activate(t *testing.T, dir string, sockets, env []string, command ...string) *activated {
	t.Helper()
	a := &activated{}
	recv, err := sdnotify.Receive(filepath.Join(dir, "notify"), func(m sdnotify.Message) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.told = append(a.told, m)
	})
	check(t, err)
	t.Cleanup(func() { recv.Close() })
	var args, names []string
	for _, s := range sockets {
		name, addr, _ := strings.Cut(s, "=")
		args, names = append(args, "--listen="+addr), append(names, name)
	}
	args = append(args, "--fdname="+strings.Join(names, ":"))
	for _, v := range append(env, "NOTIFY_SOCKET="+recv.Path(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+dir) {
		args = append(args, "--setenv="+v)
	}
	a.cmd = exec.Command(testkit.Program(t, "systemd-socket-activate", "systemd"), append(args, command...)...)
	out := &syncBuffer{}
	a.cmd.Stdout, a.cmd.Stderr = out, out
	a.cmd.WaitDelay = time.Second // a re-executed master has them, too
	check(t, a.cmd.Start())
	a.exited = loop.Go(func(context.Context) { _ = a.cmd.Wait() })
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.exited.Done()
		if t.Failed() {
			t.Logf("output:\n%s\ntold: %+v", out, a.told)
		}
	})
	testkit.Until(t, patience, func() bool { return strings.Count(out.String(), "Listening on") == len(sockets) })
	return a
}

func (a *activated) was(is func(sdnotify.Message) bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.told, is)
}

// A manager runs one worker, with one socket of the name web.
type manager struct {
	ready func() // waits for it
	said  func(status string) bool
	quit  func() // asks the worker to go
	code  func() int
}

// underMaster and underSystemd start a worker at addr.
func underMaster(t *testing.T, addr string, mode string, env, command []string) manager {
	r := newRig(t, testConfig{Listen: []string{"web=tcp://" + addr}})
	r.mode(mode)
	if command != nil {
		r.cfg.Command = command
	}
	r.start(env...)
	return manager{
		ready: func() { r.awaitKind(supervisor.EventWorkerReady) },
		said: func(status string) bool {
			log := r.stderr.String()
			return strings.Contains(log, " status="+strconv.Quote(status)) || strings.Contains(log, " status="+status+"\n")
		},
		quit: func() { r.signal(syscall.SIGQUIT) },
		code: func() int {
			e := r.awaitKind(supervisor.EventWorkerExited)
			r.awaitExit(0)
			if e.ExitCode == nil {
				t.Errorf("ended by %s", e.Signal)
				return -1
			}
			return *e.ExitCode
		},
	}
}

func underSystemd(t *testing.T, addr string, mode string, env, command []string) manager {
	r := newRig(t, testConfig{}) // for its directory
	r.mode(mode)
	if command == nil {
		command = r.cfg.Command
	}
	a := activate(t, r.dir, []string{"web=" + addr}, env, command...)
	first, err := net.Dial("tcp", addr) // has it start
	check(t, err)
	t.Cleanup(func() { first.Close() })
	_, err = io.WriteString(first, "GET / HTTP/1.0\r\n\r\n")
	check(t, err)
	return manager{
		ready: func() {
			testkit.Until(t, patience, func() bool { return a.was(func(m sdnotify.Message) bool { return m.Ready }) })
		},
		said: func(status string) bool {
			return a.was(func(m sdnotify.Message) bool { return m.HasStatus && m.Status == status })
		},
		quit: func() { check(t, a.cmd.Process.Signal(syscall.SIGQUIT)) },
		code: func() int {
			if err := a.exited.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !a.was(func(m sdnotify.Message) bool { return m.Stopping }) {
				t.Error("STOPPING was not told")
			}
			return a.cmd.ProcessState.ExitCode()
		},
	}
}

// A worker is the same under our master and under systemd: it takes its socket, says
// what it does and that it is ready, and drains on QUIT.
func TestWorkersUnderOurMasterAndUnderSystemd(t *testing.T) {
	t.Parallel()
	broker := testkit.Server(t)
	python := testkit.Python(t)
	for _, w := range []struct {
		name, mode      string
		env, command    []string
		serving, ending string // STATUS
		url, body       string
	}{
		{name: "examples/web", mode: "web", serving: "serving 3 subscriptions", ending: "draining", url: "/items/1", body: "a lamp"},
		{name: "examples/billing", mode: "billing", env: []string{"TIDINGS_URL=" + broker.URL()}, serving: "serving 3 subscriptions", ending: "draining"},
		{name: "examples/workers/worker.py", command: []string{python, example(t, "worker.py")}, serving: "serving 1 sockets", ending: "ends: QUIT", url: "/", body: "\n"},
	} {
		for name, under := range map[string]func(*testing.T, string, string, []string, []string) manager{
			"tidings": underMaster, "systemd-socket-activate": underSystemd,
		} {
			t.Run(name+"/"+w.name, func(t *testing.T) {
				t.Parallel()
				addr := freePort(t)
				m := under(t, addr, w.mode, w.env, w.command)
				m.ready()
				testkit.Until(t, patience, func() bool { return m.said(w.serving) })
				if w.url != "" {
					answers(t, "http://"+addr+w.url, w.body)
				}
				m.quit()
				if code := m.code(); code != 0 {
					t.Errorf("exit status %d", code)
				}
				if !m.said(w.ending) {
					t.Errorf("it did not say %q", w.ending)
				}
				awaitRefusal(t, "tcp", addr)
			})
		}
	}
}

func answers(t *testing.T, url, part string) {
	t.Helper()
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	check(t, err)
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), part) {
		t.Errorf("%s: status %d, %q, %v", url, resp.StatusCode, text, err)
	}
}

// A master that systemd gives sockets takes those of its flags' names, and hands on
// the others, of one name or several, over HUP and USR2, too. Their files are
// systemd's and stay.
func TestMasterUnderSystemd(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	unix := filepath.Join(r.dir, "admin.sock")
	endpoints := []endpoint{{"tcp", freePort(t), "web"}, {"unix", unix, "admin"}, {"tcp", freePort(t), "more"}, {"tcp", freePort(t), "more"}}
	own := endpoint{"unix", filepath.Join(r.dir, "own.sock"), "own"}
	r.cfg.Listen = []string{"own=unix://" + own.addr, "admin=unix://" + unix, "web=tcp://" + endpoints[0].addr}
	var sockets []string
	for _, e := range endpoints {
		sockets = append(sockets, e.name+"="+e.addr)
	}
	a := activate(t, r.dir, sockets, nil, r.command().Args...)
	first, err := net.Dial("tcp", endpoints[0].addr)
	check(t, err)
	defer first.Close()
	endpoints = append(endpoints, own)
	defer func() {
		for pid := range r.living() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // if the test has failed
		}
	}()

	old := r.awaitKind(supervisor.EventGenerationReady).Master
	if old != a.cmd.Process.Pid {
		t.Errorf("the master is %d", old)
	}
	testkit.Until(t, patience, func() bool { return a.was(func(m sdnotify.Message) bool { return m.Ready && m.MainPID == old }) })
	r.serves(endpoints, 1)
	check(t, syscall.Kill(old, syscall.SIGHUP))
	r.awaitKind(supervisor.EventGenerationReady)
	r.serves(endpoints, 2)
	check(t, syscall.Kill(old, syscall.SIGUSR2))
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	r.awaitKind(supervisor.EventGenerationReady)
	check(t, syscall.Kill(old, syscall.SIGQUIT))
	<-a.exited.Done()
	r.serves(endpoints, 3)
	testkit.Until(t, patience, func() bool { return a.was(func(m sdnotify.Message) bool { return m.Ready && m.MainPID == next }) })
	check(t, syscall.Kill(next, syscall.SIGQUIT))
	r.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
	testkit.Until(t, patience, func() bool { _, err := os.Lstat(own.addr); return err != nil })
	fileOf(t, unix)
}
