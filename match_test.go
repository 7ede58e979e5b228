package tidings

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/internal/topic"
	"pgregory.net/rapid"
)

// trieItem is one value under one pattern.
type trieItem struct {
	pattern string
	v       int
}

// trieModel is a trie beside a list that is plainly right.
type trieModel struct {
	trie trie[int]
	list []trieItem
}

func (m *trieModel) insert(pattern string, v int) {
	m.trie.insert(pattern, v)
	if it := (trieItem{pattern, v}); !slices.Contains(m.list, it) {
		m.list = append(m.list, it)
	}
}

func (m *trieModel) remove(pattern string, v int) {
	m.trie.remove(pattern, v)
	m.list = slices.DeleteFunc(m.list, func(it trieItem) bool { return it == trieItem{pattern, v} })
}

func (m *trieModel) checkMatch(t rapid.TB, s string) {
	t.Helper()
	m.compare(t, "match", s, m.trie.match, func(p string) bool { return topic.Match(p, s) })
}

func (m *trieModel) checkCovered(t rapid.TB, pattern string) {
	t.Helper()
	m.compare(t, "covered", pattern, m.trie.covered, func(p string) bool {
		return !topic.IsPattern(p) && topic.Match(pattern, p)
	})
}

func (m *trieModel) compare(t rapid.TB, what, s string, visit func(string, func(int)), in func(string) bool) {
	t.Helper()
	var got, want []int
	visit(s, func(v int) { got = append(got, v) })
	for _, it := range m.list {
		if in(it.pattern) {
			want = append(want, it.v)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%s(%q) of %v: %v, want %v", what, s, m.list, got, want)
	}
}

// checkShape looks for what a match cannot show: nodes that lead nowhere, and
// memory that did not come back.
func (m *trieModel) checkShape(t rapid.TB) {
	t.Helper()
	if n := checkNode(t, &m.trie); n != len(m.list) || m.trie.len() != n {
		t.Fatalf("len %d, and %d values found, want %d", m.trie.len(), n, len(m.list))
	}
}

func checkNode(t rapid.TB, n *trie[int]) int {
	t.Helper()
	checkKeyed(t, n.values)
	checkKeyed(t, n.next)
	count := len(n.values.list)
	below := []*trie[int]{n.star, n.tail}
	for _, e := range n.next.list {
		below = append(below, e.val)
	}
	for _, to := range below {
		if to == nil {
			continue
		}
		c := checkNode(t, to)
		if c == 0 {
			t.Fatalf("a node without values was left")
		}
		count += c
	}
	if n.n != count {
		t.Fatalf("a node counts %d values and has %d", n.n, count)
	}
	return count
}

func checkKeyed[K comparable, V any](t rapid.TB, m keyed[K, V]) {
	t.Helper()
	size := len(m.list)
	if size > linearMax && m.at == nil || m.at != nil && len(m.at) != size || size == 0 && m.list != nil {
		t.Fatalf("%d keys, and an index of %d", size, len(m.at))
	}
	if c := cap(m.list); c > linearMax && size < c/4 {
		t.Fatalf("room for %d and %d keys", c, size)
	}
	for i, e := range m.list {
		if m.find(e.key) != i {
			t.Fatalf("key %v is at %d and found at %d", e.key, i, m.find(e.key))
		}
	}
}

// The trie does what a list would do that is searched from end to end. Few
// tokens make patterns meet; many make nodes wide enough for an index.
func TestTrieAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tokens := rapid.SampledFrom([]string{"a", "ab", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"}[:rapid.SampledFrom([]int{2, 3, 12}).Draw(t, "tokens")])
		topics := rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(tokens, 1, 4).Draw(t, "topic"), ".")
		})
		patterns := rapid.Custom(func(t *rapid.T) string {
			toks := rapid.SliceOfN(rapid.OneOf(tokens, tokens, rapid.Just("*")), 1, 4).Draw(t, "pattern")
			if rapid.IntRange(0, 3).Draw(t, "tail") == 0 {
				toks[len(toks)-1] = ">"
			}
			return strings.Join(toks, ".")
		})
		either := rapid.OneOf(topics, patterns)
		values := rapid.IntRange(0, 3)
		sizes := rapid.IntRange(1, 24)

		var m trieModel
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) { m.insert(either.Draw(t, "under"), values.Draw(t, "value")) },
			"remove what may not be there": func(t *rapid.T) {
				m.remove(either.Draw(t, "under"), values.Draw(t, "value"))
			},
			"remove what is there": func(t *rapid.T) {
				if len(m.list) > 0 {
					it := rapid.SampledFrom(m.list).Draw(t, "item")
					m.remove(it.pattern, it.v)
				}
			},
			"insert many values": func(t *rapid.T) {
				p := either.Draw(t, "under")
				for v := range sizes.Draw(t, "n") {
					m.insert(p, v)
				}
			},
			"insert many patterns": func(t *rapid.T) {
				for range sizes.Draw(t, "n") {
					m.insert(either.Draw(t, "under"), 0)
				}
			},
			"remove many": func(t *rapid.T) {
				for range min(len(m.list), sizes.Draw(t, "n")) {
					it := rapid.SampledFrom(m.list).Draw(t, "item")
					m.remove(it.pattern, it.v)
				}
			},
			"remove a pattern": func(t *rapid.T) {
				if len(m.list) == 0 {
					return
				}
				p := rapid.SampledFrom(m.list).Draw(t, "item").pattern
				for _, it := range slices.Clone(m.list) {
					if it.pattern == p {
						m.remove(p, it.v)
					}
				}
			},
			"": func(t *rapid.T) {
				m.checkShape(t)
				m.checkMatch(t, topics.Draw(t, "topic"))
				m.checkCovered(t, either.Draw(t, "pattern"))
				if len(m.list) > 0 {
					// One that leads somewhere.
					p := rapid.SampledFrom(m.list).Draw(t, "item").pattern
					m.checkCovered(t, p)
					m.checkMatch(t, strings.NewReplacer("*", "a", ">", "b.c").Replace(p))
				}
			},
		})
	})
}

