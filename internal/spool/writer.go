package spool

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// A writer is the loop's own state.
type writer struct {
	segment *segment // that is written to, not yet or already among the spool's; nil: the next record begins one
	file    *os.File
	seq     uint64 // of the newest segment
	tight   bool   // the disk was full since the segment was begun
	buf     []byte
	sync    func(*os.File) error
}

// maxBatch is how many bytes are written at once, unless a single record has more.
const maxBatch = 1 << 20

func newSalt() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint32(b[:])
}

// commit writes what waits, as far as it goes into one batch, and reports whether
// there was something.
func (s *Spool) commit() bool {
	batch := s.take()
	if len(batch) == 0 {
		return false
	}
	err := s.write(batch)
	if noSpace(err) {
		s.writer.tight = true
		if s.worthless(0) {
			s.removeTrimmed()
			err = s.write(batch)
		}
	}
	n := s.last // written by this goroutine only
	s.accept(batch, err)
	if err == nil {
		stopAt("synced")
	}
	for _, e := range batch {
		switch {
		case e.err != nil:
			e.done(0, e.err)
		case err != nil:
			e.done(0, err)
		default:
			n++
			e.done(n, nil)
		}
	}
	return true
}

// take removes the next batch from the queue.
func (s *Spool) take() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := min(maxBatch, s.opts.Segment)
	size, n := int64(0), 0
	for n < len(s.queue) && (size == 0 || size < limit) {
		if e := s.queue[n]; e.err == nil {
			size += sizeOf(e.data)
		}
		n++
	}
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
	return batch
}

// write puts a batch on the disk, all of it or nothing.
func (s *Spool) write(batch []*entry) error {
	w := &s.writer
	var size int64
	for _, e := range batch {
		if e.err == nil {
			size += sizeOf(e.data)
		}
	}
	if size == 0 {
		return nil
	}
	if err := s.room(size); err != nil {
		return err
	}
	fresh := w.segment.size == 0
	w.buf = w.buf[:0]
	if fresh {
		w.buf = appendHeader(w.buf, w.segment.salt, w.segment.first)
	}
	n := s.last
	for _, e := range batch {
		if e.err == nil {
			n++
			w.buf = appendRecord(w.buf, w.segment.salt, n, e.at, e.data)
		}
	}
	if _, err := w.file.WriteAt(w.buf, w.segment.size); err != nil {
		return s.undo(err)
	}
	stopAt("written")
	err := w.sync(w.file)
	if err == nil && fresh {
		err = syncDir(s.path)
	}
	if err == nil {
		err = named(w.file)
	}
	if err != nil {
		// What the kernel could not write it may count as written from now on, so
		// the file cannot be trusted with more.
		path := w.segment.path
		w.abandon()
		return fmt.Errorf("%w: %s cannot be trusted, and the next record begins a new file: see what became of it, and what the kernel's log says of its disk: %w", ErrSync, path, err)
	}
	return nil
}

// named tells whether somebody has removed a file: what is in it would be lost with the
// process.
func named(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink == 0 {
		return errors.New("somebody has removed it")
	}
	return nil
}

// room sees to it that there is a segment to write to.
func (s *Spool) room(size int64) error {
	w := &s.writer
	if s.worthless(size) {
		w.retire()
		s.removeTrimmed()
	}
	if w.segment != nil && w.segment.size >= s.opts.Segment {
		w.retire()
	}
	if w.segment != nil {
		return nil
	}
	seg := &segment{seq: w.seq + 1, salt: newSalt(), first: s.last + 1, last: s.last, start: segmentHeader}
	seg.path = filepath.Join(s.path, segmentName(seg.seq, seg.salt))
	f, err := os.OpenFile(seg.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return s.diskError("make a file", err)
	}
	stopAt("created")
	w.seq, w.segment, w.file = seg.seq, seg, f
	return nil
}

// worthless reports whether all that the segment holds is done and its space is of
// more use than the time that a new one takes, or needed to write size more.
func (s *Spool) worthless(size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.writer.segment
	return seg != nil && seg.last <= s.trimmed && seg.size > 0 &&
		(s.writer.tight || seg.size >= s.opts.Segment/8 || s.liveBytes()+seg.size+size > s.opts.Max)
}

// undo takes back what a failed write may have left.
func (s *Spool) undo(cause error) error {
	w := &s.writer
	what := "write to " + w.segment.path
	err := w.file.Truncate(w.segment.size)
	if err == nil {
		err = w.sync(w.file)
	}
	if err != nil {
		w.abandon()
		return fmt.Errorf("%w: %w", ErrSync, errors.Join(s.diskError(what, cause), err))
	}
	if w.segment.size == 0 {
		w.abandon()
	}
	return s.diskError(what, cause)
}

// abandon leaves the segment, which ends where it ended before the last batch. The
// next one begins with the numbers of that batch, so that nobody reads it.
func (w *writer) abandon() {
	_ = w.file.Truncate(w.segment.size) // the best that can be done
	if w.segment.size == 0 {
		_ = os.Remove(w.segment.path)
	}
	w.retire()
}

func (w *writer) retire() {
	_ = w.file.Close() // it is synced, or it is given up
	w.file, w.segment, w.tight = nil, nil, false
}

func (w *writer) close() error {
	if w.file == nil {
		return nil
	}
	return w.file.Close()
}

// accept lets a batch that is on the disk be read, and takes it off the queue's bytes
// in any case.
func (s *Spool) accept(batch []*entry, err error) {
	w := &s.writer
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, e := range batch {
		if e.err == nil {
			s.queued -= sizeOf(e.data)
			if err == nil {
				s.last++
				count++
			}
		}
	}
	if count == 0 {
		return
	}
	seg := w.segment
	if seg.size == 0 {
		s.segments = append(s.segments, seg)
	}
	seg.mark(s.last-uint64(count)+1, max(seg.size, segmentHeader))
	seg.size += int64(len(w.buf))
	seg.end, seg.last = seg.size, s.last
	signal(s.ready)
}
