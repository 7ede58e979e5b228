package tidingstest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
)

// Matcher says which event is wanted. It is one of
//
//   - a string: a topic, or a pattern with wildcards, that the event's topic
//     matches;
//   - what [Event] returns: a topic or pattern and a payload;
//   - a func(tidings.Event) bool, which must give the same answer each time.
//
// Anything else fails the test at once.
type Matcher any

// Event matches events by topic or pattern and by payload: the event's is decoded
// into the type of payload, and must then be deeply equal to it, or to what
// becomes of it in JSON, which keeps no monotonic time and no unexported field.
func Event(topic string, payload any) Matcher {
	return eventMatcher{topic, payload}
}

type eventMatcher struct {
	topic   string
	payload any
}

func (m eventMatcher) match(e tidings.Event) bool {
	if !covers(m.topic, e.Topic()) {
		return false
	}
	if m.payload == nil {
		var v any
		return e.Decode(&v) == nil && v == nil
	}
	into := reflect.New(reflect.TypeOf(m.payload))
	if e.Decode(into.Interface()) != nil {
		return false
	}
	got := into.Elem().Interface()
	return reflect.DeepEqual(got, m.payload) || reflect.DeepEqual(got, inJSON(m.payload))
}

// inJSON is v as it is after encoding and decoding; v itself if it cannot be.
func inJSON(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		return v
	}
	into := reflect.New(reflect.TypeOf(v))
	if json.Unmarshal(data, into.Interface()) != nil {
		return v
	}
	return into.Elem().Interface()
}

// Payload decodes the event's payload into a T. It panics if that cannot be done.
func Payload[T any](e tidings.Event) T {
	var v T
	if err := e.Decode(&v); err != nil {
		panic(fmt.Sprintf("tidingstest: the payload of %s does not decode into %T: %v", e, v, err))
	}
	return v
}

// matcher is a Matcher that was understood.
type matcher struct {
	match   func(tidings.Event) bool
	topic   string // empty: it does not go by topic
	text    string
	payload bool
}

func compile(t testing.TB, want []Matcher) []matcher {
	t.Helper()
	out := make([]matcher, len(want))
	for i, w := range want {
		switch w := w.(type) {
		case string:
			mustBePattern(t, w)
			out[i] = matcher{func(e tidings.Event) bool { return covers(w, e.Topic()) }, w, w, false}
		case eventMatcher:
			mustBePattern(t, w.topic)
			out[i] = matcher{w.match, w.topic, w.topic + " " + show(w.payload), true}
		case func(tidings.Event) bool:
			out[i] = matcher{w, "", fmt.Sprintf("an event that function %d of the call returns true for", i+1), false}
		default:
			t.Fatalf("tidingstest: matcher %d is a %T; it must be a topic, an Event or a func(tidings.Event) bool", i+1, w)
		}
	}
	return out
}

func mustBePattern(t testing.TB, pattern string) {
	t.Helper()
	tokens := strings.Split(pattern, ".")
	for i, tok := range tokens {
		if tok == "" || (tok == ">" && i < len(tokens)-1) {
			t.Fatalf("tidingstest: %q is not a topic nor a pattern", pattern)
		}
	}
}

// covers is the library's rule: "*" is one token, ">" at the end one or more.
func covers(pattern, topic string) bool {
	p, t := strings.Split(pattern, "."), strings.Split(topic, ".")
	for i, tok := range p {
		switch {
		case i == len(t):
			return false
		case tok == ">":
			return true
		case tok != "*" && tok != t[i]:
			return false
		}
	}
	return len(p) == len(t)
}

// assign gives each matcher an event of its own, as far as that is possible, or
// -1. Matchers may overlap, so one that has an event leaves it to another if it
// finds a second: the augmenting paths of bipartite matching.
func assign(want []matcher, events []tidings.Event) []int {
	at, taken := make([]int, len(want)), make([]int, len(events))
	for i := range at {
		at[i] = -1
	}
	for i := range taken {
		taken[i] = -1
	}
	fits := make([][]bool, len(want))
	for w := range want {
		fits[w] = make([]bool, len(events))
		for e := range events {
			fits[w][e] = want[w].match(events[e])
		}
	}
	var place func(w int, tried []bool) bool
	place = func(w int, tried []bool) bool {
		for e := range events {
			if tried[e] || !fits[w][e] {
				continue
			}
			tried[e] = true
			if taken[e] < 0 || place(taken[e], tried) {
				at[w], taken[e] = e, w
				return true
			}
		}
		return false
	}
	for w := range want {
		place(w, make([]bool, len(events)))
	}
	return at
}

// inOrder gives each matcher the first event after that of the one before; -1
// from the first that has none.
func inOrder(want []matcher, events []tidings.Event) []int {
	at, next := make([]int, len(want)), 0
	for w := range want {
		at[w] = -1
		for e := next; e < len(events); e++ {
			if want[w].match(events[e]) {
				at[w], next = e, e+1
				break
			}
		}
		if at[w] < 0 {
			next = len(events)
		}
	}
	return at
}

// show is a payload for people.
func show(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%+v", v)
	}
	return short(string(data))
}

// showEvent is an event for people.
func showEvent(e tidings.Event) string {
	var raw json.RawMessage
	switch err := e.Decode(&raw); {
	case err != nil:
		return fmt.Sprintf("%s (payload: %v)", e.Topic(), err)
	case !json.Valid(raw):
		return e.Topic() + " " + short(fmt.Sprintf("%q", raw))
	}
	return e.Topic() + " " + short(string(raw))
}

const shortEnough = 400

func short(s string) string {
	if len(s) <= shortEnough {
		return s
	}
	return strings.ToValidUTF8(s[:shortEnough], "") + fmt.Sprintf("… (%d bytes)", len(s))
}