// triePattern makes a valid pattern of any text: a token of each byte, so that
// no input is lost on the grammar.
func triePattern(s string, wild bool) string {
	var toks []string
	for i := range len(s) {
		switch c := s[i]; {
		case c == '*' && wild:
			toks = append(toks, "*")
		case c == '>' && wild:
			return strings.Join(append(toks, ">"), ".")
		default:
			toks = append(toks, strings.Repeat(string(rune('a'+c%16)), 1+int(c)%2))
		}
	}
	if toks == nil {
		return "a"
	}
	return strings.Join(toks[:min(len(toks), 8)], ".")
}

// A program is words: + inserts, - removes, ? matches, < asks what is covered.
// After + and - a byte says which value; the rest is the pattern.
func FuzzTrie(f *testing.F) {
	for _, s := range []string{
		"+0a*c +1a> +2*bc +3ab* ?abc ?a ?abcd -1a> ?abc",
		"+0> ?a ?ab -0> ?a",
		"+0a> +0a ?a ?ab <a> <> -0a ?a ?ab",
		"+0*> +0>  +0** ?a ?ab ?abc -0*> ?ab",
		"+0a +0ab +0abc +0a* <a> <a* <> <* <** <*b> -0ab <a>",
		"+0a +0b +0c +0d +0e +0f +0g +0h +0i +0j <* <> -0a -0b -0c -0j -0i -0h -0g <* ?d",
		"+0a +1a +2a +3a +4a +5a +6a +7a +8a +9a ?a -9a -0a -3a -1a -2a -4a -5a ?a -6a -7a -8a",
		"-0a -0> +0a +0a -1a -0> -0ab -0a ?a",
		"+0>a +0*>b ?aaaa <>>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, program string) {
		var m trieModel
		words := strings.Fields(program)
		for _, w := range words[:min(len(words), 64)] {
			op, rest := w[0], w[1:]
			switch op {
			case '?':
				m.checkMatch(t, triePattern(rest, false))
				continue
			case '<':
				m.checkCovered(t, triePattern(rest, true))
				continue
			}
			if rest == "" {
				continue
			}
			p, v := triePattern(rest[1:], true), int(rest[0])
			if topic.CheckPattern(p) != nil {
				t.Fatalf("the test made %q", p)
			}
			if op == '-' {
				m.remove(p, v)
			} else {
				m.insert(p, v)
			}
			m.checkShape(t)
			m.checkCovered(t, p)
			m.checkMatch(t, strings.NewReplacer("*", "a", ">", "b.c").Replace(p))
		}
		for _, it := range slices.Clone(m.list) {
			m.remove(it.pattern, it.v)
		}
		m.checkShape(t)
	})
}

