package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// Options of a spool; the zero value works.
type Options struct {
	// Max is how many bytes the records' files may have; 1 GiB if 0.
	Max int64
	// Segment is how many bytes a file has when the next one begins; if 0, 8 MiB or
	// an eighth of Max, whatever is less, which is also the most it can be.
	Segment int64
	// Logger gets what is no error; slog.Default() if nil.
	Logger *slog.Logger
	// OnError gets errors that no caller gets, as damage that was found. It is called
	// by whatever goroutine meets one, without a lock held. If nil, Logger gets them.
	OnError func(error)
	// Now says when a record is appended; time.Now if nil.
	Now func() time.Time
}

const (
	defaultMax     = 1 << 30
	defaultSegment = 8 << 20
	minMax         = 4 << 10
)

func (o Options) withDefaults() (Options, error) {
	if o.Max < 0 || (o.Max > 0 && o.Max < minMax) {
		return o, fmt.Errorf("spool: Options.Max is %d bytes: give at least %d, or 0 for 1 GiB", o.Max, minMax)
	}
	if o.Segment < 0 {
		return o, fmt.Errorf("spool: Options.Segment is %d: give a number of bytes, or 0 for the default", o.Segment)
	}
	o.Max = cmp.Or(o.Max, defaultMax)
	o.Segment = min(cmp.Or(o.Segment, defaultSegment), o.Max/8)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OnError == nil {
		o.OnError = func(err error) { o.Logger.Error("spool", "error", err) }
	}
	return o, nil
}

// Errors that callbacks get, for errors.Is.
var (
	// ErrFull: the record was not accepted because there is no space for it.
	ErrFull = errors.New("the spool is full")
	// ErrSync: whether the record is on the disk is not known. It was not accepted,
	// is not read by this process, and may be read by the next owner.
	ErrSync = errors.New("not known to be on the disk")
	// ErrClosed: the spool was closed before.
	ErrClosed = errors.New("the spool is closed")
)

// A Spool is one that this process owns. Its methods may be called concurrently,
// except that Next and Rewind are for one goroutine.
type Spool struct {
	path  string
	opts  Options
	owner *owner
	loop  *loop.Loop
	wake  chan struct{} // for the loop: there is something to do
	ready chan struct{}

	position *position
	notes    *notes

	mu       sync.Mutex
	closed   bool
	queue    []*entry
	queued   int64      // bytes that the queue will take
	segments []*segment // in order; the last may be one that is written to
	last     uint64     // number of the last record that was accepted
	trimmed  uint64
	lost     []hole
	oldest   Record // the record after trimmed, once it has been asked for

	writer writer // of the loop
	reader reader // of the goroutine that calls Next
}

// A hole is a range of records that were accepted and cannot be read.
type hole struct{ from, to uint64 }

func (h hole) missing(what string) string {
	if h.from == h.to {
		return fmt.Sprintf("%s %d is missing", what, h.from)
	}
	return fmt.Sprintf("%ss %d to %d are missing", what, h.from, h.to)
}

// An entry is a record that waits to be written.
type entry struct {
	data []byte
	at   time.Time
	done func(uint64, error)
	err  error // it is refused
}

// Open makes a new spool for this process, in a directory NAME.RANDOM of dir, which
// is made if needed. The error names dir if it cannot be written to.
func Open(dir, name string, o Options) (*Spool, error) {
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
	owner, err := makeDir(dir, name)
	if err != nil {
		return nil, cannotUse(dir, err)
	}
	s, err := newSpool(owner, o)
	if err != nil {
		removeDir(owner.path)
		return nil, errors.Join(cannotUse(dir, err), owner.release())
	}
	s.loop = loop.Go(s.run)
	return s, nil
}

func cannotUse(dir string, err error) error {
	if noSpace(err) {
		return fmt.Errorf("spool: %w: no space for a spool in %s: free some, or use another directory: %w", ErrFull, dir, err)
	}
	return fmt.Errorf("spool: cannot make a spool in %s: make it a directory that this user can write to, or use another one: %w", dir, err)
}

func newSpool(owner *owner, o Options) (s *Spool, err error) {
	s = &Spool{path: owner.path, opts: o, owner: owner, wake: make(chan struct{}, 1), ready: make(chan struct{}, 1)}
	s.notes = &notes{dir: s.path, values: map[string][]byte{}, report: o.OnError}
	s.writer.sync = syncFile
	var lost bool
	if s.position, lost, err = openPosition(s.path); err != nil {
		return nil, err
	}
	if lost {
		o.OnError(fmt.Errorf("spool %s: the file %s is damaged: records that were done may be read again", s.path, positionFile))
	}
	return s, nil
}

