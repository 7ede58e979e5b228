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

// reexec is USR2. The error says why it was refused.
func (m *master) reexec() error {
	refuse := func(why string) error {
		m.emit(Event{Event: EventReexecRefused, Reason: why})
		m.log.Error("USR2 refused", "reason", why)
		return errors.New(why)
	}
	switch {
	case m.stopping != running:
		return refuse("this master is stopping")
	case os.Getpid() == 1:
		return refuse("as pid 1 the end of this master would end the container: start a new container and QUIT this one, or send HUP for new workers only")
	case m.child != 0:
		return refuse(fmt.Sprintf("the upgrade to master %d is not over: QUIT %d to go on with it, or QUIT %d to go back", m.child, os.Getpid(), m.child))
	case m.deploy != nil:
		return refuse(fmt.Sprintf("deploy %d is not over", m.deploy.number))
	case m.parent.alive():
		return refuse(fmt.Sprintf("the upgrade from master %d is not over: QUIT it first", m.parent.pid))
	}
	pid, err := m.makeWay()
	if err != nil {
		m.putBack()
		return refuse(err.Error())
	}
	m.child = pid
	m.generation++ // it is the new master's: HUP to this one makes the next
	m.emit(Event{Event: EventReexecStarted, PID: pid, Generation: m.generation})
	m.log.Info("new master started", "pid", pid, "command", m.origin.argv)
	return nil
}

// makeWay leaves the names to a new master and starts it.
func (m *master) makeWay() (pid int, err error) {
	if err := m.pid.makeWay(); err != nil {
		return 0, err
	}
	if err := m.control.makeWay(); err != nil {
		return 0, err
	}
	return m.spawnMaster()
}

// spawnMaster starts the new master, through the stub, for LISTEN_PID. It
// stays in the process group: Ctrl-C on the terminal is for both.
func (m *master) spawnMaster() (int, error) {
	files := []uintptr{0, 1, 2}
	for _, s := range m.sockets {
		files = append(files, s.file.Fd())
	}
	env := append(environ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"), masterEnv(m.sockets)...)
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
	if m.stopping == running {
		m.log.Error("new master died: this one goes on", "pid", m.child, "status", words)
	} else {
		m.log.Info("new master gone", "pid", m.child, "status", words)
	}
	m.child = 0
	m.putBack()
	if m.stopping == running && m.announced > 0 {
		m.tellManagerServing() // after what the dead one has said
	}
}

func (m *master) putBack() {
	if err := errors.Join(m.pid.putBack(), m.control.putBack()); err != nil {
		m.log.Error("names were not put back", "err", err)
	}
}
