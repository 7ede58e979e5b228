package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Info describes a spool on disk, whoever owns it.
type Info struct {
	Path    string
	Name    string    // as given to Open
	Owned   bool      // a process that lives owns it
	Pid     int       // of that process; 0 if unknown or in another pid namespace
	Records uint64    // that can be read and are not trimmed
	Bytes   int64     // of the records' files
	Oldest  time.Time // when the first of these records was appended
	Corrupt int       // parts that were set aside because they cannot be read
}

// List describes the spools of a directory, without changing anything. It reads all
// of their files. Those of an owner that lives may change meanwhile.
func List(dir string) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("spool: cannot list the spools of %s: %w", dir, err)
	}
	var out []Info
	var errs []error
	for _, e := range entries {
		name, ok := nameOf(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		i, err := describe(filepath.Join(dir, e.Name()), name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its owner has just removed it
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("spool: cannot read %s: %w", i.Path, err))
		}
		out = append(out, i)
	}
	return out, errors.Join(errs...)
}

func describe(path, name string) (Info, error) {
	i := Info{Path: path, Name: name}
	i.Owned, i.Pid = alive(path)
	err := View(path, func(r Record) bool {
		if i.Records == 0 {
			i.Oldest = r.At
		}
		i.Records++
		return true
	})
	if err != nil {
		return i, err
	}
	files, err := listFiles(path, segmentSuffix)
	if err != nil {
		return i, err
	}
	for _, f := range files {
		if st, err := os.Stat(f.path); err == nil {
			i.Bytes += st.Size()
		}
	}
	i.Corrupt, err = countCorrupt(path)
	return i, err
}

// View calls each with the records of the spool at a path that are not trimmed, in
// order, until it returns false. It changes nothing, and the spool may be owned by
// another process: what that appends or trims meanwhile is seen or not, and what it
// is just writing may be seen before it is accepted.
func View(path string, each func(Record) bool) error {
	files, err := listFiles(path, segmentSuffix)
	if err != nil {
		return err
	}
	var slots [2 * slotSize]byte
	if f, err := os.Open(filepath.Join(path, positionFile)); err == nil {
		_, _ = f.ReadAt(slots[:], 0)
		_ = f.Close()
	}
	_, trimmed, _ := readSlots(slots[:])
	found := make([]contents, len(files))
	for i, f := range files {
		if found[i], err = f.examineFile(noLimit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	for i, f := range files {
		b, err := f.bytes()
		if errors.Is(err, fs.ErrNotExist) {
			continue // its records have just been trimmed
		}
		if err != nil {
			return err
		}
		more := true
		if _, err := examine(b, f.salt, limitOf(found[i+1:]), func(r Record, _ int64) bool {
			more = r.N <= trimmed || each(r)
			return more
		}); err != nil || !more {
			return err
		}
	}
	return nil
}
