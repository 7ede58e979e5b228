package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tidings-go/tidings/internal/loop"
)

// Adopt takes over every spool of that name whose owner has died and that has records
// to read, the one with the oldest first. Of several processes that try, one gets
// each. Spools without records are removed, unless damage was set aside in them. A
// spool that cannot be opened is named in the error and left as it is; the others are
// returned all the same. A directory that does not exist has no spools.
func Adopt(dir, name string, o Options) ([]*Spool, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("spool: cannot look for the spools of dead processes in %s: %w", dir, err)
	}
	var out []*Spool
	var errs []error
	for _, e := range entries {
		if of, ok := nameOf(e.Name()); !ok || of != name || !e.IsDir() {
			continue
		}
		s, err := adoptOne(filepath.Join(dir, e.Name()), o)
		if s != nil {
			out = append(out, s)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(out, func(a, b *Spool) int { return a.Stats().Oldest.Compare(b.Stats().Oldest) })
	return out, errors.Join(errs...)
}

// adoptOne returns nil when there is nothing to adopt.
func adoptOne(path string, o Options) (*Spool, error) {
	owner, err := own(path)
	if errors.Is(err, errOwned) || errors.Is(err, errGone) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("spool: cannot lock %s, whose owner may be dead: %w", path, err)
	}
	stopAt("adopted")
	s, err := reopen(owner, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spool: cannot open %s, whose owner is dead; it was left as it is: %w", path, err), owner.release())
	}
	if s.counts().Waiting == 0 {
		err := errors.Join(s.position.close(), s.notes.close())
		if !slices.ContainsFunc(s.segments, func(f *segment) bool { return f.unreadable }) {
			removeDir(path) // else the disk may recover
		}
		return nil, errors.Join(err, owner.release())
	}
	s.loop = loop.Go(s.run)
	signal(s.ready)
	return s, nil
}

// reopen reads what a dead process has left.
func reopen(owner *owner, o Options) (*Spool, error) {
	s, err := newSpool(owner, o)
	if err != nil {
		return nil, err
	}
	err = s.notes.load(func(f *segment, b []byte, d damage) { s.setAside(f, d, b[d.from:d.to]) })
	if err == nil {
		err = s.recover()
	}
	if err != nil {
		return nil, errors.Join(err, s.position.close())
	}
	return s, nil
}

// recover finds the records.
func (s *Spool) recover() error {
	files, err := listFiles(s.path, segmentSuffix)
	if err != nil {
		return err
	}
	found := make([]contents, len(files))
	for i, f := range files {
		s.writer.seq = f.seq
		if found[i], err = f.examineFile(noLimit); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	if err := supersede(files, found); err != nil {
		return err
	}
	return s.assemble(files, found)
}

// examineFile reads a segment's file and fills in what is known then.
func (f *segment) examineFile(limit uint64) (contents, error) {
	b, err := f.bytes()
	if err != nil {
		return contents{}, err
	}
	f.size, f.marks = int64(len(b)), nil
	return examine(b, f.salt, limit, func(r Record, off int64) bool {
		f.mark(r.N, off)
		return true
	})
}

// supersede takes out records whose number a later segment begins with or is above:
// they are from a write whose sync failed.
func supersede(files []*segment, found []contents) (err error) {
	for i, f := range files {
		if limit := limitOf(found[i+1:]); found[i].last > limit {
			if found[i], err = f.examineFile(limit); err != nil {
				return fmt.Errorf("%s: %w", f.path, err)
			}
		}
	}
	return nil
}

// limitOf is the greatest number that a record may have so that the segments behind
// it are found to hold those.
func limitOf(behind []contents) uint64 {
	limit := uint64(noLimit)
	for _, c := range behind {
		if c.first > 0 {
			limit = min(limit, c.first-1)
		}
	}
	return limit
}

// assemble makes the spool's segments of what was found, and reports what is missing.
func (s *Spool) assemble(files []*segment, found []contents) error {
	s.trimmed = s.position.trimmed
	last := s.trimmed // of the records so far
	if len(found) > 0 && s.position.turn == 0 && found[0].headed {
		last = found[0].first - 1 // how far it was trimmed is not known
		s.trimmed = last
	}
	for i, f := range files {
		c := &found[i]
		after := s.nextFirst(found[i+1:])
		if c.headed && c.first > last+1 {
			s.gap(last, c.first)
		}
		for _, d := range c.damage {
			tail := d.after == 0
			d.before = max(d.before, last)
			if tail {
				d.after = max(after, d.before+1)
			}
			// What follows the last record and leaves no hole was being written, or its
			// sync had failed, unless the disk cannot say what it is.
			if tail && d.after == d.before+1 && !f.unreadable {
				if err := s.cut(f, d); err != nil {
					return err
				}
				continue
			}
			b, err := f.bytes()
			if err != nil {
				return err
			}
			s.setAside(f, d, b[d.from:d.to])
			if tail {
				last = max(last, d.after-1)
			}
		}
		// What is missing at its end belongs to it, so that it stays as long as that is
		// not done. Without any record it goes with those before it.
		last = max(last, c.last)
		f.first, f.last, f.start, f.end = c.first, last, c.start, c.end
		if c.first == 0 {
			f.first = last + 1
		}
		s.segments = append(s.segments, f)
	}
	if s.position.synced > last {
		s.gap(last, s.position.synced+1)
		last = s.position.synced
	}
	s.last = max(last, s.trimmed)
	return s.settle()
}

// settle makes sure that what was found is on the disk, as all that is read must be.
// If it is damaged later, that it was there is known.
func (s *Spool) settle() error {
	if len(s.segments) == 0 || s.last <= s.trimmed {
		return nil
	}
	f, err := os.Open(s.segments[len(s.segments)-1].path)
	if err != nil {
		return err
	}
	if err := errors.Join(syncFile(f), f.Close(), syncDir(s.path)); err != nil {
		return err
	}
	return s.position.set(s.trimmed, s.last)
}

// nextFirst is the number that the records of the segments to come begin with; 0 if
// there are none, and nothing tells how many there should be.
func (s *Spool) nextFirst(found []contents) uint64 {
	for _, c := range found {
		if c.first > 0 {
			return c.first
		}
	}
	if s.position.synced > 0 {
		return s.position.synced + 1
	}
	return 0
}

// gap reports records between the two that no file holds.
func (s *Spool) gap(before, after uint64) {
	if !s.lose(hole{before + 1, after - 1}) {
		return
	}
	s.opts.OnError(fmt.Errorf("spool %s: %s: no file holds them; somebody has removed it", s.path, hole{before + 1, after - 1}.missing("record")))
}

// cut removes what is behind the last record of a file.
func (s *Spool) cut(f *segment, d damage) error {
	s.opts.Logger.Info("spool: what its owner was writing when it died was never accepted, and is cut off", "file", f.path, "offset", d.from, "bytes", d.to-d.from)
	file, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	f.size = d.from
	return errors.Join(file.Truncate(d.from), syncFile(file), file.Close())
}
