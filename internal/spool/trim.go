package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Trim says that all records up to n are done: they are not read again, and files
// that hold nothing else are removed. What the process was killed after stays
// trimmed; after a loss of power some of it may be read again. It may be called
// concurrently and by callbacks.
func (s *Spool) Trim(n uint64) {
	s.mu.Lock()
	n = min(n, s.last)
	if s.closed || n <= s.trimmed {
		s.mu.Unlock()
		return
	}
	s.trimmed = n
	last := s.last
	s.forgetLost()
	s.mu.Unlock()
	if err := s.position.set(n, last); err != nil {
		s.opts.OnError(fmt.Errorf("spool %s: cannot write that records up to %d are done; they may be read again: %w", s.path, n, err))
	}
	signal(s.wake)
}

// forgetLost drops the holes that are trimmed.
func (s *Spool) forgetLost() {
	kept := s.lost[:0]
	for _, h := range s.lost {
		if h.to > s.trimmed {
			kept = append(kept, h)
		}
	}
	s.lost = kept
}

// removeTrimmed removes the files that hold nothing but what is done.
func (s *Spool) removeTrimmed() {
	if s.worthless(0) {
		s.writer.retire()
	}
	s.mu.Lock()
	n := 0
	for n < len(s.segments) && s.segments[n].last <= s.trimmed && s.segments[n] != s.writer.segment {
		n++
	}
	done := s.segments[:n:n]
	s.segments = s.segments[n:]
	s.mu.Unlock()
	if n == 0 {
		return
	}
	// That a file is missing can then be told from its having been removed.
	if err := s.position.sync(); err != nil {
		s.opts.OnError(fmt.Errorf("spool %s: cannot sync %s: after a loss of power it may look as if records were missing: %w", s.path, positionFile, err))
	}
	for _, seg := range done {
		stopAt("trimming")
		// The reader may have it open, which would keep its space.
		_ = os.Truncate(seg.path, 0)
		stopAt("emptied")
		if err := os.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.opts.OnError(fmt.Errorf("spool: cannot remove a file whose records are done: remove it, or its space is lost until the spool is: %w", err))
		}
		stopAt("trimmed")
	}
}
