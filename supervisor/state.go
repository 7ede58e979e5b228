//go:build unix

package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// A stateDir is where the last good release is kept: a record of it, and a copy of
// its program, so that it can be started when something else has its place. The
// zero one keeps nothing.
type stateDir struct {
	path string
	last program // the latest that was kept
}

// A record is the last good release.
type record struct {
	Base       []string  `json:"base"` // the command of the master's own command line
	Command    []string  `json:"command"`
	Dir        string    `json:"dir,omitempty"`
	Program    string    `json:"program"`
	Kept       string    `json:"kept,omitempty"` // the copy, relative to the state directory
	SHA256     string    `json:"sha256,omitempty"`
	Generation int       `json:"generation"`
	Time       time.Time `json:"time"`
}

func openState(path string) (*stateDir, error) {
	if path == "" {
		return &stateDir{}, nil
	}
	path, err := filepath.Abs(path)
	if err == nil {
		// Workers that run as another user execute what is in it.
		err = os.MkdirAll(filepath.Join(path, "programs"), 0o711)
	}
	if err != nil {
		return nil, fmt.Errorf("supervisor: State: %w", err)
	}
	return &stateDir{path: path}, nil
}

func (s *stateDir) recordFile() string { return filepath.Join(s.path, "release.json") }

// keep copies a program.
func (s *stateDir) keep(p *program) (err error) {
	if s.path == "" {
		return nil
	}
	if _, gone := os.Stat(s.last.kept); s.last.kept != "" && gone == nil && s.last.path == p.path && s.last.is(p.path) {
		*p = s.last
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("supervisor: State %s: keep a copy of %s: %w", s.path, p.path, err)
		}
	}()
	from, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer from.Close()
	// A child that is forked meanwhile has the copy open until it executes something
	// else, and what is open for writing cannot be executed.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	to, err := os.CreateTemp(s.path, ".program-")
	if err != nil {
		return err
	}
	defer os.Remove(to.Name()) // fails once it has its name
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, hash), from)
	if st, ok := p.info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && err == nil {
		err = to.Chown(int(st.Uid), int(st.Gid)) // before its mode is set: whom that admits
	}
	if err = errors.Join(err, to.Chmod(p.info.Mode().Perm()), to.Sync(), to.Close()); err != nil {
		return err
	}
	dir := filepath.Join(s.path, "programs", hex.EncodeToString(hash.Sum(nil)))
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	kept := filepath.Join(dir, filepath.Base(p.path))
	if err := os.Rename(to.Name(), kept); err != nil {
		return err
	}
	p.kept, s.last = kept, *p
	s.last.kept = kept
	return nil
}

// record makes r the last good release, and removes the copies of others but next.
func (s *stateDir) record(base []string, r, next *release) error {
	if s.path == "" {
		return nil
	}
	rec := record{Base: base, Command: r.command, Dir: r.dir, Program: r.program.path, Generation: r.generation, Time: time.Now()}
	if r.program.kept != "" {
		kept, err := filepath.Rel(s.path, r.program.kept)
		if err != nil {
			return err
		}
		rec.Kept, rec.SHA256 = kept, r.program.sum()
	}
	text, err := json.MarshalIndent(rec, "", "  ")
	if err == nil {
		err = renameio.WriteFile(s.recordFile(), append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("supervisor: State %s: %w", s.path, err)
	}
	return s.removeOthers(rec.SHA256, next.program.sum())
}

func (s *stateDir) removeOthers(sums ...string) error {
	entries, err := os.ReadDir(filepath.Join(s.path, "programs"))
	for _, e := range entries {
		if !slices.Contains(sums, e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.path, "programs", e.Name())))
		}
	}
	return err
}

// load returns the last good release, or nil if none was recorded.
func (s *stateDir) load() (*record, error) {
	if s.path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.recordFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var rec record
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err == nil && len(rec.Command) == 0 {
		err = errors.New("it names no command")
	}
	if err != nil {
		return nil, fmt.Errorf("supervisor: State: %s: %w: remove the file to start the command of the command line", s.recordFile(), err)
	}
	return &rec, nil
}

// programOf is the program of the last good release: where it was, if that still
// is it, and its copy.
func (s *stateDir) programOf(rec *record) (program, error) {
	p := program{path: rec.Program}
	if rec.Kept == "" {
		now, err := programAt(rec.Program)
		return now, err
	}
	kept := filepath.Join(s.path, rec.Kept)
	sum, err := sumOf(kept)
	if err == nil && sum != rec.SHA256 {
		err = errors.New("it is not what was kept")
	}
	if err != nil {
		return p, fmt.Errorf("supervisor: State: %s: %w", kept, err)
	}
	p.kept = kept
	if sum, err := sumOf(rec.Program); err == nil && sum == rec.SHA256 {
		if now, err := programAt(rec.Program); err == nil {
			now.kept = kept
			return now, nil
		}
	}
	return p, nil
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
