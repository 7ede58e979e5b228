package hub

import (
	"errors"
	"fmt"
	"io"
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
// the directory cannot be read, and follows no link out of it: who may write there may
// be another user. It may be called concurrently.
func Find(dir string) (*Running, error) {
	r, err := find(dir)
	if err != nil {
		return nil, fmt.Errorf("hub: cannot look for the hub of %s: %w", dir, err)
	}
	return r, nil
}

func find(dir string) (*Running, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	lock, err := root.Lstat("lock")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !lock.Mode().IsRegular() {
		err = errors.New("its lock is no file")
	}
	if err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(dir, "lock"), flock.SetFlag(os.O_RDONLY|syscall.O_NONBLOCK))
	if free, err := l.TryRLock(); err != nil || free {
		return nil, errors.Join(err, l.Close())
	}
	b, err := readIn(root, "lock")
	if err != nil {
		return nil, err
	}
	r := &Running{PID: pidOf(b)}
	if !alive(r.PID) {
		return &Running{}, nil // it has only just locked it
	}
	if lock, err = root.Lstat("lock"); err != nil { // it was written with the pid
		return nil, err
	}
	if address, err := root.Lstat("address"); err != nil || address.ModTime().Before(lock.ModTime()) {
		return r, nil // it has none yet, but perhaps that of a hub that was killed
	}
	if b, err = readIn(root, "address"); err != nil {
		return nil, err
	}
	r.URL = strings.TrimSpace(string(b))
	return r, nil
}

// readIn reads a small file.
func readIn(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
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

// ownerOf is the pid in a lock, 0 if there is none.
func ownerOf(lock string) int {
	b, err := os.ReadFile(lock)
	if err != nil {
		return 0
	}
	return pidOf(b)
}

func pidOf(b []byte) int {
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
