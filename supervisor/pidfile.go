//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OldSuffix is on the pid file and the control socket of a master that has executed
// another one, until one of the two ends.
const OldSuffix = ".oldbin"

// A pidFile is the master's claim to its name. The zero path claims nothing.
type pidFile struct {
	base string // as configured
	path string // base, or base.oldbin while a new master has base
}

// claimPIDFile writes the caller's pid to path. It refuses if the pid in
// there is alive, and replaces a stale file.
func claimPIDFile(path string) (*pidFile, error) {
	p := &pidFile{base: path, path: path}
	if path == "" {
		return p, nil
	}
	// The pid is in the file before the file has its name, so nobody reads an
	// empty one; and link fails if the name is taken, unlike rename.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return nil, fmt.Errorf("supervisor: pid file %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintln(tmp, os.Getpid())
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return nil, fmt.Errorf("supervisor: pid file %s: %w", path, err)
	}
	for range 10 {
		err = os.Link(tmp.Name(), path)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, os.ErrExist) {
			break
		}
		if err = removeStale(path); err != nil {
			break
		}
	}
	return nil, fmt.Errorf("supervisor: pid file %s: %w", path, err)
}

// removeStale removes a pid file whose owner is dead. The lock and the second
// look keep two masters that start at once from removing each other's.
func removeStale(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(locked, named) {
		return nil // somebody was faster; look again
	}
	pid, err := readPID(path)
	if err != nil {
		return fmt.Errorf("%w: remove the file if no master runs", err)
	}
	if alive(pid) {
		return fmt.Errorf("in use by process %d%s: stop it with kill -QUIT %d; if it is not a master, remove the file", pid, nameOf(pid), pid)
	}
	return os.Remove(path)
}

func readPID(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("it does not hold a pid but %.20q", text)
	}
	return pid, nil
}

// alive says whether another process has pid. The caller's own pid in an old
// file is that of an earlier life: in containers pids repeat.
func alive(pid int) bool {
	if pid == os.Getpid() {
		return false
	}
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

// nameOf returns " (command)", or nothing if it cannot be had.
func nameOf(pid int) string {
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	if name := strings.TrimSpace(string(out)); err == nil && name != "" {
		return " (" + name + ")"
	}
	return ""
}

// makeWay moves the claim to base.oldbin, for a new master to take base.
func (p *pidFile) makeWay() error {
	if p.base == "" {
		return nil
	}
	if pid, err := readPID(p.base + OldSuffix); err == nil && alive(pid) {
		return fmt.Errorf("supervisor: pid file %s belongs to process %d%s: an earlier upgrade is not over: QUIT that one first",
			p.base+OldSuffix, pid, nameOf(pid))
	}
	if err := os.Rename(p.base, p.base+OldSuffix); err != nil {
		return fmt.Errorf("supervisor: pid file: %w", err)
	}
	p.path = p.base + OldSuffix
	return nil
}

// putBack takes base again after the new master has died, unless somebody
// else lives there.
func (p *pidFile) putBack() error {
	if p.base == "" || p.path == p.base {
		return nil
	}
	if pid, err := readPID(p.base); err == nil && alive(pid) {
		return fmt.Errorf("supervisor: pid file %s was taken by process %d%s: this master stays in %s", p.base, pid, nameOf(pid), p.path)
	}
	if err := os.Rename(p.path, p.base); err != nil {
		return fmt.Errorf("supervisor: pid file: %w", err)
	}
	p.path = p.base
	return nil
}

// release removes the file if it is still the caller's.
func (p *pidFile) release() {
	if p.path == "" {
		return
	}
	if pid, err := readPID(p.path); err == nil && pid == os.Getpid() {
		os.Remove(p.path)
	}
}
