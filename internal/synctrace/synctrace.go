// Package synctrace reads what strace saw of a NATS server and says which
// acknowledgements it sent before what they acknowledge was on disk.
//
// A test that kills a process shows nothing of that: what was written and not
// synced is in the kernel's memory and survives the process. So the order of the
// system calls is looked at instead. For each message that an acknowledgement
// covers there must be, in this order: the end of a write of its record to a block
// file, an fsync or fdatasync of that file, begun after that and ended without an
// error, and only then the beginning of the write to the socket.
//
// strace prints a call when it ends, or, if something else happens meanwhile, its
// beginning and its end on lines of their own. Lines are in the order in which the
// kernel stopped the threads, so line numbers are all that is compared: a thread
// that waits for a sync sends nothing before strace has seen the sync end.
//
// The trace is that of
//
//	strace -f -yy -s 1048576 -e trace=write,writev,pwrite64,pwritev,fsync,fdatasync,sendto,sendmsg -o FILE …
//
// of a server from its start, whose store is neither compressed nor encrypted, and
// whose connections are without TLS. What cannot be read is an error, never passed
// over: a checker that overlooks an acknowledgement would find nothing wrong.
package synctrace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Args are the arguments of strace for a trace that Check can read, up to the
// program: it is written to file.
func Args(file string) []string {
	return []string{"-f", "-qq", "--seccomp-bpf", "-yy", "-s", "1048576",
		"-e", "trace=write,writev,pwrite64,pwritev,fsync,fdatasync,sendto,sendmsg", "-e", "signal=none", "-o", file, "--"}
}

// A Verdict is what a trace shows.
type Verdict struct {
	Acks       []Ack
	Messages   int // that Acks cover; more than there are Acks if there were batches
	Syncs      int // of block files
	Violations []Violation
}

// An Ack is an acknowledgement of a publisher's message or batch.
type Ack struct {
	Stream    string
	Seq       uint64 // of the message, of a batch its last
	Count     int    // of messages, 1 without a batch
	Duplicate bool   // the message was stored before
	Line      int    // on which it begins to be written to a socket
}

// A Violation is a message that was acknowledged before it was on disk.
type Violation struct {
	Ack
	Message uint64 // its sequence
	Why     string
}

// String names the message, the line, and what was missing.
func (v Violation) String() string {
	return fmt.Sprintf("message %d of stream %s was acknowledged on line %d: %s", v.Message, v.Stream, v.Line, v.Why)
}

// Check reads a trace.
func Check(trace io.Reader) (Verdict, error) {
	t := newTimes()
	calls := &reader{open: map[string]call{}}
	in := bufio.NewReader(trace)
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return Verdict{}, fmt.Errorf("synctrace: line %d: %w", n, err)
		}
		last := err != nil
		if c, whole, err := calls.take(n, strings.TrimSuffix(line, "\n")); err != nil {
			return Verdict{}, fmt.Errorf("synctrace: line %d: %w", n, err)
		} else if whole {
			if err := t.apply(c); err != nil {
				return Verdict{}, fmt.Errorf("synctrace: line %d: %w", n, err)
			}
		}
		if last {
			break
		}
	}
	for _, c := range calls.open {
		if err := t.apply(c); err != nil { // the process was killed in it
			return Verdict{}, fmt.Errorf("synctrace: line %d: %w", c.begun, err)
		}
	}
	return t.judge()
}

// never is the line of what has not happened.
const never = math.MaxInt

// A call is a system call of a thread.
type call struct {
	name, args   string
	begun, ended int
	result       int // -1 for an error, and while it has not ended
}

// A reader makes calls out of lines.
type reader struct{ open map[string]call } // by thread

var (
	reThread  = regexp.MustCompile(`^(?:\[pid +)?(\d+)\]? +(.*)$`)
	reResumed = regexp.MustCompile(`^<\.\.\. (\w+) resumed> ?(.*)$`)
	reBegin   = regexp.MustCompile(`^(\w+)\((.*)$`)
	reResult  = regexp.MustCompile(`^\) += (-?\d+|\?|0x[0-9a-f]+)`)
)

