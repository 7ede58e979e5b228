//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// reexecEnv tells a re-executed master "pid:generation" of the old one.
const reexecEnv = "TIDINGS_REEXEC"

// A reexecParent is the master that executed this one; zero if none did.
type reexecParent struct{ pid, generation int }

// takeReexecParent reads and unsets reexecEnv, so that it does not reach
// workers. Whether the old master still is there is asked of the kernel later:
// the variable may be out of date.
func takeReexecParent() reexecParent {
	text := os.Getenv(reexecEnv)
	os.Unsetenv(reexecEnv)
	var p reexecParent
	if n, err := fmt.Sscanf(text, "%d:%d", &p.pid, &p.generation); n != 2 || err != nil || p.generation < 0 {
		return reexecParent{}
	}
	return p
}

// alive asks whether the old master is there: its children get another parent
// when it is not.
func (p reexecParent) alive() bool { return p.pid != 0 && os.Getppid() == p.pid }

// An origin is how this process was started, as USR2 and the stub need it.
type origin struct {
	name string // argv[0]
	stub string // to start ourselves as __exec
	argv []string
	dir  string
}

// findOrigin fixes the paths at the start, before a deploy moves them.
//
// The new master is found by argv[0] and PWD, not by the resolved path of the
// running program: where a symbolic link was moved to a new release, the new
// release is what USR2 is for. The stub, by contrast, must always work, even
// if the file of the running program is gone.
func findOrigin(argv []string) (origin, error) {
	if len(argv) == 0 {
		return origin{}, errors.New("supervisor: Argv is empty: leave it nil for os.Args")
	}
	o := origin{name: argv[0], stub: "/proc/self/exe"}
	if _, err := os.Stat(o.stub); err != nil {
		if o.stub, err = os.Executable(); err != nil {
			return origin{}, fmt.Errorf("supervisor: own program: %w", err)
		}
	}
	dir, err := os.Getwd() // prefers PWD, if it names the same directory
	if err != nil {
		return origin{}, fmt.Errorf("supervisor: working directory: %w", err)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		if path, err = os.Executable(); err != nil {
			return origin{}, fmt.Errorf("supervisor: own program: %w", err)
		}
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	o.dir, o.argv = dir, append([]string{path}, argv[1:]...)
	return o, nil
}

// reexec is USR2.
func (m *master) reexec() {
	refuse := func(why string) {
		m.emit(Event{Event: EventReexecRefused, Reason: why})
		m.log.Error("USR2 refused", "reason", why)
	}
	switch {
	case m.stopping != running:
		refuse("this master is stopping")
		return
	case os.Getpid() == 1:
		refuse("as pid 1 the end of this master would end the container: start a new container and QUIT this one, or send HUP for new workers only")
		return
	case m.child != 0:
		refuse(fmt.Sprintf("the upgrade to master %d is not over: QUIT %d to go on with it, or QUIT %d to go back", m.child, os.Getpid(), m.child))
		return
	case m.parent.alive():
		refuse(fmt.Sprintf("the upgrade from master %d is not over: QUIT it first", m.parent.pid))
		return
	}
	if err := m.pid.makeWay(); err != nil {
		refuse(err.Error())
		return
	}
	pid, err := m.spawnMaster()
	if err != nil {
		m.putBackPIDFile()
		refuse(err.Error())
		return
	}
	m.child = pid
	m.emit(Event{Event: EventReexecStarted, PID: pid, Generation: m.generation + 1})
	m.log.Info("new master started", "pid", pid, "command", m.origin.argv)
}

// spawnMaster starts the new master, through the stub, for LISTEN_PID. It
// stays in the process group: Ctrl-C on the terminal is for both.
func (m *master) spawnMaster() (int, error) {
	files := []uintptr{0, 1, 2}
	for _, s := range m.sockets {
		files = append(files, s.file.Fd())
	}
	env := append(environ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"), socketEnv(m.sockets)...)
	pid, err := syscall.ForkExec(m.origin.stub, append([]string{m.origin.name, stubArg, "--"}, m.origin.argv...), &syscall.ProcAttr{
		Dir:   m.origin.dir,
		Env:   append(env, fmt.Sprintf("%s=%d:%d", reexecEnv, os.Getpid(), m.generation)),
		Files: files,
	})
	if err != nil {
		return 0, fmt.Errorf("supervisor: execute %s: %w", m.origin.stub, err)
	}
	return pid, nil
}

// reexecDied makes things as they were before USR2.
func (m *master) reexecDied(status unix.WaitStatus) {
	e := Event{Event: EventReexecDied, PID: m.child}
	words := exitOf(status, &e)
	m.emit(e)
	m.log.Error("new master died: this one goes on", "pid", m.child, "status", words)
	m.child = 0
	m.putBackPIDFile()
	if m.stopping == running && m.announced > 0 {
		m.tellManagerServing() // the dead one may have named itself
	}
}

func (m *master) putBackPIDFile() {
	if err := m.pid.putBack(); err != nil {
		m.log.Error("pid file was not put back", "err", err)
	}
}
