package topic

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// What the grammar and the three relations are is said here a second time, in
// other words than the package has: on slices of tokens, by recursion and by
// examples.

var unprintable = regexp.MustCompile(`[\pZ\p{Cc}]`)

// grammatical is Check, or with wild CheckPattern.
func grammatical(s string, wild bool) bool {
	toks := strings.Split(s, ".")
	if !utf8.ValidString(s) || unprintable.MatchString(s) || len(s) > MaxLen {
		return false
	}
	if strings.HasPrefix(s, "$") || toks[0] == "_INBOX" || slices.Contains(toks, "") {
		return false
	}
	for i, tok := range toks {
		wildcard := tok == "*" || (tok == ">" && i == len(toks)-1)
		if strings.ContainsAny(tok, "*>") && !(wild && wildcard) {
			return false
		}
	}
	return true
}

func matches(pattern, topic []string) bool {
	if len(pattern) == 0 || len(topic) == 0 {
		return len(pattern) == len(topic)
	}
	if pattern[0] == ">" {
		return true
	}
	return (pattern[0] == "*" || pattern[0] == topic[0]) && matches(pattern[1:], topic[1:])
}

// covers tries the topics of p that are hardest on wide: tokens that nobody
// names where p allows any, and of every length that could make a difference.
func covers(wide, p []string) bool {
	for n := 1; n <= len(wide)+len(p); n++ {
		var topic []string
		for i := range n {
			if i < len(p) && p[i] != "*" && p[i] != ">" {
				topic = append(topic, p[i])
			} else {
				topic = append(topic, "nobody names this")
			}
		}
		if matches(p, topic) && !matches(wide, topic) {
			return false
		}
	}
	return true
}

// overlap tries, for every length that could make a difference, the topic that
// has each token which either of them names.
func overlap(a, b []string) bool {
	for n := 1; n <= len(a)+len(b); n++ {
		var topic []string
		for i := range n {
			tok := "any"
			for _, p := range [][]string{a, b} {
				if i < len(p) && p[i] != "*" && p[i] != ">" {
					tok = p[i]
				}
			}
			topic = append(topic, tok)
		}
		if matches(a, topic) && matches(b, topic) {
			return true
		}
	}
	return false
}

func checkGrammar(t rapid.TB, s string) {
	t.Helper()
	topicErr, patternErr := Check(s), CheckPattern(s)
	for _, err := range []error{topicErr, patternErr} {
		if err != nil && (!errors.Is(err, ErrSyntax) || err.Error() == "") {
			t.Errorf("%q: %v is no ErrSyntax", s, err)
		}
	}
	if got, want := topicErr == nil, grammatical(s, false); got != want {
		t.Errorf("Check(%q) = %v", s, topicErr)
	}
	if got, want := patternErr == nil, grammatical(s, true); got != want {
		t.Errorf("CheckPattern(%q) = %v", s, patternErr)
	}
	if topicErr == nil && patternErr != nil {
		t.Errorf("%q is a topic and no pattern: %v", s, patternErr)
	}
	if patternErr == nil && IsPattern(s) != (topicErr != nil) {
		t.Errorf("IsPattern(%q) = %v, and as a topic: %v", s, IsPattern(s), topicErr)
	}
	if patternErr == nil && (strings.ContainsAny(s, " \t\r\n\x00") || strings.HasPrefix(s, "$")) {
		t.Errorf("%q would break the protocol", s)
	}
	if topicErr == nil && !(Match(s, s) && Match(">", s)) {
		t.Errorf("%q does not match itself", s)
	}
}

