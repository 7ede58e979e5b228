//go:build unix

package worker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/worker"
)

// TestMain makes the test binary the worker that the tests start.
func TestMain(m *testing.M) {
	if mode := os.Getenv("WORKER_TEST"); mode != "" {
		os.Exit(child(mode))
	}
	os.Exit(m.Run())
}

// child is an app with one event in hand whose handler ends when standard input
// does.
func child(mode string) int {
	ctx := context.Background()
	switch mode {
	case "durable":
		return ended(durableChild(ctx))
	case "leaves":
		return ended(leavingChild(ctx))
	}
	bus, err := tidings.New(tidings.Options{App: "child"})
	if err != nil {
		return 3
	}
	reopened := func() error { fmt.Println("reopened"); return nil }
	if mode == "plain" {
		reopened = nil
	}
	err = worker.Run(ctx, worker.Options{Bus: bus, DrainTimeout: 3 * time.Second, Reopen: reopened, Setup: func(ctx context.Context) error {
		if mode == "broken" {
			return errors.New("no database")
		}
		_, err := bus.Subscribe(ctx, "x", func(hctx context.Context, _ tidings.Event) error {
			if mode == "hang" {
				select {}
			}
			_, err := io.Copy(io.Discard, os.Stdin)
			fmt.Println("handled")
			return err
		}, nil)
		return errors.Join(err, bus.Publish(ctx, "x", nil))
	}})
	return ended(err)
}

func ended(err error) int {
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("clean")
	return 0
}

type process struct {
	*exec.Cmd
	socket string
	states chan sdnotify.Message
	stdin  io.WriteCloser
	master *os.File
	lines  *bufio.Scanner
	stderr *strings.Builder
}

func start(t *testing.T, mode string, env ...string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "w") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &process{Cmd: exec.Command(os.Args[0]), states: make(chan sdnotify.Message, 16), stderr: new(strings.Builder)}
	socket := filepath.Join(dir, "n")
	recv, err := sdnotify.Receive(socket, func(m sdnotify.Message) { p.states <- m })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = recv.Close() })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.master = w
	p.ExtraFiles = []*os.File{r}
	p.socket = socket
	p.Env = append(append(os.Environ(), "WORKER_TEST="+mode, "NOTIFY_SOCKET="+socket, "TIDINGS_PARENT_FD=3"), env...)
	p.Stderr = p.stderr
	p.stdin, _ = p.StdinPipe()
	out, _ := p.StdoutPipe()
	p.lines = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() { _ = p.Process.Kill(); _ = w.Close() })
	return p
}

func (p *process) await(t *testing.T, what string, is func(sdnotify.Message) bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case m := <-p.states:
			if is(m) {
				return
			}
		case <-timeout:
			t.Fatalf("%s never came; stderr:\n%s", what, p.stderr)
		}
	}
}

func (p *process) ready(t *testing.T) {
	t.Helper()
	p.await(t, "READY", func(m sdnotify.Message) bool { return m.Ready })
}

func (p *process) end(t *testing.T, code int, want ...string) {
	t.Helper()
	var got []string
	for p.lines.Scan() {
		got = append(got, p.lines.Text())
	}
	_ = p.Wait()
	if c := p.ProcessState.ExitCode(); c != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", c, code, p.stderr)
	}
	if out := strings.Join(got, "\n"); !strings.Contains(out, strings.Join(want, "\n")) {
		t.Errorf("printed %q, want %q", out, want)
	}
}

func TestDrainsWhenTold(t *testing.T) {
	for name, tell := range map[string]func(*process) error{
		"QUIT":        func(p *process) error { return p.Process.Signal(syscall.SIGQUIT) },
		"TERM":        func(p *process) error { return p.Process.Signal(syscall.SIGTERM) },
		"INT":         func(p *process) error { return p.Process.Signal(syscall.SIGINT) },
		"master gone": func(p *process) error { return p.master.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "sound")
			p.ready(t)
			if err := tell(p); err != nil {
				t.Fatal(err)
			}
			// systemd may have a shorter bound than we.
			p.await(t, "STOPPING, and how long it takes", func(m sdnotify.Message) bool { return m.Stopping && m.ExtendTimeout > 3*time.Second })
			_ = p.stdin.Close() // only now the handler can finish
			p.end(t, 0, "handled", "clean")
		})
	}
}

func TestASetupThatFailsIsNeverReady(t *testing.T) {
	p := start(t, "broken")
	p.end(t, 1, "error: worker: set up: no database")
	for {
		select {
		case m := <-p.states:
			if m.Ready {
				t.Errorf("it said %+v", m)
			}
			continue
		default:
		}
		return
	}
}

func TestAHungHandlerIsNamed(t *testing.T) {
	p := start(t, "hang")
	p.ready(t)
	if err := p.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	p.end(t, 1, "error: ")
	if s := p.stderr.String(); !strings.Contains(s, "what still runs") || !strings.Contains(s, "worker_test.go") {
		t.Errorf("no stack of the hung handler:\n%s", s)
	}
}

// The master kills sooner after TERM than after QUIT, and says so. Others do not.
func TestAQuickStopIsQuick(t *testing.T) {
	for name, c := range map[string]struct {
		signal syscall.Signal
		env    string
		within string
	}{
		"TERM": {syscall.SIGTERM, "TIDINGS_STOP_TIMEOUT=200ms", "within=100ms"},
		"INT":  {syscall.SIGINT, "TIDINGS_STOP_TIMEOUT=2100ms", "within=1.1s"},
		"QUIT": {syscall.SIGQUIT, "TIDINGS_STOP_TIMEOUT=200ms", "within=3s"},
		"none": {syscall.SIGTERM, "TIDINGS_STOP_TIMEOUT=", "within=3s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, "hang", c.env)
			p.ready(t)
			if err := p.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			p.end(t, 1, "error: ")
			if s := p.stderr.String(); !strings.Contains(s, c.within) || !strings.Contains(s, "what still runs") {
				t.Errorf("not %s, or no stacks:\n%s", c.within, s)
			}
		})
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	p := start(t, "hang")
	p.ready(t)
	_ = p.Process.Signal(syscall.SIGQUIT)
	p.await(t, "STOPPING", func(m sdnotify.Message) bool { return m.Stopping })
	_ = p.Process.Signal(syscall.SIGTERM)
	p.end(t, 1)
	if !strings.Contains(p.stderr.String(), "second signal") {
		t.Errorf("stderr:\n%s", p.stderr)
	}
}

func TestUSR1OpensLogsAgain(t *testing.T) {
	for mode, want := range map[string][]string{"sound": {"reopened", "handled", "clean"}, "plain": {"handled", "clean"}} {
		t.Run(mode, func(t *testing.T) {
			p := start(t, mode)
			p.ready(t)
			if err := p.Process.Signal(syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			if mode == "sound" && (!p.lines.Scan() || p.lines.Text() != want[0]) {
				t.Errorf("printed %q", p.lines.Text())
			}
			_ = p.stdin.Close()
			_ = p.Process.Signal(syscall.SIGQUIT)
			p.end(t, 0, want[len(want)-2:]...)
		})
	}
}
