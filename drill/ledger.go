package drill

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// A Ledger is every journal of a run.
type Ledger struct {
	Reporters []*Reporter
}

// A Reporter is one process as its journal shows it.
type Reporter struct {
	File       string
	Role, App  string
	PID        int
	Generation string // of the supervisor; "" if it did not run under one
	Slot       string
	Entries    []Entry
	Closed     bool     // the last line is there, with the right total
	Flaws      []string // missing numbers, lines that cannot be read

	lines  uint64 // the number of the last line read
	opened time.Duration
	last   time.Duration
}

// An Entry is one line of a journal.
type Entry struct {
	At                  time.Duration
	Kind                witness.Kind
	Topic, ID           string
	Pattern, Group, Err string
	Key                 string
	Fate                witness.Fate
	Left                string
	Attempt             int
	Scheduled           time.Duration
}

// A Reader reads the journals of a drill's folder while they are being written.
type Reader struct {
	dir   string
	files map[string]*tail
	led   Ledger
}

type tail struct {
	rep  *Reporter
	off  int64
	rest []byte
}

// NewReader reads from DIR/ledger.
func NewReader(dir string) *Reader {
	return &Reader{dir: filepath.Join(dir, "ledger"), files: map[string]*tail{}}
}

// ReadLedger reads all journals of a run that has ended.
func ReadLedger(dir string) (*Ledger, error) {
	return NewReader(dir).Finish()
}

// Poll reads what was written since the last call.
func (r *Reader) Poll() (*Ledger, error) {
	names, err := filepath.Glob(filepath.Join(r.dir, "*.log"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		t := r.files[name]
		if t == nil {
			t = &tail{rep: &Reporter{File: filepath.Base(name)}}
			r.files[name] = t
			r.led.Reporters = append(r.led.Reporters, t.rep)
		}
		if err := t.read(name); err != nil {
			return nil, err
		}
	}
	return &r.led, nil
}

// Finish reads the rest; a last line without its end is then a flaw.
func (r *Reader) Finish() (*Ledger, error) {
	led, err := r.Poll()
	if err != nil {
		return nil, err
	}
	for _, t := range r.files {
		if len(t.rest) > 0 {
			t.rep.flaw("the last line is torn: %q", t.rest)
		}
	}
	return led, nil
}

func (t *tail) read(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, t.off, 1<<40))
	if err != nil {
		return err
	}
	t.off += int64(len(b))
	b = append(t.rest, b...)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		t.rep.add(string(b[:i]))
		b = b[i+1:]
	}
	t.rest = slices.Clone(b)
	return nil
}

func (r *Reporter) flaw(format string, args ...any) {
	r.Flaws = append(r.Flaws, fmt.Sprintf(format, args...))
}

func (r *Reporter) add(s string) {
	l, err := witness.Parse(s)
	if err != nil {
		r.flaw("line %d: %v", r.lines+1, err)
		r.lines++
		return
	}
	switch {
	case l.N > r.lines+1:
		r.flaw("lines %d to %d are missing", r.lines+1, l.N-1)
	case l.N <= r.lines:
		r.flaw("line %d comes after line %d", l.N, r.lines)
	}
	if l.At < r.last {
		r.flaw("line %d is older than the one before it", l.N)
	}
	if r.Closed {
		r.flaw("line %d comes after the journal was closed", l.N)
	}
	if (l.N == 1) != (l.Kind == witness.Header) {
		r.flaw("line %d is of kind %q", l.N, string(l.Kind))
	}
	r.lines, r.last = max(r.lines, l.N), l.At
	if err := r.take(l); err != nil {
		r.flaw("line %d: %v", l.N, err)
	}
}

func (r *Reporter) take(l witness.Line) (err error) {
	f := l.Fields
	switch l.Kind {
	case witness.Header:
		r.Role, r.App, r.Generation, r.Slot, r.opened = f[0], f[2], f[3], f[4], l.At
		r.PID, err = strconv.Atoi(f[1])
		return err
	case witness.Closed:
		r.Closed = f[0] == strconv.FormatUint(l.N, 10)
		if !r.Closed {
			return fmt.Errorf("closed with a total of %s", f[0])
		}
		return nil
	}
	e := Entry{At: l.At, Kind: l.Kind, Topic: f[0], ID: f[1]}
	switch l.Kind {
	case witness.Plan:
		e.Key, e.Fate = f[2], witness.Fate(f[3])
		if e.Fate != "" && !e.Fate.Known() {
			return fmt.Errorf("no such fate: %q", f[3])
		}
	case witness.Left:
		e.Left = f[2]
	case witness.Intent:
		ns, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			return err
		}
		e.Scheduled = time.Duration(ns)
	case witness.Refuse, witness.Doubt:
		e.Err = f[2]
	case witness.Begin:
		e.Pattern, e.Group = f[2], f[3]
		if e.Attempt, err = strconv.Atoi(f[4]); err != nil {
			return err
		}
	case witness.End, witness.Nack:
		e.Pattern, e.Group, e.Err = f[2], f[3], f[4]
	case witness.Ack:
		e.Pattern, e.Group = f[2], f[3]
	}
	r.Entries = append(r.Entries, e)
	return nil
}

// name is how reports call the process.
func (r *Reporter) name() string {
	s := r.App
	if r.Slot != "" {
		s += " worker " + r.Slot
	}
	if r.Generation != "" {
		s += " of generation " + r.Generation
	}
	return strings.TrimSpace(fmt.Sprintf("%s, pid %d", s, r.PID))
}
