// Package topic is the grammar of topics and patterns, which is that of NATS
// subjects: tokens separated by dots, "*" for exactly one token, ">" at the end
// for one or more.
//
// Everything here is a pure function and safe for concurrent use.
package topic

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLen is the longest topic or pattern in bytes. A NATS server takes control
// lines of 4096 bytes; this leaves room for the prefix, the reply and the verb.
const MaxLen = 1024

// ErrSyntax is wrapped by every error of this package.
var ErrSyntax = errors.New("bad topic")

// Check returns nil for a topic that may be published: no wildcards.
func Check(s string) error { return check(s, false) }

// CheckPattern returns nil for a pattern that may be subscribed to.
func CheckPattern(s string) error { return check(s, true) }

func check(s string, wild bool) error {
	if s == "" {
		return fmt.Errorf("%w: it is empty; a topic is one or more tokens joined by dots, like order.placed", ErrSyntax)
	}
	if len(s) > MaxLen {
		return fmt.Errorf("%w: %d bytes long; the limit is %d", ErrSyntax, len(s), MaxLen)
	}
	n := 0
	for rest, more := s, true; more; n++ {
		var tok string
		tok, rest, more = strings.Cut(rest, ".")
		if err := checkToken(tok, n, wild, !more); err != nil {
			return fmt.Errorf("%w %q: token %d: %w", ErrSyntax, s, n+1, err)
		}
	}
	return nil
}

func checkToken(tok string, at int, wild, last bool) error {
	switch {
	case tok == "":
		return errors.New("empty: no dot may lead, trail or follow another")
	case tok == "*" && wild:
		return nil
	case tok == ">" && wild && last:
		return nil
	case tok == ">" && wild:
		return errors.New(`">" may only be the last token`)
	case at == 0 && tok[0] == '$':
		return fmt.Errorf("%q: names that begin with $ belong to NATS itself", tok)
	case at == 0 && tok == "_INBOX":
		return errors.New(`"_INBOX" belongs to NATS itself`)
	}
	if !utf8.ValidString(tok) {
		return fmt.Errorf("%q is not UTF-8", tok)
	}
	for _, r := range tok {
		switch {
		case r == '*' || r == '>':
			if wild {
				return fmt.Errorf("%q: a wildcard must be a token of its own", tok)
			}
			return fmt.Errorf("%q: wildcards are for subscribing, not for publishing", tok)
		case unicode.IsSpace(r) || unicode.IsControl(r):
			return fmt.Errorf("%q: white space and control characters are not allowed", tok)
		}
	}
	return nil
}

// IsPattern reports whether s has wildcards. It does not check s.
func IsPattern(s string) bool {
	for rest, more := s, true; more; {
		var tok string
		tok, rest, more = strings.Cut(rest, ".")
		if tok == "*" || tok == ">" {
			return true
		}
	}
	return false
}

// Match reports whether a valid pattern matches a valid topic.
func Match(pattern, topic string) bool { return Covers(pattern, topic) }

// Covers reports whether every topic that matches the valid pattern p also
// matches the valid pattern wide.
func Covers(wide, p string) bool {
	for {
		wt, wrest, wmore := strings.Cut(wide, ".")
		pt, prest, pmore := strings.Cut(p, ".")
		if wt == ">" {
			return true
		}
		if pt == ">" || (wt != "*" && wt != pt) || wmore != pmore {
			return false
		}
		if !wmore {
			return true
		}
		wide, p = wrest, prest
	}
}

// Overlap reports whether some topic matches both valid patterns.
func Overlap(a, b string) bool {
	for {
		at, arest, amore := strings.Cut(a, ".")
		bt, brest, bmore := strings.Cut(b, ".")
		if at == ">" || bt == ">" {
			return true
		}
		if (at != bt && at != "*" && bt != "*") || amore != bmore {
			return false
		}
		if !amore {
			return true
		}
		a, b = arest, brest
	}
}

// Intersect returns the pattern of the topics that match both valid patterns; ok
// is false when there are none.
func Intersect(a, b string) (both string, ok bool) {
	if !Overlap(a, b) {
		return "", false
	}
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range as {
		switch {
		case as[i] == ">":
			return strings.Join(append(as[:i], bs[i:]...), "."), true
		case bs[i] == ">":
			return strings.Join(as, "."), true
		case as[i] == "*":
			as[i] = bs[i]
		}
	}
	return strings.Join(as, "."), true
}

// FromName makes a token of a name in Go: order_placed of OrderPlaced, http_error2
// of HTTPError2.
func FromName(name string) string {
	var out strings.Builder
	rs := []rune(name)
	for i, r := range rs {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(rs[i-1]) || unicode.IsDigit(rs[i-1]) ||
			unicode.IsUpper(rs[i-1]) && i+1 < len(rs) && unicode.IsLower(rs[i+1])) {
			out.WriteByte('_')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}
