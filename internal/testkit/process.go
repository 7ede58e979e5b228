package testkit

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Process is this test binary once more, as TestMain makes it by what it finds in
// the environment. Its methods must be called by the test's own goroutine.
type Process struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string
	read  *loop.Loop
}

// Spawn starts one with env (NAME=VALUE) added to the environment, and kills it when
// the test ends.
func Spawn(t testing.TB, env ...string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: exec.Command(os.Args[0]), lines: make(chan string, 100)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = t.Output()
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.read = loop.Go(func(context.Context) {
		for in := bufio.NewScanner(out); in.Scan(); {
			p.lines <- in.Text()
		}
		close(p.lines)
	})
	t.Cleanup(p.Kill)
	return p
}

// Expect waits for the next line that it writes, which must be that one.
func (p *Process) Expect(line string) {
	p.t.Helper()
	select {
	case got, ok := <-p.lines:
		if !ok || got != line {
			p.t.Fatalf("the process says %q, want %q", got, line)
		}
	case <-time.After(startLimit):
		p.t.Fatalf("the process did not say %q in %v", line, startLimit)
	}
}

// Kill is kill -9, if it has not ended.
func (p *Process) Kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended
	p.read.StopAndWait()
	_ = p.cmd.Wait() // "signal: killed"
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait waits until it has ended, and says how. All that it writes must have been read.
func (p *Process) Wait() *os.ProcessState {
	if p.cmd.ProcessState == nil {
		p.read.StopAndWait()
		_ = p.cmd.Wait() // its state says more
	}
	return p.cmd.ProcessState
}

// Lines are what it writes, until it ends.
func (p *Process) Lines() <-chan string { return p.lines }
