package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// An InUseError says that a hub runs on a directory already.
type InUseError struct {
	Dir string
	PID int // of the process that runs it, 0 if unknown
}

// Error names the owner and the way out.
func (e *InUseError) Error() string {
	owner := "another process"
	if e.PID != 0 {
		owner = fmt.Sprint("pid ", e.PID)
	}
	return fmt.Sprintf("%s is in use by a running hub (%s): connect to that one, stop it, or use another directory", e.Dir, owner)
}

// A Running is the hub of a directory, as others see it.
type Running struct {
	PID int    // of its process, 0 if unknown
	URL string // as [Hub.URL] says, empty while it starts
}

// Find returns the hub that runs on a directory now, nil if none does. It asks the
// directory's lock, which ends with its process, and connects to nobody. It fails when
// the directory cannot be read. It may be called concurrently.
func Find(dir string) (*Running, error) {
	name := filepath.Join(dir, "lock")
	l := flock.New(name, flock.SetFlag(os.O_RDONLY))
	free, err := l.TryRLock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("hub: cannot look at the lock of %s: %w", dir, err)
	case free:
		return nil, l.Close()
	}
	r := &Running{PID: ownerOf(name)}
	if !alive(r.PID) {
		return &Running{}, nil // it has only just locked it
	}
	address := filepath.Join(dir, "address")
	if b, err := os.ReadFile(address); err == nil && !older(address, name) {
		r.URL = strings.TrimSpace(string(b))
	}
	return r, nil
}

// alive reports whether there is a process.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if pid <= 0 || err != nil {
		return false
	}
	defer func() { _ = p.Release() }()
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, os.ErrPermission)
}

// older reports whether an address is of a hub before the one that has the lock: that
// one was killed, and this one has not come to remove it.
func older(address, lock string) bool {
	a, err1 := os.Stat(address)
	l, err2 := os.Stat(lock)
	return err1 != nil || err2 != nil || a.ModTime().Before(l.ModTime())
}

// ownerOf is the pid in a lock, 0 if there is none.
func ownerOf(lock string) int {
	b, err := os.ReadFile(lock)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// tryLock tries more than once: [Find] holds a lock too, for an instant.
func tryLock(l *flock.Flock) (ok bool, err error) {
	for range 5 {
		if ok, err = l.TryLock(); ok || err != nil {
			return ok, err
		}
		time.Sleep(time.Millisecond)
	}
	return false, nil
}
