package topic

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// naive is a pattern as a regular expression: slow, and plainly right.
func naive(pattern string) *regexp.Regexp {
	var parts []string
	for tok := range strings.SplitSeq(pattern, ".") {
		switch tok {
		case "*":
			tok = `[^.]+`
		case ">":
			tok = `.+`
		default:
			tok = regexp.QuoteMeta(tok)
		}
		parts = append(parts, tok)
	}
	return regexp.MustCompile(`^` + strings.Join(parts, `\.`) + `$`)
}

var (
	topics   = rapid.StringMatching(`[ab](\.[ab]){0,4}`)
	patterns = rapid.StringMatching(`(>|[ab*](\.[ab*]){0,3}(\.>)?)`)
)

func TestMatchAgreesWithANaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, s := patterns.Draw(t, "pattern"), topics.Draw(t, "topic")
		if got, want := Match(p, s), naive(p).MatchString(s); got != want {
			t.Fatalf("Match(%q, %q) = %v", p, s, got)
		}
	})
}

// every topic of up to four tokens of a and b, and one of a third kind.
func every() (all []string) {
	level := []string{""}
	for range 5 {
		var next []string
		for _, s := range level {
			for _, tok := range []string{"a", "b", "c"} {
				next = append(next, strings.TrimPrefix(s+"."+tok, "."))
			}
		}
		all = append(all, next...)
		level = next
	}
	return all
}

func TestRelationsAreWhatTheySay(t *testing.T) {
	all := every()
	rapid.Check(t, func(t *rapid.T) {
		a, b := patterns.Draw(t, "a"), patterns.Draw(t, "b")
		covers, overlap := true, false
		for _, s := range all {
			inA, inB := Match(a, s), Match(b, s)
			covers = covers && (inA || !inB)
			overlap = overlap || (inA && inB)
		}
		if Covers(a, b) != covers {
			t.Fatalf("Covers(%q, %q) = %v", a, b, !covers)
		}
		if Overlap(a, b) != overlap || Overlap(b, a) != overlap {
			t.Fatalf("Overlap(%q, %q) = %v", a, b, !overlap)
		}
		both, ok := Intersect(a, b)
		if ok != overlap {
			t.Fatalf("Intersect(%q, %q) = %q, %v", a, b, both, ok)
		}
		for _, s := range all {
			if ok && Match(both, s) != (Match(a, s) && Match(b, s)) {
				t.Fatalf("Intersect(%q, %q) = %q, which is wrong about %q", a, b, both, s)
			}
		}
	})
}
