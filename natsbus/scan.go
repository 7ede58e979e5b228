package natsbus

import (
	endian "encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// A scanner walks over JSON where it lies. It accepts what encoding/json does,
// at a sixth of the time, and copies nothing: an envelope is read for each event,
// and what goes into one is checked first.
type scanner struct {
	b []byte
	i int
}

// maxNesting is how deep values may lie in each other, as in encoding/json.
const maxNesting = 10_000

// validJSON reports whether b is one JSON value with nothing around it.
func validJSON(b []byte) bool {
	s := scanner{b: b}
	return s.value(1) && s.i == len(b)
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// take goes past c if it is next.
func (s *scanner) take(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// next is take after spaces.
func (s *scanner) next(c byte) bool {
	s.space()
	return s.take(c)
}

// value goes past one value, whose first byte is next.
func (s *scanner) value(depth int) bool {
	if s.i >= len(s.b) {
		return false
	}
	switch c := s.b[s.i]; c {
	case '"':
		_, _, ok := s.text()
		return ok
	case '{', '[':
		return depth <= maxNesting && s.list(c, depth)
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

// list goes past an object or an array, whose first byte is open.
func (s *scanner) list(open byte, depth int) bool {
	end := open + 2 // { and }, [ and ] are two apart
	s.i++
	if s.next(end) {
		return true
	}
	for {
		s.space()
		if open == '{' {
			if _, _, ok := s.text(); !ok || !s.next(':') {
				return false
			}
			s.space()
		}
		if !s.value(depth + 1) {
			return false
		}
		if s.next(end) {
			return true
		}
		if !s.take(',') {
			return false
		}
	}
}

// text goes past a string and returns what is between its quotes; escaped says
// that it is not yet what it stands for.
func (s *scanner) text() (raw []byte, escaped, ok bool) {
	if !s.take('"') {
		return nil, false, false
	}
	start := s.i
	for {
		s.i += plain(s.b[s.i:])
		if s.i >= len(s.b) {
			return nil, false, false
		}
		switch c := s.b[s.i]; {
		case c == '"':
			raw = s.b[start:s.i]
			s.i++
			return raw, escaped, true
		case c == '\\':
			if escaped = true; !s.escape() {
				return nil, false, false
			}
		case c < ' ':
			return nil, false, false
		default:
			s.i++
		}
	}
}

// Eight bytes at once.
const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// plain is how many bytes stand for themselves in a JSON string, and are ASCII,
// before the first that does not.
func plain(b []byte) int {
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		x := endian.LittleEndian.Uint64(b[n:])
		quote, back := x^('"'*ones), x^('\\'*ones)
		// The high bit of each byte that is below a space, zero after the xor, or set
		// already; above the first there may be false ones.
		odd := ((x - ' '*ones) &^ x) | ((quote - ones) &^ quote) | ((back - ones) &^ back) | x
		if odd &= highs; odd != 0 {
			return n + bits.TrailingZeros64(odd)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return n
}

func (s *scanner) escape() bool {
	if s.i+1 >= len(s.b) {
		return false
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
		if s.i+6 > len(s.b) {
			return false
		}
		for _, c := range s.b[s.i+2 : s.i+6] {
			if _, ok := unhex(c); !ok {
				return false
			}
		}
		s.i += 6
		return true
	}
	return false
}

func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

func (s *scanner) number() bool {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return false
	}
	if s.take('.') && !s.digits() {
		return false
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		return s.digits()
	}
	return true
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}
