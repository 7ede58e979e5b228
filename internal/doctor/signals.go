//go:build unix

package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/supervisor"
)

// names are those of the signals that masters and workers are told by.
func names() []string {
	all := []string{"ABRT"} // to a worker that hangs
	for _, s := range supervisor.Signals() {
		if s.Name != "CHLD" { // nobody sends it by hand
			all = append(all, s.Name)
		}
	}
	return all
}

func number(name string) syscall.Signal { return unix.SignalNum("SIG" + name) }

// Listen is what the child does: it says which signals come, until stdin ends.
func Listen(in io.Reader, out io.Writer) error {
	heard := make(chan os.Signal, 16)
	for _, n := range names() {
		signal.Notify(heard, number(n))
	}
	defer signal.Stop(heard)
	parent := loop.Go(func(context.Context) { _, _ = io.Copy(io.Discard, in) })
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	for {
		select {
		case s := <-heard:
			if _, err := fmt.Fprintln(out, strings.TrimPrefix(unix.SignalName(s.(syscall.Signal)), "SIG")); err != nil {
				return err
			}
		case <-parent.Done():
			return nil
		}
	}
}

// signalPatience is far above what a signal takes.
const signalPatience = 5 * time.Second

// signals sends each signal to a child that catches it.
func (e *exam) signals(ctx context.Context) {
	if len(e.o.Self) == 0 {
		e.skip("signals", "this program has no child to send them to")
		return
	}
	unheard, err := trySignals(ctx, e.o.Self)
	if err != nil {
		e.fail("signals", "see the error", "they could not be tried: %v", err)
		return
	}
	for _, n := range names() {
		e.fact("signal."+n, "arrives")
	}
	for _, n := range unheard {
		e.fact("signal."+n, "does not arrive")
	}
	if unheard != nil {
		e.fail("signals", "see what the container's runtime or a wrapper does with them; tidings ctl has the same effects without signals", "a child that catches them did not get %s", strings.Join(unheard, ", "))
	} else {
		e.ok("signals", "a child gets %s", strings.Join(names(), ", "))
	}
	e.inherited()
}

func trySignals(ctx context.Context, self []string) (unheard []string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	child := exec.CommandContext(ctx, self[0])
	child.Args = self[1:]
	in, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	lines := make(chan string, 64)
	read := loop.Go(func(context.Context) {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	})
	defer func() {
		_ = in.Close()
		cancel() // it has nothing to lose
		read.StopAndWait()
		_ = child.Wait()
	}()
	if !awaitLine(ctx, lines, "ready") {
		return nil, errors.New("the child did not say that it is ready")
	}
	for _, n := range names() {
		if err := child.Process.Signal(number(n)); err != nil {
			return nil, fmt.Errorf("%s: %w: an earlier signal may have ended the child", n, err)
		}
		if !awaitLine(ctx, lines, n) {
			unheard = append(unheard, n)
		}
	}
	return unheard, nil
}

// awaitLine skips what comes late.
func awaitLine(ctx context.Context, lines <-chan string, want string) bool {
	end := time.NewTimer(signalPatience)
	defer end.Stop()
	for {
		select {
		case l, more := <-lines:
			if l == want || !more {
				return more
			}
		case <-end.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// inherited says which signals a program is started with as ignored, and which blocked.
func (e *exam) inherited() {
	ignored, blocked := masks()
	e.fact("signals.ignored", none(ignored))
	e.fact("signals.blocked", none(blocked))
	if ignored == nil && blocked == nil {
		e.ok("ignored signals", "none is inherited as ignored or blocked")
		return
	}
	e.warn("ignored signals", "tidings run starts workers with none ignored, and catches its own; of other ways to start them (nohup, a shell's &) they inherit it, and a program that does not catch the signal never sees it",
		"inherited as ignored: %s; as blocked: %s", none(ignored), none(blocked))
}

func none(names []string) string {
	if names == nil {
		return "none"
	}
	return strings.Join(names, " ")
}

// masks are the signals of the table that are ignored or blocked here. The Go runtime has
// taken some over already, of which its children inherit nothing.
func masks() (ignored, blocked []string) {
	b, err := os.ReadFile("/proc/self/status")
	for _, n := range names() {
		bit := uint64(1) << (number(n) - 1)
		if err != nil && signal.Ignored(number(n)) || maskOf(b, "SigIgn")&bit != 0 {
			ignored = append(ignored, n)
		}
		if maskOf(b, "SigBlk")&bit != 0 {
			blocked = append(blocked, n)
		}
	}
	return ignored, blocked
}

func maskOf(status []byte, field string) uint64 {
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// orphans has a process outlive its parent, and sees whether somebody reaps it: pid 1, or
// whoever stands in for it. A master that was upgraded by USR2 becomes one.
func (e *exam) orphans(ctx context.Context) {
	const name = "pid 1"
	who := initName()
	if runtime.GOOS != "linux" {
		e.skip(name, "what it does with orphans is tried on Linux only")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, signalPatience)
	defer cancel()
	pid, end, err := orphan(ctx)
	if err != nil {
		e.skip(name, "it is %s; no orphan could be made: %v", who, err)
		return
	}
	end()
	for {
		state := stateOf(pid)
		if state == "" {
			e.fact("pid1.reaps", "yes")
			e.ok(name, "%s; an orphan that ended was reaped%s", who, asMaster(who))
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			e.fact("pid1.reaps", "no")
			e.warn(name, "use an init: docker run --init, tini, or let tidings run be pid 1", "%s does not reap orphans: one that has ended is in state %s", who, state)
			return
		}
	}
}

// asMaster is what else to know where a master is pid 1, as in a container.
func asMaster(who string) string {
	if who != "tidings" {
		return ""
	}
	return "; as pid 1 a master refuses USR2, since its end would be the container's: HUP, or tidings deploy"
}

// orphan starts a process whose parent has gone, and that ends at end.
func orphan(ctx context.Context) (pid int, end func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "cat <&3 >/dev/null 2>&1 & echo $!")
	cmd.ExtraFiles = []*os.File{r}
	out, err := cmd.Output()
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
	}
	if err != nil {
		_ = w.Close()
		return 0, nil, err
	}
	return pid, func() { _ = w.Close() }, nil
}

// stateOf is the letter of a process's state, "" if there is none.
func stateOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}
