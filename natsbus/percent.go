package natsbus

import (
	"errors"
	"strings"
	"unicode/utf8"
)

const upperHex = "0123456789ABCDEF"

// A byteSet has the bytes that are encoded. It is a table because each value of each event
// is looked through.
type byteSet [256]bool

// encoded is what is outside U+0021 to U+007E, and what is special besides.
func encoded(special string) (set byteSet) {
	for c := range set {
		set[c] = c <= ' ' || c > '~' || strings.IndexByte(special, byte(c)) >= 0
	}
	return set
}

var (
	inValues = encoded(`"%`)
	inKeys   = encoded(":%ABCDEFGHIJKLMNOPQRSTUVWXYZ")
)

// pct encodes a header value as the binding asks: the space, ", % and all that
// is outside U+0021 to U+007E, as the bytes of UTF-8.
// What is no UTF-8 could not be read back: it is replaced.
func pct(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return escape(s, &inValues)
}

// pctKey encodes the name of a header: it may hold neither a colon nor an upper
// case letter (names are folded when read).
func pctKey(s string) string { return escape(s, &inKeys) }

func escape(s string, set *byteSet) string {
	n := 0
	for i := range len(s) {
		if set[s[i]] {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; set[c] {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// unpct undoes pct: it takes quotes off, decodes one round, and refuses what is
// not UTF-8 then. A % that begins no escape stays, for senders that do not
// encode.
func unpct(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = unquote(s[1 : len(s)-1])
	}
	if strings.IndexByte(s, '%') >= 0 {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) {
				hi, ok1 := unhex(s[i+1])
				lo, ok2 := unhex(s[i+2])
				if ok1 && ok2 {
					b = append(b, hi<<4|lo)
					i += 2
					continue
				}
			}
			b = append(b, s[i])
		}
		s = string(b)
	}
	if !utf8.ValidString(s) {
		return "", errors.New("not UTF-8")
	}
	return s, nil
}

func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