// checkRelations takes two valid patterns and a valid topic.
func checkRelations(t rapid.TB, wide, p, topic string) {
	t.Helper()
	ws, ps, ts := strings.Split(wide, "."), strings.Split(p, "."), strings.Split(topic, ".")
	if got := Match(p, topic); got != matches(ps, ts) {
		t.Errorf("Match(%q, %q) = %v", p, topic, got)
	}
	for _, c := range []struct{ wide, p string }{{wide, p}, {p, wide}, {p, topic}, {topic, p}, {p, p}} {
		if got := Covers(c.wide, c.p); got != covers(strings.Split(c.wide, "."), strings.Split(c.p, ".")) {
			t.Errorf("Covers(%q, %q) = %v", c.wide, c.p, got)
		}
	}
	if got := Overlap(wide, p); got != overlap(ws, ps) {
		t.Errorf("Overlap(%q, %q) = %v", wide, p, got)
	}
	if Overlap(wide, p) != Overlap(p, wide) {
		t.Errorf("Overlap(%q, %q) = %v, and not the other way round", wide, p, Overlap(wide, p))
	}
	if Overlap(p, topic) != Match(p, topic) {
		t.Errorf("Overlap(%q, %q) = %v, and Match not", p, topic, Overlap(p, topic))
	}
	if Covers(wide, p) && Match(p, topic) && !Match(wide, topic) {
		t.Errorf("%q covers %q, which matches %q, and does not itself", wide, p, topic)
	}
	if Match(wide, topic) && Match(p, topic) && !Overlap(wide, p) {
		t.Errorf("%q matches %q and %q, which do not overlap", topic, wide, p)
	}
	if Covers(wide, p) && !Overlap(wide, p) {
		t.Errorf("%q covers %q, and they do not overlap", wide, p)
	}
	if Covers(wide, p) && Covers(p, wide) && wide != p {
		t.Errorf("%q and %q cover each other", wide, p)
	}
	if !Covers(">", p) || Covers(p, ">") != (p == ">") {
		t.Errorf("%q and %q: %v, %v", ">", p, Covers(">", p), Covers(p, ">"))
	}
}

func FuzzCheck(f *testing.F) {
	long := strings.Repeat("a.", MaxLen/2)
	for _, s := range []string{
		"order.placed", "a", "é.ü", "\u200b", "\ufffd", "a-b_c/d:e", "a.$b", "_INBOX1", "a._INBOX", "_inbox",
		"*", "*.*", "a.*.c", "*.a", "a.*", "a*", "*a", "a.b*.c", "**", "a.**",
		">", "a.>", "*.>", "a.*.>", ">.a", "a.>.b", ">.>", "a.>.>", ">.*", "a>", ">a", "a.b>", "a.>b", ">>", "a.>>", ">.", ".>", "a..>", "*>", "a.*>", ">*",
		"", ".", "..", "a.", ".a", "a..b", " ", "a b", "a.b ", "a\tb", "a\r\nb", "a\x00", "\x7f", "\u0085", "\u00a0", "\u2028", "\u3000",
		"$JS.API", "$", "$.a", "$*", "_INBOX", "_INBOX.x", "_INBOX.>", "\xff", "a.\xc3", "\xc3.\xa9",
		long[:MaxLen-1], long[:MaxLen-1] + "b", long + "b", long[:MaxLen-2] + ".>", long + ">",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkGrammar(t, s) })
}

// anyText is near enough to the grammar that about half of it is inside.
var anyText = rapid.Custom(func(t *rapid.T) string {
	token := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "é", "*", ">", "*", ">", "$a", "_INBOX", "_INBOX1"}),
		rapid.SampledFrom([]string{"", "a*", ">a", "a>", ">>", "*>", " ", "a\n", "\x00", "\u0085", "\u2029", "$", "\xff", "\xc3", "\u200b"}),
		rapid.StringN(0, 4, -1),
	)
	good := rapid.SampledFrom([]string{"a", "b", "é", "*"})
	toks := rapid.SliceOfN(good, 1, 5).Draw(t, "good")
	if rapid.Bool().Draw(t, "tail") {
		toks = append(toks, ">")
	}
	for range rapid.IntRange(0, 2).Draw(t, "changes") {
		toks[rapid.IntRange(0, len(toks)-1).Draw(t, "at")] = token.Draw(t, "token")
	}
	s := strings.Join(toks, ".")
	if rapid.IntRange(0, 9).Draw(t, "long") == 0 {
		s = strings.Repeat("x", max(0, MaxLen+rapid.IntRange(-1, 1).Draw(t, "by")-len(s)-1)) + "." + s
	}
	return s
})

func TestCheckAgreesWithANaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkGrammar(t, anyText.Draw(t, "text")) })
}

// valid leaves valid text alone and makes a token of each byte of other text, so
// that no input is lost on the grammar.
func valid(s string, wild bool) string {
	if grammatical(s, wild) {
		return s
	}
	var toks []string
	for i := range len(s) {
		switch c := s[i]; {
		case c == '*' && wild:
			toks = append(toks, "*")
		case c == '>' && wild:
			return strings.Join(append(toks, ">"), ".")
		default:
			toks = append(toks, []string{"a", "b", "ab"}[c%3])
		}
	}
	if toks == nil {
		return "a"
	}
	return strings.Join(toks[:min(len(toks), 32)], ".")
}

