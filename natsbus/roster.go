package natsbus

import (
	"context"
	"crypto/sha256"
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

// A roster knows who on this machine holds events of one consumer. Each has a
// file, locked as long as it lives: the kernel lets go of the lock when a process
// dies, however it dies, and of nothing else can as much be said with certainty:
// a broken connection may come back with its handlers still at work. A file that
// is there and not locked is of one that died with events in hand.
//
// All of it is optional. Where there is no directory to write to, what a dead
// process held comes back after the ack wait.
type roster struct{ dir string }

// A place is one's own in a roster.
type place struct {
	roster *roster
	lock   *flock.Flock
}

const (
	gateFile  = "gate"
	gateRetry = 5 * time.Millisecond

	tidyPatience = 100 * time.Millisecond
)

// rosterOf finds the roster of a consumer. The time its stream was created at
// tells brokers apart.
func rosterOf(stream, consumer string, created time.Time) (*roster, error) {
	sum := sha256.Sum256([]byte(stream + "\x00" + consumer + "\x00" + strconv.FormatInt(created.UnixNano(), 10)))
	home := filepath.Join(os.TempDir(), "tidings-"+strconv.Itoa(os.Getuid()))
	r := &roster{dir: filepath.Join(home, hex.EncodeToString(sum[:10]))}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Lstat(home)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is not a directory of this user alone: remove it", home)
	}
	return r, nil
}

// enter waits until nobody else enters or leaves. What is decided about the dead
// is decided inside.
func (r *roster) enter(ctx context.Context) (leave func(), err error) {
	for {
		if err := os.MkdirAll(r.dir, 0o700); err != nil { // the last one may just have left
			return nil, err
		}
		gate := r.gate()
		ok, err := gate.TryLockContext(ctx, gateRetry)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !ok {
			return nil, errors.Join(fmt.Errorf("the gate of %s", r.dir), err, gate.Close())
		}
		if r.isGate(gate) {
			return func() { _ = gate.Close() }, nil // closing unlocks; nothing was written
		}
		_ = gate.Close() // it was taken away while we waited
	}
}

func (r *roster) gate() *flock.Flock {
	return flock.New(filepath.Join(r.dir, gateFile), flock.SetPermissions(0o600))
}

// isGate reports whether what was locked is still what others will lock.
func (r *roster) isGate(gate *flock.Flock) bool {
	mine, err := gate.Stat()
	now, err2 := os.Stat(gate.Path())
	return err == nil && err2 == nil && os.SameFile(mine, now)
}

// tidy removes the roster if nobody is in it.
func (r *roster) tidy() {
	gate := flock.New(filepath.Join(r.dir, gateFile), flock.SetFlag(os.O_RDWR))
	defer func() { _ = gate.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), tidyPatience)
	defer cancel()
	if ok, err := gate.TryLockContext(ctx, gateRetry); err != nil || !ok || !r.isGate(gate) {
		return // somebody is entering; who leaves at the same time lets go at once
	}
	if names, err := r.names(""); err != nil || len(names) > 0 {
		return
	}
	_ = os.Remove(gate.Path())
	_ = os.Remove(r.dir) // not if somebody has come meanwhile
	_ = os.Remove(filepath.Dir(r.dir))
}

// join takes a place. The caller is inside.
func (r *roster) join(name string) (*place, error) {
	lock := flock.New(filepath.Join(r.dir, name), flock.SetPermissions(0o600))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("cannot lock %s", lock.Path()), err, lock.Close())
	}
	return &place{roster: r, lock: lock}, nil
}

// others counts those who live, and removes and counts those who died. The caller
// is inside.
func (r *roster) others(own string) (alive, dead int, err error) {
	names, err := r.names(own)
	for _, name := range names {
		path := filepath.Join(r.dir, name)
		lock := flock.New(path, flock.SetFlag(os.O_RDWR))
		ok, lockErr := lock.TryLock()
		switch {
		case errors.Is(lockErr, fs.ErrNotExist): // it has just left
		case lockErr != nil:
			err = errors.Join(err, lockErr)
		case !ok:
			alive++
		default:
			// One that leaves removes its file before it lets go of the lock.
			if os.Remove(path) == nil {
				dead++
			}
		}
		err = errors.Join(err, lock.Close())
	}
	return alive, dead, err
}

// names are the places of others.
func (r *roster) names(own string) (names []string, err error) {
	entries, err := os.ReadDir(r.dir)
	for _, e := range entries {
		if n := e.Name(); n != gateFile && n != own && !strings.HasPrefix(n, ".") {
			names = append(names, n)
		}
	}
	return names, err
}

// leave gives a place up. Whoever leaves with events in hand leaves its file: the
// next one sees that it is gone, and takes them over.
func (p *place) leave(emptyHanded bool) {
	if emptyHanded {
		_ = os.Remove(p.lock.Path()) // it may have been cleaned away
	}
	_ = p.lock.Close()
	if emptyHanded {
		p.roster.tidy()
	}
}