// Path is the spool's directory.
func (s *Spool) Path() string { return s.path }

// Append takes a record to be written. done is called exactly once, on the spool's
// own goroutine, in the order of the calls of Append: with the record's number once
// it is on the disk, or with the error for which it is not accepted. Errors wrap
// [ErrFull], [ErrSync] or [ErrClosed]; any other is a failed write, and the record is
// not accepted either. If the spool was closed, done is called before Append returns.
//
// Append never waits for the disk, so that what waits to be written is bounded by
// Options.Max only. data must not change until done is called. done may call Append,
// Trim, Note and Stats, not Close.
func (s *Spool) Append(data []byte, done func(n uint64, err error)) {
	e := &entry{data: data, at: s.opts.Now(), done: done}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		done(0, s.errClosed())
		return
	}
	size := sizeOf(data)
	// A batch, of which one is being written, begins one file at most.
	headers := segmentHeader * min(int64(len(s.queue))+2, 2+(s.queued+size)/s.opts.Segment)
	switch live := s.liveBytes(); {
	case len(data) > maxData:
		e.err = fmt.Errorf("spool %s: a record of %d bytes, more than the %d that one can have", s.path, len(data), maxData)
	case live+s.queued+size+headers > s.opts.Max:
		e.err = fmt.Errorf("%w: %s holds %d bytes, and with the %d of this record more than SpoolMax (%d): raise it, or see why what is in it is not taken", ErrFull, s.path, live+s.queued, size, s.opts.Max)
	default:
		s.queued += size
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	signal(s.wake)
}

// liveBytes are those of files with records that are not done; the others are removed
// before anything is written.
func (s *Spool) liveBytes() (sum int64) {
	for i := len(s.segments) - 1; i >= 0 && s.segments[i].last > s.trimmed; i-- {
		sum += s.segments[i].size
	}
	return sum
}

// Stats of a spool.
type Stats struct {
	Waiting uint64    // records that can be read and are not trimmed
	Bytes   int64     // of the records' files
	Oldest  time.Time // when the first of the waiting records was appended; zero if none waits
	Last    uint64    // number of the last record that was accepted
	Trimmed uint64    // number up to which records are done
	Lost    uint64    // waiting records that damage has made unreadable
}

// Ready is signalled when there is something new to read.
func (s *Spool) Ready() <-chan struct{} { return s.ready }

// Close writes what was appended, calls the callbacks, and lets the spool go. Records
// that wait stay for another process to adopt; without any, the directory is removed.
// Close may be called more than once, but not by a callback, nor during Next.
func (s *Spool) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.loop.StopAndWait()
	if !first {
		return nil
	}
	st := s.counts()
	// From now on damage to the last record can be told from one that was being
	// written.
	err := errors.Join(s.position.set(s.trimmed, s.last), s.position.sync(), s.position.close(), s.notes.close())
	err = errors.Join(err, s.writer.close(), s.reader.close())
	stopAt("closing")
	// What could not be read may be read by the next owner, if the disk has recovered.
	if st.Waiting == 0 && st.Lost == 0 {
		removeDir(s.path)
	}
	err = errors.Join(err, s.owner.release())
	if err != nil {
		return fmt.Errorf("spool %s: close: %w", s.path, err)
	}
	return nil
}

func (s *Spool) run(ctx context.Context) {
	for {
		s.removeTrimmed()
		for s.commit() {
			s.removeTrimmed()
			// Those whose records are on the disk now are about to append the next ones:
			// what they have appended by the next sync shares it.
			runtime.Gosched()
		}
		select {
		case <-s.wake:
			continue
		case <-ctx.Done():
		}
		// Nothing is appended any more.
		for s.commit() {
		}
		s.removeTrimmed()
		return
	}
}

// signal sets a channel that holds one signal.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Spool) errClosed() error {
	return fmt.Errorf("spool %s: %w", s.path, ErrClosed)
}

// diskError says what a failure to write means.
func (s *Spool) diskError(what string, err error) error {
	if noSpace(err) {
		return fmt.Errorf("%w: cannot %s: no space on the disk of %s: free some, or set SpoolDir to a directory on another: %w", ErrFull, what, s.path, err)
	}
	return fmt.Errorf("spool %s: cannot %s: %w", s.path, what, err)
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Tests kill the process at stopAt, know by onSync what a loss of power leaves, and
// have the disk fail by onRead.
var (
	stopAt = func(point string) {}
	onSync = func(path string) {}
	onRead = func(f io.ReaderAt) io.ReaderAt { return f }
)
