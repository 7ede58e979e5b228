package synctrace

import (
	"encoding/binary"
	"fmt"
	"path"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// times is when what happened.
type times struct {
	writes  map[message][]write
	syncs   map[string][]span // by block file
	sockets map[string]*sent  // by descriptor and connection
	order   []*sent
}

// A message is one of a stream.
type message struct {
	stream string
	seq    uint64
}

// A write is a record of a message that is in the kernel's hands.
type write struct {
	file  string
	ended int
}

// A span is from the line on which a call begins to that on which it ends.
type span struct{ begun, ended int }

// sent is what was written to a connection.
type sent struct {
	bytes []byte
	parts []part
}

// A part begins at an offset of what was sent, and on a line.
type part struct{ at, line int }

func newTimes() *times {
	return &times{writes: map[message][]write{}, syncs: map[string][]span{}, sockets: map[string]*sent{}}
}

// apply takes a call that has ended, or never does.
func (t *times) apply(c call) error {
	number, file, args, ok := c.file()
	switch {
	case !ok:
		if c.result < 0 {
			return nil // of a descriptor that is not open, say
		}
		return fmt.Errorf("%s: strace does not say what its descriptor is open on: run it with -yy: %.80q", c.name, c.args)
	case c.name == "fsync", c.name == "fdatasync":
		if c.result == 0 {
			t.syncs[file] = append(t.syncs[file], span{c.begun, c.ended})
		}
		return nil
	case strings.HasSuffix(file, ".blk"):
		return t.wrote(c, file, args)
	case strings.HasPrefix(file, "TCP"), strings.HasPrefix(file, "socket:"):
		return t.sent(c, number+" "+file, args)
	}
	return nil
}

// Bits of nats-server's records, see filestore.go.
const (
	withHeader = 1 << 31 // of the length
	tombstone  = 1 << 62 // of the sequence: the message was removed
	erased     = 1 << 63
	recordHead = 4 + 8 + 8 + 2
	recordHash = 8
)

// wrote notes the records of a write to a block file.
func (t *times) wrote(c call, file, args string) error {
	dir := path.Dir(path.Dir(file))
	if path.Base(path.Dir(dir)) != "streams" {
		return nil // of a batch that is not committed yet, or of raft
	}
	b, err := data(args)
	if err != nil {
		return fmt.Errorf("%s to %s: %w", c.name, file, err)
	}
	if c.result < 0 {
		return nil
	}
	if c.result != len(b) {
		return fmt.Errorf("%s to %s: %d of %d bytes were written: what follows cannot be read", c.name, file, c.result, len(b))
	}
	for len(b) > 0 {
		if len(b) < recordHead+recordHash {
			return fmt.Errorf("%s to %s: %d bytes are no record: a store that is compressed or encrypted cannot be read", c.name, file, len(b))
		}
		size := int64(binary.LittleEndian.Uint32(b) &^ withHeader)
		seq := binary.LittleEndian.Uint64(b[4:])
		if size < recordHead+recordHash || size > int64(len(b)) {
			return fmt.Errorf("%s to %s: a record of %d bytes in %d: a store that is compressed or encrypted cannot be read", c.name, file, size, len(b))
		}
		if seq&(tombstone|erased) == 0 {
			m := message{path.Base(dir), seq}
			t.writes[m] = append(t.writes[m], write{file, c.ended})
		}
		b = b[size:]
	}
	return nil
}

// sent notes what goes to a connection: of a call that was not let end all of it
// may have gone.
func (t *times) sent(c call, conn, args string) error {
	b, err := data(args)
	if err != nil {
		return fmt.Errorf("%s to %s: %w", c.name, conn, err)
	}
	if c.ended != never {
		b = b[:min(max(c.result, 0), len(b))]
	}
	if len(b) == 0 {
		return nil
	}
	s := t.sockets[conn]
	if s == nil {
		s = &sent{}
		t.sockets[conn] = s
		t.order = append(t.order, s)
	}
	s.parts = append(s.parts, part{len(s.bytes), c.begun})
	s.bytes = append(s.bytes, b...)
	return nil
}

// line is where the byte at an offset begins to be written.
func (s *sent) line(at int) int {
	return s.parts[sort.Search(len(s.parts), func(i int) bool { return s.parts[i].at > at })-1].line
}

// reAck is how nats-server writes an acknowledgement, see PubAck.
var (
	reAck       = regexp.MustCompile(`\{"stream":\s*"([^"]+)",\s*(?:"domain":\s*"[^"]*",\s*)?"seq":\s*(\d+)([^{}]*)\}`)
	reCount     = regexp.MustCompile(`"count":\s*(\d+)`)
	reDuplicate = regexp.MustCompile(`"duplicate":\s*true`)
)

func (t *times) judge() (Verdict, error) {
	v := Verdict{}
	for _, spans := range t.syncs {
		sort.Slice(spans, func(i, j int) bool { return spans[i].begun < spans[j].begun })
	}
	for file, spans := range t.syncs {
		if strings.HasSuffix(file, ".blk") {
			v.Syncs += len(spans)
		}
	}
	for _, s := range t.order {
		for _, m := range reAck.FindAllSubmatchIndex(s.bytes, -1) {
			a, err := ack(s.bytes, m)
			if err != nil {
				return Verdict{}, fmt.Errorf("synctrace: %s: %w", s.bytes[m[0]:m[1]], err)
			}
			a.Line = s.line(m[0])
			v.Acks = append(v.Acks, a)
			v.Messages += a.Count
			for seq := a.Seq - uint64(a.Count) + 1; seq <= a.Seq; seq++ {
				if why := t.missing(message{a.Stream, seq}, a.Line); why != "" {
					v.Violations = append(v.Violations, Violation{a, seq, why})
				}
			}
		}
	}
	sort.SliceStable(v.Acks, func(i, j int) bool { return v.Acks[i].Line < v.Acks[j].Line })
	return v, nil
}

func ack(b []byte, m []int) (a Ack, err error) {
	a = Ack{Stream: string(b[m[2]:m[3]]), Count: 1}
	if a.Seq, err = strconv.ParseUint(string(b[m[4]:m[5]]), 10, 62); err != nil {
		return a, err
	}
	rest := b[m[6]:m[7]]
	a.Duplicate = reDuplicate.Match(rest)
	if n := reCount.FindSubmatch(rest); n != nil {
		if a.Count, err = strconv.Atoi(string(n[1])); err != nil {
			return a, err
		}
	}
	if a.Count < 1 || uint64(a.Count) > a.Seq || a.Count > 1<<20 {
		return a, fmt.Errorf("%d messages up to %d cannot be", a.Count, a.Seq)
	}
	return a, nil
}

// missing is what has not happened to a message before a line; empty: nothing.
func (t *times) missing(m message, line int) string {
	why := "nothing was written before that"
	for _, w := range t.writes[m] {
		if w.ended >= line {
			continue
		}
		why = fmt.Sprintf("it was written to %s on line %d, and not synced before that", w.file, w.ended)
		spans := t.syncs[w.file]
		for _, s := range spans[sort.Search(len(spans), func(i int) bool { return spans[i].begun > w.ended }):] {
			if s.begun >= line {
				break
			}
			if s.ended < line {
				return ""
			}
		}
	}
	return why
}
