//go:build unix

package supervisor_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/billing"
	"github.com/tidings-go/tidings/examples/web"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// patience is how long a test waits for what must happen; nothing else in
// these tests depends on time.
const patience = 30 * time.Second

// TestMain lets the test binary play all parts: `__exec`, `master CONFIG` and
// `worker DIR`.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "__exec":
			fmt.Fprintln(os.Stderr, supervisor.ExecStub(os.Args[2:]))
			os.Exit(127)
		case "master":
			os.Exit(masterMain(os.Args[2]))
		case "worker":
			os.Exit(workerMain(os.Args[2]))
		}
	}
	goleak.VerifyTestMain(m)
}

// testConfig is what of Config a test sets, plus where events go.
type testConfig struct {
	Workers                                                        int
	Listen                                                         []string
	Command                                                        []string
	PIDFile, EventsFile, Control, Dir, EnvFile, Umask, User, State string
	ReadyTimeout, DrainTimeout, StopTimeout, Watchdog, Backoff     time.Duration
	TermGraceful                                                   bool
	LogPrefix                                                      bool
	BackoffMax                                                     time.Duration // 8 times Backoff if 0
}

func masterMain(text string) int {
	var c testConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	events, err := os.OpenFile(c.EventsFile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		panic(err)
	}
	err = supervisor.Run(context.Background(), supervisor.Config{
		Command: c.Command, Workers: c.Workers, Listen: c.Listen, PIDFile: c.PIDFile, Control: c.Control, LogPrefix: c.LogPrefix, Dir: c.Dir, State: c.State, EnvFile: c.EnvFile, Umask: c.Umask, User: c.User, TermGraceful: c.TermGraceful,
		ReadyTimeout: c.ReadyTimeout, DrainTimeout: c.DrainTimeout, StopTimeout: c.StopTimeout, Watchdog: c.Watchdog,
		BackoffMin: c.Backoff, BackoffMax: max(8*c.Backoff, c.BackoffMax),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Events: events,
		Reopen: func() error { return tally(c.EventsFile + ".reopened") },
	})
	events.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "LEAK", err)
		return 9
	}
	return 0
}

// tally makes a file one byte longer.
func tally(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{'.'})
	return errors.Join(err, f.Close())
}

// workerMain behaves as dir/mode says at its start: "ok" serves; "crash" dies
// before it is ready, "dies" after; "silent" never is ready; "slow" drains
// until somebody opens dir/gate; "tells" is as silent, and reports what it waits
// for; "last" reports much when told to go, and is gone at once; "stubborn" ignores
// QUIT and TERM; "hung" is ready but sends no watchdog; "app" and "http" are built
// on package worker; "web" and "billing" are the examples.
func workerMain(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "mode"))
	if err != nil {
		panic(err)
	}
	mode := strings.TrimSpace(string(text))
	switch mode {
	case "app":
		return appMain(dir)
	case "http":
		return httpMain(dir)
	case "web":
		return webMain()
	case "billing":
		return billingMain()
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1)
	if mode == "hung" {
		signal.Reset()
	}
	if mode == "crash" {
		fmt.Fprintln(os.Stderr, "cannot reach the database")
		return 3
	}
	var conns sync.WaitGroup
	listeners, err := sdnotify.Listeners()
	if err != nil {
		panic(err)
	}
	var accepting []*loop.Loop
	for name, ls := range listeners {
		for _, l := range ls {
			accepting = append(accepting, loop.Go(func(context.Context) {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conns.Go(func() {
						fmt.Fprintln(conn, os.Getpid(), os.Getenv("TIDINGS_GENERATION"), name)
						conn.Close()
					})
				}
			}))
		}
	}
	orphaned := make(chan struct{})
	fd, err := strconv.Atoi(os.Getenv("TIDINGS_PARENT_FD"))
	if err != nil {
		panic(err)
	}
	loop.Go(func(context.Context) {
		_, _ = io.Copy(io.Discard, os.NewFile(uintptr(fd), "parent"))
		close(orphaned)
	})
	if mode == "tells" {
		r := sdnotify.Report{Version: "v7", Subscriptions: []sdnotify.SubscriptionReport{{Pattern: "order.*", Group: "billing", Durable: true, Queued: 3}}}
		if err := errors.Join(sdnotify.Notify(sdnotify.Status("waiting for order.*")), r.Send()); err != nil {
			panic(err)
		}
	}
	tell, final := reportOf(dir)
	tell()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	if mode != "silent" && mode != "tells" {
		if err := sdnotify.Notify(sdnotify.Ready); err != nil {
			panic(err)
		}
	}
	if mode == "dies" {
		return 4
	}
	for {
		select {
		case <-again.C:
			tell()
		case <-orphaned:
			if err := os.WriteFile(filepath.Join(dir, "orphaned"), nil, 0o600); err != nil {
				panic(err)
			}
			return 0
		case s := <-signals:
			if s == syscall.SIGUSR1 {
				if err := tally(filepath.Join(dir, "usr1")); err != nil {
					panic(err)
				}
				continue
			}
			if mode == "stubborn" {
				continue
			}
			if mode == "last" {
				if err := lastReport().Send(); err != nil {
					panic(err)
				}
				return 0
			}
			if mode == "slow" && s == syscall.SIGQUIT {
				if _, err := os.ReadFile(filepath.Join(dir, "gate")); err != nil {
					panic(err)
				}
			}
			for _, ls := range listeners {
				for _, l := range ls {
					l.Close()
				}
			}
			for _, l := range accepting {
				l.StopAndWait()
			}
			conns.Wait()
			final()
			return 0
		}
	}
}