// mixedPatterns are those of a bus in use: most with a wildcard in the middle or
// at the end, few with one at the front.
func mixedPatterns(n int) []string {
	rnd := rand.New(rand.NewPCG(1, 2))
	name := func(kind string) string { return fmt.Sprintf("%s%d", kind, rnd.IntN(max(n/10, 2))) }
	all := make([]string, n)
	for i := range all {
		a, b, c := name("a"), name("b"), name("c")
		switch i % 10 {
		case 0, 1, 2, 3:
			all[i] = a + ".*." + c
		case 4, 5, 6:
			all[i] = a + "." + b + ".>"
		case 7:
			all[i] = "*." + b + "." + c
		default:
			all[i] = a + "." + b + ".*"
		}
	}
	return all
}

// mixedTopics are matched by one of the patterns each, at least.
func mixedTopics(patterns []string) []string {
	var all []string
	for i := 0; i < len(patterns); i += 1 + len(patterns)/1000 {
		p := strings.NewReplacer("*", "b0", ">", "c0").Replace(patterns[i])
		all = append(all, p)
	}
	return all
}

func TestTrieMatchAllocatesNothing(t *testing.T) {
	var tr trie[*int]
	patterns := mixedPatterns(1000)
	for range 2 * linearMax {
		patterns = append(patterns, ">", "*.*.>", "a0.b0.c0")
		for _, p := range patterns[len(patterns)-3:] {
			tr.insert(p, new(int))
		}
	}
	for _, p := range patterns {
		tr.insert(p, new(int))
	}
	topics := mixedTopics(patterns)
	topics = append(topics, "a0.b0.c0", "none", "a0.b0", strings.Repeat("a0.", 300)+"z")
	seen := 0
	got := testing.AllocsPerRun(10, func() {
		// The closure is made for each match, as its owner does.
		for _, s := range topics {
			visited := 0
			tr.match(s, func(v *int) {
				if v != nil {
					visited++
				}
			})
			seen += visited
		}
	})
	if got != 0 || seen == 0 {
		t.Errorf("%v allocations in %d matches, %d values seen", got, len(topics), seen)
	}
}

// In quadratic time this would take minutes.
func TestTrieGivesItsMemoryBack(t *testing.T) {
	const n = 100_000
	for name, pattern := range map[string]func(int) string{
		"one topic":           func(int) string { return "a.b.c" },
		"one pattern":         func(int) string { return "a.*.>" },
		"topics side by side": func(i int) string { return fmt.Sprint("a.", i) },
		"topics":              func(i int) string { return fmt.Sprintf("a%d.b%d.c%d", i%7, i%1000, i) },
		"patterns":            func(i int) string { return fmt.Sprintf("a%d.*.c%d.>", i%1000, i) },
	} {
		patterns := make([]string, n)
		for i := range patterns {
			patterns[i] = pattern(i)
		}
		for _, order := range []string{"first in first out", "last in first out", "mixed"} {
			t.Run(name+", "+order, func(t *testing.T) {
				var tr trie[int]
				for i := range n {
					tr.insert(patterns[i], i)
				}
				if tr.len() != n {
					t.Fatalf("%d values, want %d", tr.len(), n)
				}
				for i := range n {
					switch order {
					case "last in first out":
						i = n - 1 - i
					case "mixed":
						i = i * 7919 % n // 7919 has no factor in common with n
					}
					tr.remove(patterns[i], i)
				}
				if tr.len() != 0 || tr.next.list != nil || tr.next.at != nil || tr.star != nil || tr.tail != nil || tr.values.list != nil {
					t.Errorf("left of the root: %+v", tr)
				}
			})
		}
	}
}

func BenchmarkTrieMatch(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var tr trie[int]
			patterns := mixedPatterns(n)
			for i, p := range patterns {
				tr.insert(p, i)
			}
			topics := mixedTopics(patterns)
			b.ReportAllocs()
			seen := 0
			for i := 0; b.Loop(); i++ {
				tr.match(topics[i%len(topics)], func(int) { seen++ })
			}
			b.ReportMetric(float64(seen)/float64(b.N), "values/op")
		})
	}
}
