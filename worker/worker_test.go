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
	bus, err := tidings.New(tidings.Options{App: "child"})
	if err != nil {
		return 3
	}
	err = worker.Run(ctx, worker.Options{Bus: bus, DrainTimeout: 3 * time.Second, Setup: func(ctx context.Context) error {
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
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("clean")
	return 0
}

type process struct {
	*exec.Cmd
	states chan sdnotify.Message
	stdin  io.WriteCloser
	master *os.File
	lines  *bufio.Scanner
	stderr *strings.Builder
}

func start(t *testing.T, mode string) *process {
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
	p.Env = append(os.Environ(), "WORKER_TEST="+mode, "NOTIFY_SOCKET="+socket, "TIDINGS_PARENT_FD=3")
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
			p.await(t, "STOPPING", func(m sdnotify.Message) bool { return m.Stopping })
			_ = p.stdin.Close() // only now the handler can finish
			p.end(t, 0, "handled", "clean")
		})
	}
}

func TestASetupThatFailsIsNeverReady(t *testing.T) {
	p := start(t, "broken")
	p.end(t, 1, "error: worker: set up: no database")
	select {
	case m := <-p.states:
		t.Errorf("it said %+v", m)
	default:
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
