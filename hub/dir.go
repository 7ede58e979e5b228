package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
)

// dir is a hub's directory while this process owns it.
type dir struct {
	path  string // absolute
	token string
	lock  *flock.Flock
}

func (d *dir) tokenFile() string   { return filepath.Join(d.path, "token") }
func (d *dir) portFile() string    { return filepath.Join(d.path, "port") }
func (d *dir) addressFile() string { return filepath.Join(d.path, "address") }
func (d *dir) store() string       { return filepath.Join(d.path, "store") }

// openDir makes the directory if needed, takes its lock and reads its token.
func openDir(path string) (*dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory: %w", err)
	}
	d := &dir{path: path}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// acquire takes the lock and leaves this process's pid in it.
func (d *dir) acquire() error {
	name := filepath.Join(d.path, "lock")
	d.lock = flock.New(name, flock.SetPermissions(0o600))
	ok, err := tryLock(d.lock)
	if err != nil {
		return fmt.Errorf("cannot lock the directory (it must be writable): %w", err)
	}
	if !ok {
		return &InUseError{Dir: d.path, PID: ownerOf(name)}
	}
	// Not by rename: the lock belongs to this very file.
	if err := os.WriteFile(name, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		return errors.Join(fmt.Errorf("cannot write the owner's pid: %w", err), d.close())
	}
	return nil
}

// prepare fills what a new directory lacks and removes what a crash left.
func (d *dir) prepare() error {
	if err := d.retract(); err != nil {
		return err
	}
	// nats-server would make it readable by the group.
	if err := os.MkdirAll(d.store(), 0o700); err != nil {
		return fmt.Errorf("cannot make the store: %w", err)
	}
	return d.readToken()
}

// readToken reads the token. It is made when there is none.
func (d *dir) readToken() error {
	token, err := readSecret(d.tokenFile())
	if errors.Is(err, fs.ErrNotExist) {
		token = newSecret()
		err = writeSecret(d.tokenFile(), token)
	}
	if err == nil {
		d.token = token
	}
	return err
}

// lastPort is the port of the run before, 0 if unknown.
func (d *dir) lastPort() int {
	b, err := os.ReadFile(d.portFile())
	if err != nil {
		return 0
	}
	// A mangled file costs a new port, nothing else.
	port, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	return int(port)
}

// announce remembers the port and tells clients that the hub is ready.
func (d *dir) announce(url string, port int) error {
	if err := renameio.WriteFile(d.portFile(), fmt.Appendln(nil, port), 0o600); err != nil {
		return fmt.Errorf("cannot remember the port: %w", err)
	}
	if err := renameio.WriteFile(d.addressFile(), []byte(url+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot write the address: %w", err)
	}
	return nil
}

// retract takes the announcement back.
func (d *dir) retract() error {
	if err := os.Remove(d.addressFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the address: %w", err)
	}
	return nil
}

// close lets the lock go. The file stays: removing it would let two processes
// hold locks on two files of one name.
func (d *dir) close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("cannot unlock %s: %w", d.path, err)
	}
	return nil
}
