package tidings

import "strings"

// trie holds values by pattern; a topic is a pattern without wildcards. Patterns
// and topics are valid ones, see internal/topic: so what is left of one is empty
// only at its end. Each node is a trie of what patterns that begin alike go on
// with. The zero value is empty.
//
// Not safe for concurrent use: its owner's lock guards it.
type trie[T comparable] struct {
	values keyed[T, struct{}]      // of the pattern that ends here
	next   keyed[string, *trie[T]] // by literal token
	star   *trie[T]                // after "*"; apart, as every match asks for it
	tail   *trie[T]                // after ">"; has nothing but values
	n      int                     // values here and below
}

// insert puts v under the pattern. Nothing happens if it is there already.
func (t *trie[T]) insert(pattern string, v T) {
	if pattern == "" {
		if t.values.find(v) < 0 {
			t.values.add(v, struct{}{})
			t.n++
		}
		return
	}
	tok, rest, _ := strings.Cut(pattern, ".")
	to := t.child(tok)
	if to == nil {
		to = new(trie[T])
		t.set(tok, to)
	}
	before := to.n
	to.insert(rest, v)
	t.n += to.n - before
}

// remove takes v from under the pattern. Nothing happens if it is not there.
func (t *trie[T]) remove(pattern string, v T) {
	if pattern == "" {
		if i := t.values.find(v); i >= 0 {
			t.values.drop(i)
			t.n--
		}
		return
	}
	tok, rest, _ := strings.Cut(pattern, ".")
	if to := t.child(tok); to != nil {
		before := to.n
		to.remove(rest, v)
		t.n += to.n - before
		if to.n == 0 {
			t.set(tok, nil) // or memory would grow with every name that ever was
		}
	}
}

// match calls visit for every value whose pattern matches the topic, in no
// order; a value under several such patterns is visited once for each. It
// allocates nothing. visit must not change the trie.
func (t *trie[T]) match(topic string, visit func(T)) {
	for topic != "" {
		t.tail.each(visit) // here, where at least one token is left
		var tok string
		tok, topic, _ = strings.Cut(topic, ".")
		if t.star != nil {
			t.star.match(topic, visit)
		}
		if t = t.child(tok); t == nil {
			return
		}
	}
	t.each(visit)
}

// covered calls visit for every value under a topic that the pattern matches, in
// no order, and once for each such topic; values under patterns with wildcards
// are passed over. visit must not change the trie.
func (t *trie[T]) covered(pattern string, visit func(T)) {
	tok, rest, _ := strings.Cut(pattern, ".")
	switch tok {
	case "":
		t.each(visit)
	case "*":
		for _, e := range t.next.list {
			e.val.covered(rest, visit)
		}
	case ">":
		for _, e := range t.next.list {
			e.val.each(visit)
			e.val.covered(tok, visit)
		}
	default:
		if to := t.child(tok); to != nil {
			to.covered(rest, visit)
		}
	}
}

// len is the number of values, each counted once for each of its patterns.
func (t *trie[T]) len() int { return t.n }

// child returns the node after a token of a pattern, or nil.
func (t *trie[T]) child(tok string) *trie[T] {
	switch tok {
	case "*":
		return t.star
	case ">":
		return t.tail
	}
	if i := t.next.find(tok); i >= 0 {
		return t.next.list[i].val
	}
	return nil
}

// set adds the node after a token, or with nil removes it.
func (t *trie[T]) set(tok string, to *trie[T]) {
	switch {
	case tok == "*":
		t.star = to
	case tok == ">":
		t.tail = to
	case to == nil:
		t.next.drop(t.next.find(tok))
	default:
		t.next.add(strings.Clone(tok), to) // tok would keep the whole pattern in memory
	}
}

// each visits the values of one node, if there is a node.
func (t *trie[T]) each(visit func(T)) {
	if t != nil {
		for _, e := range t.values.list {
			visit(e.key)
		}
	}
}

const linearMax = 8 // up to here looking at each key is faster, in half the memory

// keyed is a list in no order, and above linearMax keys an index to it. Visits
// walk the list: ranging over a map is slower, most of all when it was larger.
type keyed[K comparable, V any] struct {
	list []keyedEntry[K, V]
	at   map[K]int // places, counted from 1 so that 0 is none; nil while few
}

type keyedEntry[K comparable, V any] struct {
	val V // first, as a struct{} at the end would be padded
	key K
}

// find returns the place of the key in the list, or -1.
func (m *keyed[K, V]) find(k K) int {
	if m.at != nil {
		return m.at[k] - 1
	}
	for i := range m.list {
		if m.list[i].key == k {
			return i
		}
	}
	return -1
}

// add takes a key that is not there yet.
func (m *keyed[K, V]) add(k K, v V) {
	m.list = append(m.list, keyedEntry[K, V]{v, k})
	if m.at != nil {
		m.at[k] = len(m.list)
	} else if len(m.list) > linearMax {
		m.at = make(map[K]int)
		for i, e := range m.list {
			m.at[e.key] = i + 1
		}
	}
}

// drop removes what find found.
func (m *keyed[K, V]) drop(i int) {
	last := len(m.list) - 1
	gone, moved := m.list[i].key, m.list[last]
	m.list[i] = moved
	clear(m.list[last:]) // or it would be kept in memory
	m.list = m.list[:last]
	if m.at != nil {
		m.at[moved.key] = i + 1
		delete(m.at, gone) // after that: they may be the same
	}
	// Neither slices nor maps shrink by themselves. A quarter: ups and downs copy nothing.
	if last == 0 || last < cap(m.list)/4 {
		left := m.list
		*m = keyed[K, V]{}
		for _, e := range left {
			m.add(e.key, e.val)
		}
	}
}