// take reads a line; whole: it ends a call.
func (r *reader) take(n int, line string) (c call, whole bool, err error) {
	if line == "" {
		return c, false, nil
	}
	m := reThread.FindStringSubmatch(line)
	if m == nil {
		return c, false, fmt.Errorf("no number of a thread: %.80q", line)
	}
	thread, text := m[1], m[2]
	if strings.HasPrefix(text, "+++ ") || strings.HasPrefix(text, "--- ") { // an exit, or a signal
		return c, false, nil
	}
	if m := reResumed.FindStringSubmatch(text); m != nil {
		c, ok := r.open[thread]
		if !ok || c.name != m[1] {
			return c, false, fmt.Errorf("%s of thread %s ends, and has not begun", m[1], thread)
		}
		delete(r.open, thread)
		return c.end(n, c.args+m[2])
	}
	m = reBegin.FindStringSubmatch(text)
	if m == nil {
		return c, false, fmt.Errorf("not a system call: %.80q", text)
	}
	c = call{name: m[1], begun: n, ended: never, result: -1}
	if args, ok := strings.CutSuffix(m[2], " <unfinished ...>"); ok && unfinished(args) {
		if _, ok := r.open[thread]; ok {
			return c, false, fmt.Errorf("thread %s begins %s within another call", thread, c.name)
		}
		c.args = args
		r.open[thread] = c
		return c, false, nil
	}
	return c.end(n, m[2])
}

// unfinished reports whether all of args is arguments, and not the middle of a
// string that happens to end as the beginning of a call does.
func unfinished(args string) bool {
	_, closed := endOf(args)
	return !closed
}

// end takes the arguments and what follows them.
func (c call) end(n int, text string) (call, bool, error) {
	at, closed := endOf(text)
	if !closed {
		return c, false, fmt.Errorf("%s has no end: %.80q", c.name, text)
	}
	m := reResult.FindStringSubmatch(text[at:])
	if m == nil {
		return c, false, fmt.Errorf("%s has no result: %.80q", c.name, text[at:])
	}
	c.args = text[:at]
	if m[1] == "?" { // the process was killed in it
		return c, true, nil
	}
	result, err := strconv.ParseInt(m[1], 0, 64)
	if err != nil {
		return c, false, fmt.Errorf("%s: result %s: %w", c.name, m[1], err)
	}
	c.ended, c.result = n, int(result)
	return c, true, nil
}

// endOf finds the parenthesis that ends a call's arguments, outside of strings.
func endOf(args string) (at int, closed bool) {
	depth := 0
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case '"':
			for i++; i < len(args) && args[i] != '"'; i++ {
				if args[i] == '\\' {
					i++
				}
			}
		case '(', '[', '{':
			depth++
		case ']', '}':
			depth--
		case ')':
			if depth == 0 {
				return i, true
			}
			depth--
		}
	}
	return len(args), false
}

var reFile = regexp.MustCompile(`^(\d+)<(.*?)>(?:$|, )`)

// file is the descriptor's number and what it is open on, and the arguments that
// follow.
func (c call) file() (number, path, rest string, ok bool) {
	m := reFile.FindStringSubmatchIndex(c.args)
	if m == nil {
		return "", "", "", false
	}
	return c.args[m[2]:m[3]], c.args[m[4]:m[5]], c.args[m[1]:], true
}

// data is all that is in strings in args.
func data(args string) ([]byte, error) {
	var out []byte
	for {
		_, text, ok := strings.Cut(args, `"`)
		if !ok {
			return out, nil
		}
		text, rest, err := unquote(text)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(rest, "...") {
			return nil, errors.New("strace has cut a string off: give it a larger -s")
		}
		out, args = append(out, text...), rest
	}
}

var escapes = map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', 'v': '\v', 'f': '\f', '"': '"', '\\': '\\'}

// unquote reads a string up to its closing quote.
func unquote(s string) (text, rest string, err error) {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return out.String(), s[i+1:], nil
		case s[i] != '\\':
			out.WriteByte(s[i])
		default:
			n, b, err := escape(s[i+1:])
			if err != nil {
				return "", "", err
			}
			out.WriteByte(b)
			i += n
		}
	}
	return "", "", errors.New("a string has no end")
}

// escape reads what follows a backslash: a letter, or up to three octal digits.
func escape(s string) (n int, b byte, err error) {
	if s == "" {
		return 0, 0, errors.New("a string ends in a backslash")
	}
	if b, ok := escapes[s[0]]; ok {
		return 1, b, nil
	}
	if s[0] == 'x' && len(s) >= 3 {
		v, err := strconv.ParseUint(s[1:3], 16, 8)
		return 3, byte(v), err
	}
	v := 0
	for n < len(s) && n < 3 && s[n] >= '0' && s[n] <= '7' {
		v = v<<3 | int(s[n]-'0')
		n++
	}
	if n == 0 || v > math.MaxUint8 {
		return 0, 0, fmt.Errorf("a string has the unknown escape \\%.4s", s)
	}
	return n, byte(v), nil
}