func FuzzMatch(f *testing.F) {
	for _, s := range [][3]string{
		{"a.b.c", "a.b.c", "a.b.c"}, {"a.*.c", "a.b.c", "a.b.c"}, {"*", "a", "a"}, {"*", "a", "a.b"}, {"*.*", "*", "a"},
		{"*.b", "a.*", "a.b"}, {"a.*", "*.b", "c.b"}, {"a", "ab", "a"}, {"ab.c", "a.bc", "abc"}, {"a.b", "a", "a.b"},
		{">", ">", "a"}, {">", "*", "a"}, {"*", ">", "a"}, {">", "a.>", "a"}, {"a.>", "a", "a"}, {"a.>", "a.>", "a"},
		{"a.>", "a.*", "a.b"}, {"a.*", "a.>", "a.b"}, {"a.>", "a.*.>", "a.b"}, {"a.*.>", "a.>", "a.b.c"}, {"*.>", ">", "a.b"},
		{">", "*.>", "a"}, {"a.>", "*.b", "a.b"}, {"a.>", "b.>", "a.b"}, {"a.b.>", "a.>", "a.b.c.d"}, {"a.b.>", "a.*", "a.b"},
		{"*.*.>", "a.b", "a.b"}, {"*.b.>", "a.*.>", "a.b.c"}, {"a.b.c.>", "a.>", "a.b"}, {"a.b.>", "*.*.c", "a.b.c"},
		{"**>", "*>", "abc"}, {"ab>", "a*b", "abb"}, {"", "", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, wide, p, topic string) {
		if len(wide)+len(p)+len(topic) > 128 {
			t.Skip("the naive ones are cubic")
		}
		checkRelations(t, valid(wide, true), valid(p, true), valid(topic, false))
	})
}

// related draws a topic, a pattern that is mostly one of its patterns, and one
// that is mostly wider: drawn apart, few would have to do with each other.
func related(t *rapid.T) (wide, p, topic string) {
	word := rapid.SampledFrom([]string{"a", "b", "ab"})
	widen := func(toks []string) []string {
		out := slices.Clone(toks)
		for i := range out {
			switch rapid.IntRange(0, 9).Draw(t, "widen") {
			case 0, 1, 2:
				if out[i] != ">" {
					out[i] = "*"
				}
			case 3:
				out[i] = ">"
				return out[:i+1]
			case 4: // sometimes not wider but different
				if out[i] != ">" {
					out[i] = word.Draw(t, "word")
				}
			}
		}
		switch n := len(out) - 1; rapid.IntRange(0, 9).Draw(t, "end") {
		case 0: // one token too long
			if out[n] != ">" {
				out = append(out, rapid.SampledFrom([]string{"a", "*", ">"}).Draw(t, "more"))
			}
		case 1: // or too short
			out = out[:max(1, n)]
		}
		return out
	}
	toks := rapid.SliceOfN(word, 1, 6).Draw(t, "topic")
	narrow := widen(toks)
	return strings.Join(widen(narrow), "."), strings.Join(narrow, "."), strings.Join(toks, ".")
}

func TestRelationsAgreeWithNaiveOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wide, p, topic := related(t)
		if CheckPattern(wide) != nil || CheckPattern(p) != nil || Check(topic) != nil {
			t.Fatalf("the test made %q, %q, %q", wide, p, topic)
		}
		checkRelations(t, wide, p, topic)
	})
}

// All pairs of short patterns, where a mistake with ">" cannot hide.
func TestRelationsOfAllShortPatterns(t *testing.T) {
	var patterns, topics []string
	level := []string{""}
	for range 3 {
		var next []string
		for _, s := range level {
			for _, tok := range []string{"a", "b", "*", ">"} {
				p := strings.TrimPrefix(s+"."+tok, ".")
				patterns = append(patterns, p)
				if tok != ">" {
					next = append(next, p)
				}
				if !IsPattern(p) {
					topics = append(topics, p)
				}
			}
		}
		level = next
	}
	for _, wide := range patterns {
		for i, p := range patterns {
			checkRelations(t, wide, p, topics[i%len(topics)])
		}
	}
}
