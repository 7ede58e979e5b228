package redact_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/redact"
)

const planted = "hunter2"

// tree draws a payload with the secret planted under secret names only.
func tree(t *rapid.T, depth int) any {
	kind := rapid.IntRange(0, 9).Draw(t, "kind")
	if depth == 0 {
		kind %= 3
	}
	below := func() any { return tree(t, depth-1) }
	switch kind {
	case 0:
		return rapid.String().Draw(t, "text")
	case 1:
		return rapid.Int().Draw(t, "number")
	case 2:
		return nil
	case 3:
		return []any{below(), below()}
	case 4:
		return map[string]any{"a": below(), rapid.SampledFrom([]string{"token", "X-Api-Key", "oldPassword"}).Draw(t, "key"): planted}
	case 5:
		return &holder{A: below(), Password: planted, inner: inner{Password: planted}}
	case 6:
		return holder{A: below(), M: map[name][]string{"my_secret": {planted}, "b": {"c"}}}
	case 7:
		return [1]any{map[any]any{"cookie": map[string]any{"x": planted}, "b": 1}["b"]}
	case 8:
		data, _ := json.Marshal(map[string]any{"x": below(), "token": []string{planted}})
		return json.RawMessage(data)
	default:
		p := below()
		return &p
	}
}

type holder struct {
	A        any
	Password string
	M        map[name][]string
	inner
}

func TestNoSecretRemains(t *testing.T) {
	f := redact.New()
	rapid.Check(t, func(t *rapid.T) {
		in := tree(t, 4)
		before, _ := json.Marshal(in)
		out := f.Value(in)
		after, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(after, []byte(planted)) {
			t.Fatalf("%s\nstill in\n%s", before, after)
		}
		if now, _ := json.Marshal(in); !bytes.Equal(now, before) {
			t.Fatalf("the value given was changed from\n%s to\n%s", before, now)
		}
		if reflect.TypeOf(in) != reflect.TypeOf(out) {
			t.Fatalf("%T became %T", in, out)
		}
		if clean := !bytes.Contains(before, []byte(planted)); clean && !reflect.DeepEqual(in, out) {
			t.Fatalf("without a secret\n%s became\n%s", before, after)
		}
		if again := f.Value(out); !reflect.DeepEqual(again, out) {
			t.Fatalf("filtered twice: %v, once: %v", again, out)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"token":"x","a":[1.50,{"cvv":1}],"é":"\u2028<"}`, `[]`, `{"a":{"a":{}},"a":null}`, `{"token":}`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	filter := redact.New()
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.Clone(data)
		out := filter.Value(data).([]byte)
		if !bytes.Equal(in, data) {
			t.Fatalf("%q was changed to %q", in, data)
		}
		if !json.Valid(in) {
			if !bytes.Equal(in, out) {
				t.Fatalf("%q is no JSON and became %q", in, out)
			}
			return
		}
		// The typed way and the textual way must agree.
		var want, got any
		decode(t, in, &want)
		decode(t, out, &got)
		if strings.ContainsAny(strings.TrimSpace(string(in))[:1], "{[") {
			want = loose(filter, want)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s became %s, want %v", in, out, want)
		}
		if again := filter.Value(out).([]byte); !bytes.Equal(again, out) {
			t.Fatalf("%s filtered once more is %s", out, again)
		}
	})
}

// loose filters what encoding/json made of it; a masked number is 0 there, and
// nil what was an object or an array.
func loose(f *redact.Filter, v any) any {
	data, _ := json.Marshal(f.Value(v))
	var out any
	_ = json.Unmarshal(data, &out)
	return out
}

func decode(t *testing.T, data []byte, v *any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Skip(err) // a number that no float64 can be
	}
}