// reportOf returns what tells the master what dir/report has, if it is there, and
// what does so for the last time, with the ids of what is left.
func reportOf(dir string) (tell, final func()) {
	text, err := os.ReadFile(filepath.Join(dir, "report"))
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, func() {}
	}
	var s sdnotify.SubscriptionReport
	if err := errors.Join(err, json.Unmarshal(text, &s)); err != nil {
		panic(err)
	}
	r := sdnotify.Report{Version: "v7", Subscriptions: []sdnotify.SubscriptionReport{s}}
	send := func() {
		if err := r.Send(); err != nil {
			panic(err)
		}
	}
	return send, func() {
		r.Final = true
		if s.Durable && s.Left > 0 {
			l := sdnotify.LeftReport{Pattern: s.Pattern, Group: s.Group}
			for i := range s.Left {
				l.IDs = append(l.IDs, fmt.Sprintf("event-%d", i))
			}
			r.Left = append(r.Left, l)
		}
		send()
	}
}

// lastReport takes many datagrams.
func lastReport() sdnotify.Report {
	r := sdnotify.Report{Version: "v8", Final: true, Subscriptions: []sdnotify.SubscriptionReport{{Pattern: "order.*", Group: "billing", Received: 5000, Left: 5000}}}
	r.Left = []sdnotify.LeftReport{{Pattern: "order.*", Group: "billing"}}
	for i := range 5000 {
		r.Left[0].IDs = append(r.Left[0].IDs, fmt.Sprintf("id-of-event-%d", i))
	}
	return r
}

// A rig is a master under test and what it has said.
type rig struct {
	t      *testing.T
	dir    string
	bin    string // a symbolic link to the test binary
	cfg    testConfig
	cmd    *exec.Cmd
	wrap   func(*exec.Cmd) // how it is started, if not directly
	stderr *syncBuffer
	exited chan error
	events chan supervisor.Event
	seen   []supervisor.Event
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, cfg testConfig) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "supervisor") // short enough for sockets
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, bin: filepath.Join(dir, "master"), stderr: &syncBuffer{}}
	self, err := os.Executable()
	check(t, err)
	check(t, os.Symlink(self, r.bin))
	cfg.Command = []string{self, "worker", dir}
	cfg.PIDFile = filepath.Join(dir, "pid")
	cfg.EventsFile = filepath.Join(dir, "events")
	cfg.Control = supervisor.ControlPath(cfg.PIDFile)
	if cfg.Backoff == 0 {
		cfg.Backoff = 10 * time.Millisecond
	}
	r.cfg = cfg
	r.mode("ok")
	check(t, syscall.Mkfifo(cfg.EventsFile, 0o600))
	check(t, syscall.Mkfifo(filepath.Join(dir, "gate"), 0o600))
	// Both ends, so that the stream does not end between two masters.
	fifo, err := os.OpenFile(cfg.EventsFile, os.O_RDWR, 0)
	check(t, err)
	r.events = make(chan supervisor.Event, 4096)
	reader := loop.Go(func(context.Context) {
		s := bufio.NewScanner(fifo)
		s.Buffer(nil, 1<<20) // an event may hold a report
		for s.Scan() {
			var e supervisor.Event
			if err := json.Unmarshal(s.Bytes(), &e); err != nil {
				t.Errorf("event %q: %v", s.Text(), err)
			}
			r.events <- e
		}
	})
	t.Cleanup(func() { fifo.Close(); <-reader.Done() })
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mode(mode string) {
	r.t.Helper()
	// Renamed into place, so that a worker that boots never reads half of it.
	tmp := filepath.Join(r.dir, "mode.new")
	check(r.t, os.WriteFile(tmp, []byte(mode), 0o600))
	check(r.t, os.Rename(tmp, filepath.Join(r.dir, "mode")))
}

