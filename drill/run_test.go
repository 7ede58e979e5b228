//go:build unix

package drill_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill"
)

// buildCLI builds the command for a test that runs it elsewhere.
func buildCLI(t *testing.T, flags ...string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tidings")
	out, err := exec.Command("go", append(append([]string{"build"}, flags...), "-o", bin, "../cmd/tidings")...).CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// command is a drill in an empty folder outside the source tree.
func command(t *testing.T, bin string, args ...string) (cmd *exec.Cmd, dir string, clean func()) {
	t.Helper()
	cwd, tmp := t.TempDir(), t.TempDir()
	dir = filepath.Join(t.TempDir(), "journals")
	cmd = exec.Command(bin, append([]string{"drill", "--dir=" + dir}, args...)...)
	cmd.Dir = cwd
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	return cmd, dir, func() {
		t.Helper()
		for _, d := range []string{cwd, tmp} {
			if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
				t.Errorf("left behind in %s: %v, %v", d, left, err)
			}
		}
		for _, p := range processesOf(t, dir) {
			t.Errorf("left behind: %s", p)
		}
		if c, err := net.DialTimeout("tcp", hubAddr(t, dir), time.Second); err == nil {
			_ = c.Close()
			t.Errorf("the hub's port is still open")
		}
	}
}

// processesOf finds processes with dir among their arguments or in their
// environment.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return nil // the ports and the files must do
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(procs) == 0 {
		t.Fatalf("no processes: %v", err)
	}
	for _, p := range procs {
		args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // it may be gone, or another user's
		env, _ := os.ReadFile(filepath.Join(p, "environ"))
		if bytes.Contains(args, []byte(dir)) || bytes.Contains(env, []byte(dir)) {
			found = append(found, p+": "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

func hubAddr(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "hub.log"))
	if errors.Is(err, fs.ErrNotExist) { // a master keeps it
		b, err = os.ReadFile(filepath.Join(dir, "hub", "hub.log"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "url "); ok {
			u, err := url.Parse(strings.TrimSpace(s))
			if err != nil {
				t.Fatal(err)
			}
			return u.Host
		}
	}
	t.Fatalf("the hub has not said where it is:\n%s", b)
	return ""
}

// proven runs a drill, and again if it proves nothing: the machine may be too busy with
// other tests.
func proven(t *testing.T, run func(*exec.Cmd) error, bin string, args ...string) (dir string, err error) {
	t.Helper()
	for range voidTries {
		cmd, at, clean := command(t, bin, args...)
		dir, err = at, run(cmd)
		clean()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 2 {
			break
		}
		t.Logf("it proves nothing: %s", dir)
	}
	return dir, err
}

// voidTries is how often a drill may prove nothing.
const voidTries = 3

func TestDrillOnRealProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	// Not beside the scenarios: together they are more than two cores can do, and a
	// publisher that is late proves nothing. Other packages' tests run beside it: so
	// not at the full rate either.
	bin := buildCLI(t)
	var out, errs strings.Builder
	dir, err := proven(t, func(cmd *exec.Cmd) error {
		out.Reset()
		errs.Reset()
		cmd.Stdout, cmd.Stderr = &out, &errs
		return cmd.Run()
	}, bin, "--short", "--json", "--rate=500")
	if err != nil || !strings.Contains(out.String(), `"result": "KEPT"`) {
		t.Fatalf("%v\n%s\n%s", err, out.String(), errs.String())
	}
	if !strings.Contains(errs.String(), "handled") {
		t.Errorf("no progress:\n%s", errs.String())
	}
	b, err := os.ReadFile(filepath.Join(dir, "verdict.json"))
	if err != nil || string(b) != out.String() {
		t.Errorf("the file holds another verdict than was printed: %v", err)
	}
	led, err := drill.ReadLedger(dir)
	if err != nil || len(led.Reporters) < 11 { // 2 publishers, 4 generations of 2, 1 after the kill
		t.Errorf("%d journals, %v; want 11", len(led.Reporters), err)
	}
}

// The scenarios besides the default one, side by side: they leave the machine some
// time.
func TestScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	bin := buildCLI(t)
	for _, s := range drill.Scenarios()[1:] {
		if s.Name == "cluster" || s.Name == "hub" {
			continue // steps of .ci/run: three hubs, or programs with hubs in them, take the whole machine
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			args := []string{"--scenario=" + s.Name, "--for=6s"}
			if s.Name == "signals" { // all of them take minutes
				args = append(args, "--cells=^(running: HUP|upgraded: QUIT to the old master|draining: TERM|crash loop: USR2)$")
			}
			var out []byte
			dir, err := proven(t, func(cmd *exec.Cmd) (err error) {
				out, err = cmd.CombinedOutput()
				return err
			}, bin, args...)
			if err != nil || !strings.Contains(string(out), "\nKEPT\n") {
				t.Errorf("%v\n%s", err, out)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "verdict.json")); err != nil || !strings.Contains(string(b), `"result": "KEPT"`) {
				t.Errorf("the file says otherwise: %v", err)
			}
		})
	}
}

func TestDrillInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("ten seconds")
	}
	t.Parallel()
	cmd, dir, clean := command(t, buildCLI(t), "--short")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "deploy 1") {
	}
	if len(processesOf(t, dir)) < 6 && runtime.GOOS == "linux" {
		t.Errorf("only these run: %v", processesOf(t, dir))
	}
	interrupted := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended as if all was well")
	}
	if took := time.Since(interrupted); took > 15*time.Second {
		t.Errorf("it took %v to end", took)
	}
	clean()
	if !strings.Contains(string(rest), dir) {
		t.Errorf("it does not say where the journals are:\n%s", rest)
	}
}
