//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// programEnv tells the stub which file to execute, where that is another one than
// the command's first word leads to.
const programEnv = "TIDINGS_EXEC_PROGRAM"

// A release is what the workers of one generation run. It is fixed when the
// generation begins: a worker that dies is started again as what it was, whatever
// has been put in its program's place since.
type release struct {
	generation int
	command    []string
	dir        string   // Config.Dir, with symbolic links followed
	env        []string // of EnvFile
	program    program
	booted     bool // a worker of it has been ready
}

// A program is a file as it was when it was looked at.
type program struct {
	path string      // with symbolic links followed
	info os.FileInfo // nil: path leads to something else by now
	kept string      // its copy in Config.State, if there is one
}

// resolve fixes what command is at this moment.
func (m *master) resolve(generation int, command []string) (*release, error) {
	r := &release{generation: generation, command: command, dir: m.cfg.Dir}
	if r.dir != "" {
		if err := mayEnter(r.dir); err != nil {
			return nil, err
		}
		real, err := filepath.EvalSymlinks(r.dir)
		if err != nil {
			return nil, fmt.Errorf("supervisor: Dir %s: %w", r.dir, err)
		}
		r.dir = real
	}
	var err error
	if r.env, err = readEnv(m.cfg.EnvFile); err != nil {
		return nil, err
	}
	path, err := exec.LookPath(within(r.dir, command[0]))
	if err == nil {
		r.program, err = programAt(path)
	}
	if err != nil {
		return nil, fmt.Errorf("supervisor: Command: %w", err)
	}
	return r, nil
}

// first is what the first generation runs: the last good release, unless the command
// line has changed since, or another master executed this one, which is how new
// code is started by hand.
func (m *master) first() (*release, error) {
	rec, err := m.good.load()
	if err != nil {
		return nil, err
	}
	command := m.cfg.Command
	switch {
	case rec == nil:
	case !slices.Equal(rec.Base, m.cfg.Command):
		m.log.Warn("the last good release is not started: the command line has changed since", "was", rec.Base, "is", m.cfg.Command)
	case m.parent.alive():
		command = rec.Command
	default:
		if r, err := m.lastGood(rec); err == nil {
			return r, nil
		} else {
			m.log.Error("the last good release cannot be started: what is in its place is", "command", rec.Command, "err", err)
		}
		command = rec.Command
	}
	return m.resolveAnyway(m.generation, command)
}

// resolveAnyway is for when nothing else serves: a release that cannot be kept is
// better than none.
func (m *master) resolveAnyway(generation int, command []string) (*release, error) {
	r, err := m.resolve(generation, command)
	if err != nil {
		return nil, err
	}
	if err := m.keep(r); err != nil {
		m.log.Error("if this release proves good it is not kept", "err", err)
	}
	return r, nil
}

// toStart is what a slot without a worker runs: what it ran before, if that has ever
// served; else what a rolling restart is about to bring, or what serves elsewhere. If
// nothing ever has, it is what is there now: it may have been repaired.
func (m *master) toStart(s *slot) *release {
	r := s.release
	switch {
	case r != nil && r.booted:
		return r
	case m.roll != nil:
		return m.roll.release
	case m.release.booted:
		return m.release
	}
	r = m.release
	now, err := m.resolveAnyway(r.generation, r.command)
	if err != nil {
		return r // whose start says what is wrong
	}
	m.release = now
	return now
}

func (m *master) lastGood(rec *record) (*release, error) {
	r := &release{generation: m.generation, command: rec.Command, dir: rec.Dir, booted: true}
	if r.dir != "" {
		if err := mayEnter(r.dir); err != nil {
			return nil, err
		}
	}
	var err error
	if r.env, err = readEnv(m.cfg.EnvFile); err != nil {
		return nil, err
	}
	if r.program, err = m.good.programOf(rec); err != nil {
		return nil, err
	}
	args := []any{"command", r.command, "dir", r.dir, "since", rec.Time.Format(time.RFC3339)}
	if r.program.info == nil {
		m.log.Warn("the last good release is started from its copy: its program is another one by now: deploy that, if it is meant", append(args, "program", r.program.path, "copy", r.program.kept)...)
	} else {
		m.log.Info("the last good release is started", args...)
	}
	return r, nil
}

// keep sees to it that r can be started even if its program is replaced.
func (m *master) keep(r *release) error {
	if !isPath(r.command[0]) {
		return nil
	}
	return m.good.keep(&r.program)
}

// proven is called when r serves: it becomes what is started after a crash.
func (m *master) proven(r *release) {
	next := r
	if m.deploy != nil {
		next = m.deploy.release
	}
	if err := m.good.record(m.cfg.Command, r, next); err != nil {
		m.log.Error("the release is not kept as the last good one", "generation", r.generation, "err", err)
	}
}

func programAt(path string) (p program, err error) {
	if p.path, err = realPath(path); err != nil {
		return p, err
	}
	p.info, err = os.Stat(p.path)
	return p, err
}

// realPath is absolute, and has its symbolic links followed.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// sum is the SHA-256 of the program, if it was kept.
func (p *program) sum() string {
	if p.kept == "" {
		return ""
	}
	return filepath.Base(filepath.Dir(p.kept))
}

// is reports whether path leads to the program as it was.
func (p *program) is(path string) bool {
	if path == "" || p.info == nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(now, p.info) && now.Size() == p.info.Size() && now.ModTime().Equal(p.info.ModTime())
}

// executable is the file to start a worker of the release from: the program as it
// was when the generation began, for as long as that can be had. It is not if
// changed.
func (r *release) executable() (path string, changed bool, err error) {
	path, err = exec.LookPath(within(r.dir, r.command[0]))
	for _, p := range []string{path, r.program.path} {
		if r.program.is(p) {
			return p, false, nil
		}
	}
	if _, gone := os.Stat(r.program.kept); r.program.kept != "" && gone == nil {
		return r.program.kept, false, nil
	}
	if err != nil {
		err = fmt.Errorf("supervisor: Command: %w", err)
	}
	return path, true, err
}

// isPath: what is found in PATH is the system's, an interpreter say. It is not what
// a deploy replaces, and it may not work from another place.
func isPath(command string) bool { return strings.Contains(command, "/") }

// within is where a command is looked for: a relative path is meant from dir, as
// the worker sees it.
func within(dir, command string) string {
	if dir != "" && isPath(command) && !filepath.IsAbs(command) {
		return filepath.Join(dir, command)
	}
	return command
}
