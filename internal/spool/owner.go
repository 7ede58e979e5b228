package spool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// An owner is this process's hold on a spool's directory: the lock on a file in it,
// of which the kernel lets go however the process ends.
type owner struct {
	path string // of the directory
	lock *flock.Flock
}

const (
	ownerFile = "owner"
	askLimit  = 200
	askPause  = time.Millisecond
)

var (
	// errOwned: another process has it.
	errOwned = errors.New("owned by another process")
	// errGone: the directory was removed before it was locked.
	errGone = errors.New("removed meanwhile")
)

// own locks a directory and writes this process's pid into it.
func own(path string) (*owner, error) {
	o := &owner{path, flock.New(filepath.Join(path, ownerFile), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))}
	err := tryLock(o.lock)
	if errors.Is(err, fs.ErrNotExist) {
		err = errGone
	}
	if err == nil && !o.current() {
		err = errGone
	}
	if err != nil {
		return nil, errors.Join(err, o.lock.Close())
	}
	// Not by rename: the lock belongs to this very file. The pid is for humans, so
	// a disk that is too full for it is no reason to leave the records alone.
	_ = os.WriteFile(o.lock.Path(), fmt.Appendln(nil, os.Getpid()), 0o600)
	return o, nil
}

// tryLock takes the lock unless another process owns it. One that merely asks who
// does (alive) holds a shared lock for an instant, and must not pass for an owner:
// the spool would be left alone by all. One that is stopped in that instant does.
func tryLock(l *flock.Flock) error {
	for range askLimit {
		if ok, err := l.TryLock(); ok || err != nil {
			return err
		}
		switch asks, err := l.TryRLock(); {
		case err != nil:
			return err
		case !asks:
			return errOwned
		}
		if err := l.Unlock(); err != nil {
			return err
		}
		stopAt("asked")
		time.Sleep(askPause)
	}
	return errOwned
}

// current reports whether what was locked is what another process would lock now.
func (o *owner) current() bool {
	mine, err := o.lock.Stat()
	now, err2 := os.Stat(o.lock.Path())
	return err == nil && err2 == nil && os.SameFile(mine, now)
}

func (o *owner) release() error { return o.lock.Close() }

// alive reports whether a process owns the directory, and its pid if it is known.
func alive(path string) (owned bool, pid int) {
	l := flock.New(filepath.Join(path, ownerFile), flock.SetFlag(os.O_RDWR))
	defer func() { _ = l.Close() }()
	if ok, err := l.TryRLock(); ok || err != nil {
		return false, 0 // without the file, nobody has made it yet, or it is half removed
	}
	b, _ := os.ReadFile(l.Path())
	pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	return true, pid
}

// Directories are named NAME.RANDOM.
const randomLength = 16

func newDirName(name string) string {
	var b [randomLength / 2]byte
	rand.Read(b[:]) // never fails
	return name + "." + hex.EncodeToString(b[:])
}

// nameOf returns the NAME of a spool's directory.
func nameOf(dir string) (name string, ok bool) {
	i := len(dir) - randomLength - 1
	if i <= 0 || dir[i] != '.' {
		return "", false
	}
	for _, c := range dir[i+1:] {
		if !strings.ContainsRune("0123456789abcdef", c) {
			return "", false
		}
	}
	return dir[:i], true
}

func checkName(name string) error {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") || len(name) > 200 {
		return fmt.Errorf("spool: %q cannot be the name of a spool: 1 to 200 bytes without a slash, not beginning with a dot", name)
	}
	return nil
}

// makeDir makes a spool's directory in dir and locks it.
func makeDir(dir, name string) (*owner, error) {
	if err := makeParents(dir); err != nil {
		return nil, err
	}
	for {
		path := filepath.Join(dir, newDirName(name))
		if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		o, err := own(path)
		// Before it was locked, it looked like a dead process's to others.
		if errors.Is(err, errOwned) || errors.Is(err, errGone) {
			continue
		}
		if err == nil {
			err = syncDir(dir)
		}
		if err != nil {
			if o != nil {
				_ = o.release()
			}
			removeDir(path)
			return nil, err
		}
		return o, nil
	}
}

// makeParents is MkdirAll that survives the loss of power.
func makeParents(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// syncDir makes sure that the names in a directory are on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	onSync(dir)
	return nil
}

// syncFile makes sure that what a file holds is on the disk.
func syncFile(f *os.File) error {
	if err := fdatasync(f); err != nil {
		return err
	}
	onSync(f.Name())
	return nil
}

// removeDir removes a spool's directory, of which the caller has the lock and which
// has no record to read, unless there is more in it than a spool itself needs.
func removeDir(path string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		_, _, isSegment := parseName(e.Name(), segmentSuffix)
		_, _, isNotes := parseName(e.Name(), notesSuffix)
		if isSegment || isNotes || e.Name() == positionFile {
			_ = os.Remove(filepath.Join(path, e.Name()))
		}
	}
	stopAt("removing")
	// The lock's file goes last: without it another process may lock a new one.
	_ = os.Remove(filepath.Join(path, ownerFile))
	_ = os.Remove(path) // not if there is more in it, or somebody has just come
}
