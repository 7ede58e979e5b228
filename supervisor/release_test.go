//go:build unix

package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// install puts a program that says its version, and then serves, at dir/app, as a
// deploy does: by rename.
func (r *rig) install(version string) string {
	r.t.Helper()
	app := filepath.Join(r.dir, "app")
	program := fmt.Sprintf("#!/bin/sh\necho version %s\nexec \"$@\"\n", version)
	if version == "broken" {
		program = "#!/bin/sh\necho cannot boot >&2\nexit 3\n"
	}
	writeProgram(r.t, app+".new", program)
	check(r.t, os.Rename(app+".new", app))
	return app
}

// writeProgram keeps others from forking meanwhile: their children would have the file
// open for writing, and such a program cannot be executed.
func writeProgram(t *testing.T, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	check(t, os.WriteFile(path, []byte(text), 0o755))
}

// runInstalled has the workers run what install puts there.
func (r *rig) runInstalled() {
	r.t.Helper()
	r.cfg.Command = append([]string{r.install("1")}, r.cfg.Command...)
}

// said counts the workers that have said so.
func (r *rig) said(line string) int { return strings.Count(r.stderr.String(), line+"\n") }

func (r *rig) awaitSaid(line string, n int) {
	r.t.Helper()
	testkit.Until(r.t, patience, func() bool { return r.said(line) >= n })
}

// A worker that dies is started again as what it was, even if its program has been
// replaced; HUP takes the new one.
func TestDeadWorkersComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.cfg.State = filepath.Join(r.dir, "state")
	r.runInstalled()
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	r.install("2")
	check(t, syscall.Kill(r.status().Workers[0].PID, syscall.SIGKILL))
	r.awaitSaid("version 1", 2)
	r.awaitKind(supervisor.EventWorkerReady)
	if s := r.status(); !strings.HasPrefix(s.Workers[0].Program, filepath.Join(r.dir, "state", "programs")) {
		t.Errorf("it was not started from the copy: %+v", s.Workers[0])
	}
	r.signal(syscall.SIGHUP)
	r.awaitSaid("version 2", 1)
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	if n := r.said("version 1"); n != 2 {
		t.Errorf("version 1 was started %d times, want 2", n)
	}
}

