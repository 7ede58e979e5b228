package drill

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/loop"
)

// proc is one process that the drill has started, in a group of its own.
type proc struct {
	name string
	cmd  *exec.Cmd
	out  string // file with its standard output and error
	wait *loop.Loop
	exit Exit // set once wait is done
	// target gets signals instead of the process: it runs under another program.
	target int
}

func startProc(dir, name string, env, argv []string) (*proc, error) {
	p := &proc{name: name, out: filepath.Join(dir, name+".log")}
	f, err := os.OpenFile(p.out, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.wait = loop.Go(func(context.Context) {
		_ = p.cmd.Wait() // its status is read below
		p.exit = Exit{PID: p.pid(), At: witness.Now(), Code: p.cmd.ProcessState.ExitCode()}
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.Signal = ws.Signal().String()
		}
	})
	return p, nil
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

func (p *proc) exited() bool {
	select {
	case <-p.wait.Done():
		return true
	default:
		return false
	}
}

// stop asks, waits, and in the end kills.
func (p *proc) stop(sig syscall.Signal, patience time.Duration) error {
	if p.exited() {
		return nil
	}
	if p.target != 0 {
		_ = syscall.Kill(p.target, sig)
	} else {
		_ = p.cmd.Process.Signal(sig)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if p.wait.Wait(ctx) == nil {
		return nil
	}
	_ = p.cmd.Process.Kill()
	if p.target != 0 {
		_ = syscall.Kill(p.target, syscall.SIGKILL)
	}
	<-p.wait.Done()
	return fmt.Errorf("%s (pid %d) did not end within %v of %v and was killed", p.name, p.pid(), patience, sig)
}

// says returns the rest of the line of p's output that begins with word.
func (p *proc) says(word string) (string, bool) {
	f, err := os.Open(p.out)
	if err != nil {
		return "", false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), word); ok {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// died describes a process that should be running.
func (p *proc) died() error {
	b, _ := os.ReadFile(p.out)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return errors.New(p.name + " ended: its last lines were:\n  " + strings.Join(lines[max(0, len(lines)-5):], "\n  "))
}
