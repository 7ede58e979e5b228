// Package redact keeps secrets out of events: passwords, tokens and the like
// become "[FILTERED]", whatever the payload is: a struct, a map, JSON, or any of
// these in another.
//
// A filter knows secrets by the names of the fields and map keys that hold them:
//
//	filter := redact.New("password", "api_key")
//	bus, err := tidings.New(tidings.Options{Redact: filter.Value})
//
// So it filters for all subscribers; [Filter.Codec] filters only what leaves the
// process.
//
// # Promises
//
//   - The value given is never changed; what has nothing to filter is returned
//     as it is, not copied, and so are the parts of a payload that have nothing
//     to filter.
//   - The result has the same Go type, so typed subscribers go on to work.
//   - Filtering twice is filtering once.
//   - Cycles are kept, and do no harm.
//
// # What it does not see
//
// It sees exported fields, keys and JSON in []byte and json.RawMessage. It does
// not see into unexported fields (a type like time.Time stays as it is, and so
// does what a MarshalJSON makes of them), into text, or into channels and
// functions. Struct values are copied with all their fields, a mutex included:
// publish those by pointer, and tag what is secret in them.
package redact

import (
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/tidings-go/tidings"
)

// Filtered takes the place of a secret that is a string.
const Filtered = "[FILTERED]"

// defaults are the names that New uses when it is given none; its comment lists
// them.
var defaults = []string{"password", "passwd", "passphrase", "secret", "token", "api_key", "private_key",
	"authorization", "credential", "cookie", "credit_card", "card_number", "cvv", "cvc", "ssn"}

// Filter replaces secrets. Make one with [New]; the zero Filter knows no names
// and obeys struct tags only. Its methods may be called concurrently and from
// inside a handler. A Filter must not be copied after its first use.
type Filter struct {
	long  []string // without separators: found across words, so that api_key is in APIKey
	short []string // found within words only, so that ssn is not in ClassName
	types sync.Map // reflect.Type → *structPlan or bool: what was found out about types
}

// New makes a filter of everything whose name contains one of the given names.
// Case does not matter, nor do "_", "-" and ".": "api_key" is in "APIKey",
// "x-api-key" and "apikey". A name of three letters or fewer must be within one
// word: "ssn" is in "ssn_hash" and "UserSSN", but not in "ClassName". Names
// without a letter or digit are ignored.
//
// Without any names the filter uses password, passwd, passphrase, secret, token,
// api_key, private_key, authorization, credential, cookie, credit_card,
// card_number, cvv, cvc and ssn.
func New(names ...string) *Filter {
	if len(names) == 0 {
		names = defaults
	}
	f := &Filter{}
	for _, name := range names {
		if !strings.ContainsFunc(name, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			continue
		}
		if n := squeeze(name); len(n) > 3 {
			f.long = append(f.long, n)
		} else {
			f.short = append(f.short, words(name))
		}
	}
	return f
}

// secret reports whether a field or key of this name is to be filtered.
func (f *Filter) secret(name string) bool {
	if len(f.long) > 0 {
		squeezed := squeeze(name)
		if slices.ContainsFunc(f.long, func(n string) bool { return strings.Contains(squeezed, n) }) {
			return true
		}
	}
	if len(f.short) > 0 {
		apart := words(name)
		return slices.ContainsFunc(f.short, func(n string) bool { return strings.Contains(apart, n) })
	}
	return false
}

func separator(r rune) bool { return r == '_' || r == '-' || r == '.' || unicode.IsSpace(r) }

// squeeze returns the name in lower case without separators.
func squeeze(name string) string {
	return strings.Map(func(r rune) rune {
		if separator(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// words returns the name in lower case with "_" between its words.
func words(name string) string {
	var out strings.Builder
	rs := []rune(name)
	for i, r := range rs {
		begins := i > 0 && unicode.IsUpper(r) &&
			(!unicode.IsUpper(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1]))
		if begins && !separator(rs[i-1]) {
			out.WriteByte('_')
		}
		if separator(r) {
			r = '_'
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

// Codec returns a codec that filters what it encodes, so that secrets do not
// leave the process while local subscribers get them. It decodes as next does; nil
// means [tidings.JSON].
func (f *Filter) Codec(next tidings.Codec) tidings.Codec {
	if next == nil {
		next = tidings.JSON
	}
	return codec{next, f}
}

type codec struct {
	tidings.Codec
	filter *Filter
}

func (c codec) Encode(v any) ([]byte, string, error) { return c.Codec.Encode(c.filter.Value(v)) }