// Without a copy, what is there now is better than nothing, and the log says so. A
// link that was moved leads to the old release for as long as that exists.
func TestReleasesAreFollowedOnlyByHUP(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	current := filepath.Join(r.dir, "current")
	for _, v := range []string{"1", "2"} {
		dir := filepath.Join(r.dir, "releases", v)
		check(t, os.MkdirAll(dir, 0o755))
		writeProgram(t, filepath.Join(dir, "app"), "#!/bin/sh\necho version "+v+" in ${PWD##*/}\nexec \"$@\"\n")
	}
	point := func(v string) {
		t.Helper()
		check(t, os.Symlink(filepath.Join("releases", v), current+".new"))
		check(t, os.Rename(current+".new", current))
	}
	point("1")
	r.cfg.Dir, r.cfg.Command = current, append([]string{"./app"}, r.cfg.Command...)
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	point("2")
	check(t, syscall.Kill(r.status().Workers[0].PID, syscall.SIGKILL))
	r.awaitSaid("version 1 in 1", 2)
	r.awaitKind(supervisor.EventWorkerReady)
	check(t, os.Rename(filepath.Join(r.dir, "releases", "2", "app"), filepath.Join(r.dir, "releases", "1", "app")))
	check(t, syscall.Kill(r.status().Workers[0].PID, syscall.SIGKILL))
	r.awaitSaid("version 2 in 1", 1)
	r.awaitKind(supervisor.EventWorkerReady)
	if !strings.Contains(r.stderr.String(), "the program has changed since this generation began") {
		t.Error("the log does not say that another program was started")
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// A master that starts begins with the last good release.
func TestTheLastGoodReleaseIsStarted(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.cfg.State = filepath.Join(r.dir, "state")
	r.runInstalled()
	serve := func(end syscall.Signal) {
		t.Helper()
		r.start()
		r.awaitKind(supervisor.EventGenerationReady)
		pid := r.status().Workers[0].PID
		r.signal(end)
		<-r.exited
		testkit.Until(t, patience, func() bool { return syscall.Kill(pid, 0) != nil })
	}
	serve(syscall.SIGKILL)
	r.install("broken")
	serve(syscall.SIGTERM)
	if n := r.said("version 1"); n != 2 {
		t.Errorf("version 1 was started %d times, want 2", n)
	}
	// By HUP it is asked for, and does not boot: so it does not become the good one.
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventRollFailed)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	serve(syscall.SIGTERM)
	// Another command line is another will.
	r.install("3")
	r.cfg.Command = append(r.cfg.Command, "more")
	serve(syscall.SIGTERM)
	if n := r.said("version 3"); n != 1 {
		t.Errorf("version 3 was started %d times, want 1", n)
	}
	programs, err := os.ReadDir(filepath.Join(r.dir, "state", "programs"))
	check(t, err)
	if len(programs) != 1 {
		t.Errorf("%d programs are kept, want the last good one: %v", len(programs), programs)
	}

	// A copy that is not what it was is not started.
	r.install("4")
	kept := filepath.Join(r.dir, "state", "programs", programs[0].Name(), "app")
	writeProgram(t, kept, "#!/bin/sh\n")
	serve(syscall.SIGTERM)
	if n := r.said("version 4"); n != 1 || !strings.Contains(r.stderr.String(), "it is not what was kept") {
		t.Errorf("version 4 was started %d times, want 1", n)
	}
	check(t, os.WriteFile(filepath.Join(r.dir, "state", "release.json"), []byte("{}"), 0o600))
	r.start()
	r.awaitExit(1)
	if !strings.Contains(r.stderr.String(), "release.json: it names no command: remove the file") {
		t.Error("the error does not name the file and the way out")
	}
}

// A first release that never served may be repaired in its place.
func TestABrokenStartIsRepairedInPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.cfg.State = filepath.Join(r.dir, "state")
	r.runInstalled()
	r.install("broken")
	r.start()
	r.awaitKind(supervisor.EventWorkerBackoff)
	r.install("1")
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// The generations of two masters have numbers of their own.
func TestHupDuringAnUpgradeMakesAGenerationOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	old := startReady(r)
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted)
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGHUP)
	e := r.awaitKind(supervisor.EventGenerationReady)
	if e.Master != old || next.Generation != 2 || e.Generation != 3 {
		t.Errorf("the new master began generation %d, then master %d %d", next.Generation, e.Master, e.Generation)
	}
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
	check(t, syscall.Kill(next.PID, syscall.SIGQUIT))
	r.awaitKind(supervisor.EventStopped)
}

// After WINCH there is nobody whom HUP could replace: all workers are started at
// once, and of the new release only. If that does not work, the old one is back.
func TestHupAfterWinchStartsEachWorkerOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{Workers: 3})
	r.cfg.State = filepath.Join(r.dir, "state")
	r.runInstalled()
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	pause := func() {
		t.Helper()
		r.request("pause")
		testkit.Until(t, patience, func() bool { return len(r.status().Workers) == 0 })
	}
	pause()
	r.install("2")
	r.signal(syscall.SIGHUP)
	r.await("generation 2", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventGenerationReady && e.Generation == 2
	})
	r.awaitSaid("version 2", 3)
	if n := r.said("version 1"); n != 3 {
		t.Errorf("version 1 was started %d times, want 3", n)
	}
	pause()
	r.install("broken")
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventRollFailed)
	r.awaitSaid("version 2", 6)
	testkit.Until(t, patience, func() bool { s := r.status(); return len(s.Workers) == 3 && s.Workers[2].State == "ready" })
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}
