//go:build unix

package supervisor

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"sync"
)

// tailLines and tailLine bound what is kept of a worker's last output.
const (
	tailLines = 10
	tailLine  = 400
)

// A lockedWriter lets several workers' output share a writer.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// A tail keeps the last lines that a worker wrote.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line []byte) {
	text := strings.TrimRight(string(line[:min(len(line), tailLine)]), "\r\n")
	if text == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == tailLines {
		t.lines = append(t.lines[:0], t.lines[1:]...)
	}
	t.lines = append(t.lines, text)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// lastWords is the last line, as the end of a sentence.
func (t *tail) lastWords() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		return ""
	}
	return ", with the last words: " + t.lines[len(t.lines)-1]
}

// A prefixWriter sets a prefix before each line. One goroutine writes to it.
type prefixWriter struct {
	w      io.Writer
	prefix string
	within bool // a line that has its prefix
	buf    []byte
}

// Write takes at most one line, as copyLines gives it, and writes it at once.
func (p *prefixWriter) Write(line []byte) (int, error) {
	p.buf = p.buf[:0]
	if !p.within {
		p.buf = append(p.buf, p.prefix...)
	}
	p.buf = append(p.buf, line...)
	p.within = line[len(line)-1] != '\n'
	if _, err := p.w.Write(p.buf); err != nil {
		return 0, err
	}
	return len(line), nil
}

// copyLines passes r on to w, whole lines where they fit the buffer so that
// the workers' lines do not mix, until r ends. A w that fails is given up, but
// r is still read: a full pipe would stop the worker.
func copyLines(w io.Writer, t *tail, r io.Reader) {
	buf := bufio.NewReaderSize(r, 16<<10)
	for {
		line, err := buf.ReadSlice('\n')
		if len(line) > 0 {
			t.add(line)
			if _, failed := w.Write(line); failed != nil {
				w = io.Discard
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