func (r *rig) command(env ...string) *exec.Cmd {
	text, err := json.Marshal(r.cfg)
	check(r.t, err)
	cmd := exec.Command(r.bin, "master", string(text))
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+r.dir), env...)
	cmd.Stderr = r.stderr
	cmd.Stdout = r.stderr
	cmd.WaitDelay = time.Second
	if r.wrap != nil {
		r.wrap(cmd)
	}
	return cmd
}

// start runs the master until the test ends.
func (r *rig) start(env ...string) *rig {
	r.t.Helper()
	r.cmd = r.command(env...)
	r.exited = make(chan error, 1)
	check(r.t, r.cmd.Start())
	waiting := loop.Go(func(context.Context) { r.exited <- r.cmd.Wait() })
	r.t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		for pid := range r.living() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-waiting.Done()
		if r.t.Failed() {
			r.t.Logf("master's output:\n%s", r.stderr)
			for _, e := range r.seen {
				line, _ := json.Marshal(e)
				r.t.Logf("%s", line)
			}
		}
	})
	return r
}

// startReady returns the master's pid once its workers are ready.
func startReady(r *rig) int {
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	return r.cmd.Process.Pid
}

// living returns the workers and re-executed masters not known to have ended.
func (r *rig) living() map[int]bool {
	pids := map[int]bool{}
	for _, e := range r.seen {
		switch e.Event {
		case supervisor.EventWorkerStarted, supervisor.EventReexecStarted:
			pids[e.PID] = true
		case supervisor.EventWorkerExited, supervisor.EventReexecDied:
			delete(pids, e.PID)
		case supervisor.EventStopped:
			delete(pids, e.Master)
		}
	}
	return pids
}

// await reads events until one fits.
func (r *rig) await(what string, fits func(supervisor.Event) bool) supervisor.Event {
	r.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-r.events:
			r.seen = append(r.seen, e)
			if fits(e) {
				return e
			}
		case <-timeout:
			r.t.Fatalf("no %s within %v", what, patience)
		}
	}
}

func (r *rig) awaitKind(kind string) supervisor.Event {
	r.t.Helper()
	return r.await(kind, func(e supervisor.Event) bool { return e.Event == kind })
}

func (r *rig) signal(s syscall.Signal) {
	r.t.Helper()
	check(r.t, r.cmd.Process.Signal(s))
}

// awaitExit waits for the master started by start, and checks its status.
func (r *rig) awaitExit(want int) {
	r.t.Helper()
	select {
	case <-r.exited:
		if got := r.cmd.ProcessState.ExitCode(); got != want {
			r.t.Errorf("master: exit status %d, want %d", got, want)
		}
	case <-time.After(patience):
		r.t.Fatalf("the master did not end within %v", patience)
	}
}

// index finds an event that was seen.
func (r *rig) index(kind string, pid int) int {
	r.t.Helper()
	for i, e := range r.seen {
		if e.Event == kind && e.PID == pid {
			return i
		}
	}
	r.t.Fatalf("no %s of %d", kind, pid)
	return -1
}

func (r *rig) pidIn(name string) int {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	check(r.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	check(r.t, err)
	return pid
}

// A client connects in a loop and counts what is refused or cut off.
type client struct {
	loop   *loop.Loop
	served map[string]int // by "pid generation socket"
	failed []error
	first  chan struct{}
}

func startClient(addr string) *client {
	c := &client{served: map[string]int{}, first: make(chan struct{})}
	c.loop = loop.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			conn, err := net.DialTimeout("tcp", addr, patience)
			if err != nil {
				c.failed = append(c.failed, err)
				continue
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			conn.Close()
			if err != nil {
				c.failed = append(c.failed, err)
				continue
			}
			if len(c.served) == 0 {
				close(c.first)
			}
			c.served[strings.TrimSpace(line)]++
		}
	})
	return c
}

// freePort returns an address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	return testkit.FreeAddr(t)
}

// webMain and billingMain are the examples, as workers.
func webMain() int { return exitCode(web.Run(context.Background(), tidings.Default(), "")) }

func billingMain() int { return exitCode(billing.Run(context.Background(), nil)) }

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
