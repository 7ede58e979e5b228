package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A reader goes through a spool's segments.
type reader struct {
	next    uint64 // number of the record to read next, or of one before it
	segment *segment
	file    *os.File
	off     int64
	end     int64  // of what is known to be readable
	until   uint64 // number of the last record before end
	last    uint64 // number of the last record before off
	buf     []byte // what was read of the file, from off on
}

// readAhead is how much is read at once.
const readAhead = 256 << 10

// Next returns the next record in order; false when none is there at present, and
// then Ready tells when to try again. After an error, which names the file, it may be
// called again and reads the same record. Next and Rewind are for one goroutine.
func (s *Spool) Next() (Record, bool, error) { return s.read(&s.reader) }

// Rewind makes Next go on with the first record after n that is not trimmed.
func (s *Spool) Rewind(n uint64) {
	_ = s.reader.close()
	s.reader = reader{next: n + 1}
}

func (r *reader) close() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	*r = reader{next: r.next}
	return f.Close()
}

func (s *Spool) read(r *reader) (Record, bool, error) {
	for {
		ok, err := s.advance(r)
		if !ok || err != nil {
			return Record{}, false, err
		}
		rec, ok, err := s.readOne(r)
		if err != nil {
			return Record{}, false, fmt.Errorf("spool: cannot read %s: %w", r.segment.path, err)
		}
		if ok && rec.N >= r.next {
			r.next = rec.N + 1
			return rec, true, nil
		}
	}
}

// advance sees to it that there is something to read in the reader's file, the next
// one if need be.
func (s *Spool) advance(r *reader) (bool, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false, s.errClosed()
	}
	r.next = max(r.next, s.trimmed+1)
	if r.file != nil {
		r.end, r.until = r.segment.end, r.segment.last
		if r.off < r.end && r.next <= r.until {
			s.mu.Unlock()
			return true, nil
		}
		if r.off >= r.end {
			r.next = max(r.next, r.until+1) // what is missing at its end
		}
	}
	var seg *segment
	for _, one := range s.segments {
		if one.last >= r.next {
			seg = one
			break
		}
	}
	if seg == nil {
		s.mu.Unlock()
		return false, nil
	}
	found := reader{next: r.next, segment: seg, end: seg.end, until: seg.last}
	found.off, found.last = seg.before(r.next)
	s.mu.Unlock()

	_ = r.close()
	f, err := os.Open(seg.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.missing(r, seg)
	}
	if err != nil {
		return false, fmt.Errorf("spool: %w", err)
	}
	*r = found
	r.file = f
	return s.advance(r)
}

// missing goes on without a file that is not there.
func (s *Spool) missing(r *reader, seg *segment) (bool, error) {
	s.mu.Lock()
	last, trimmed := seg.last, s.trimmed
	s.mu.Unlock()
	// Otherwise it was trimmed just now, or that is known.
	if gone := (hole{max(seg.first, trimmed+1), last}); trimmed < last && s.lose(gone) {
		s.opts.OnError(fmt.Errorf("spool: %s is not there any more, somebody has removed it: %s", seg.path, gone.missing("record")))
	}
	r.next = last + 1
	return s.advance(r)
}

// readOne reads the record at the reader's offset; false if there is none because of
// damage, which is then behind the reader.
func (s *Spool) readOne(r *reader) (Record, bool, error) {
	rec, size, v := parse(r.buf, r.segment.salt)
	if v == short && r.off+size <= r.end {
		if err := r.fill(max(size, min(readAhead, r.end-r.off))); err != nil {
			return Record{}, false, err
		}
		rec, size, v = parse(r.buf, r.segment.salt)
		if v == short && r.off+size <= r.end { // only its header was in reach
			if err := r.fill(size); err != nil {
				return Record{}, false, err
			}
			rec, size, v = parse(r.buf, r.segment.salt)
		}
	}
	if v == whole && rec.N > r.last {
		r.consume(size, rec.N)
		return rec, true, nil
	}
	if err := r.fill(r.end - r.off); err != nil {
		return Record{}, false, err
	}
	rec, from, to, ok := find(r.buf, r.segment.salt, r.last)
	d := damage{r.off, r.off + int64(from), r.last, rec.N}
	b := r.buf[:from]
	if !ok {
		rec.N, d.after = r.until, r.until+1
	}
	r.consume(int64(to), rec.N)
	if s.isTrimmed(d.after - 1) {
		return rec, ok, nil // the file may just have been emptied
	}
	s.setAside(r.segment, d, b)
	return rec, ok, nil
}

func (s *Spool) isTrimmed(n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n <= s.trimmed
}

// fill reads n bytes from the reader's offset on. The buffer is a new one, since
// records keep parts of the old one.
func (r *reader) fill(n int64) error {
	stopAt("reading")
	b, _, err := readRange(r.file, r.off, n)
	if err == nil {
		r.buf = b
	}
	return err
}

func (r *reader) consume(n int64, last uint64) {
	r.buf = r.buf[n:]
	r.off += n
	r.last = last
}

// counts are the Stats without what must be read.
func (s *Spool) counts() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Last: s.last, Trimmed: s.trimmed}
	for _, seg := range s.segments {
		st.Bytes += seg.size
	}
	for _, h := range s.lost {
		st.Lost += h.to - max(h.from, s.trimmed+1) + 1
	}
	st.Waiting = s.last - s.trimmed - st.Lost
	return st
}

// Stats tells how full the spool is. It may be called concurrently and by callbacks,
// and reads the oldest record from the disk when records were trimmed since the last
// time.
func (s *Spool) Stats() Stats {
	st := s.counts()
	if st.Waiting == 0 {
		return st
	}
	s.mu.Lock()
	oldest := s.oldest
	s.mu.Unlock()
	if oldest.N <= st.Trimmed {
		r := reader{next: st.Trimmed + 1}
		oldest, _, _ = s.read(&r) // Next reports what cannot be read
		_ = r.close()
		oldest.Data = nil
		s.mu.Lock()
		s.oldest = oldest
		s.mu.Unlock()
	}
	st.Oldest = oldest.At
	return st
}
