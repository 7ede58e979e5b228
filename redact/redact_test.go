package redact_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/redact"
)

type name string

type inner struct {
	Password string
	Plain    int
}

type Token struct{ Value string } // embedded, its own name is not seen

type all struct {
	Password  string
	Pass      *string `json:"user_password"`
	SecretNo  int
	Secrets   []string
	Keep      string
	APIKey    name
	Any       any
	At        time.Time
	Headers   http.Header
	Raw       json.RawMessage
	Bytes     []byte
	Array     [2]inner
	ByPtr     *inner
	ByKey     map[name]inner
	Number    json.Number `json:"token"`
	hidden    string
	ClassName string
	Exempt    string `json:"password" redact:"false"`
	Marked    string `redact:"true"`
	inner
	*Token
}

func ptr[T any](v T) *T { return &v }

func full() all {
	return all{
		Password: "x", Pass: ptr("x"), SecretNo: 7, Secrets: []string{"x"}, Keep: "kept", APIKey: "x",
		Any: map[string]any{"cvv": 123, "ok": []any{map[any]any{"ssn": "x", 1: "kept"}}},
		At:  time.Unix(1, 2), Headers: http.Header{"Set-Cookie": {"x"}, "Accept": {"kept"}},
		Raw:   json.RawMessage(`{"b":1.50,"token":"x","a":[{"Api-Key":5,"<":"&","secret":{"x":1},"cvc":true}]}`),
		Bytes: []byte("\x00token"), Array: [2]inner{{"x", 1}, {"x", 2}}, ByPtr: &inner{"x", 3},
		ByKey: map[name]inner{"kept": {"x", 4}, "auth_token": {"kept", 5}}, Number: "12",
		hidden: "kept", ClassName: "kept", Exempt: "kept", Marked: "x", inner: inner{"x", 6}, Token: &Token{"kept"},
	}
}

func TestValue(t *testing.T) {
	in := full()
	got := redact.New().Value(in).(all)
	f := redact.Filtered
	want := all{
		Password: f, Pass: &f, Keep: "kept", APIKey: name(f),
		Any: map[string]any{"cvv": 0, "ok": []any{map[any]any{"ssn": f, 1: "kept"}}},
		At:  time.Unix(1, 2), Headers: http.Header{"Set-Cookie": nil, "Accept": {"kept"}},
		Raw:   json.RawMessage(`{"b":1.50,"token":"[FILTERED]","a":[{"Api-Key":0,"<":"&","secret":null,"cvc":false}]}`),
		Bytes: []byte("\x00token"), Array: [2]inner{{f, 1}, {f, 2}}, ByPtr: &inner{f, 3},
		ByKey:  map[name]inner{"kept": {f, 4}, "auth_token": {}},
		hidden: "kept", ClassName: "kept", Exempt: "kept", Marked: f, inner: inner{f, 6}, Token: &Token{"kept"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !reflect.DeepEqual(in, full()) {
		t.Errorf("the value given was changed to %+v", in)
	}
	if got.Token != in.Token || &got.Bytes[0] != &in.Bytes[0] {
		t.Error("what has no secret was copied")
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		names  string
		secret string
		plain  string
	}{
		{"api_key", "api_key APIKey apikey x-api-key ApiKeyID MY_API_KEY", "key api a_key"},
		{"password", "Password passWord user_password PASSWORDS old.password", "passwor word"},
		{"ssn", "ssn SSN UserSSN ssn_hash classname SsnOf", "ClassName BusinessNote class_name s_s_n"},
		{"apiKey", "api_key APIKEY", "ap_ke"},
		{",_,  -", "", "a _ -"}, // they would match everything
	} {
		f := redact.New(strings.Split(c.names, ",")...)
		check := func(name string, want any) {
			t.Helper()
			if got := f.Value(map[string]string{name: "x"}).(map[string]string)[name]; got != want {
				t.Errorf("%q under the names %q: %q, want %q", name, c.names, got, want)
			}
		}
		for _, n := range strings.Fields(c.secret) {
			check(n, redact.Filtered)
		}
		for _, n := range strings.Fields(c.plain) {
			check(n, "x")
		}
	}
}

func TestDefaultNamesAreThoseOfTheComment(t *testing.T) {
	for _, n := range []string{"password", "passwd", "passphrase", "secret", "token", "api_key", "private_key", "authorization",
		"credential", "cookie", "credit_card", "card_number", "cvv", "cvc", "ssn"} {
		if got := redact.New().Value(map[string]string{n: "x"}).(map[string]string)[n]; got != redact.Filtered {
			t.Errorf("%s: %q", n, got)
		}
	}
}

func TestKeysOfAnyType(t *testing.T) {
	got := redact.New().Value(map[any]string{"token": "x", 1: "kept", nil: "kept"})
	if want := (map[any]string{"token": redact.Filtered, 1: "kept", nil: "kept"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestZeroFilterObeysTagsOnly(t *testing.T) {
	type user struct {
		Password string
		Note     string `redact:"true"`
	}
	var f redact.Filter
	if got, want := f.Value(user{"a", "b"}), (user{"a", redact.Filtered}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// What has nothing to filter must be the same, not merely equal.
func TestNothingToFilterIsNotCopied(t *testing.T) {
	f := redact.New()
	m := map[string]any{"a": []int{1}, "password": redact.Filtered, "token": nil, "secret": 0}
	if got := f.Value(m).(map[string]any); reflect.ValueOf(got).Pointer() != reflect.ValueOf(m).Pointer() {
		t.Error("a map was copied")
	}
	p := &inner{Plain: 1, Password: redact.Filtered}
	if f.Value(p) != p {
		t.Error("a struct was copied")
	}
	for _, data := range []string{`{"a":1}`, `{"token":"x"`, `"token"`, ``, ` `, `[1, 2]`, `{"token": null}`, `{"token":"[FILTERED]"} `} {
		raw := json.RawMessage(data)
		if got := f.Value(raw).(json.RawMessage); string(got) != data {
			t.Errorf("%s became %s", data, got)
		}
	}
	clean := map[string]any{"a": 1}
	part := f.Value(map[string]any{"token": "x", "clean": clean}).(map[string]any)["clean"]
	if reflect.ValueOf(part).Pointer() != reflect.ValueOf(clean).Pointer() {
		t.Error("a part without a secret was copied")
	}
	if f.Value(nil) != nil || f.Value(7) != 7 || f.Value((*inner)(nil)) != (*inner)(nil) {
		t.Error("nil or a number was changed")
	}
	if n := testing.AllocsPerRun(100, func() { f.Value(p.Plain) }); n != 0 {
		t.Errorf("%v allocations for a value that cannot hold a secret", n)
	}
}

type node struct {
	Password string
	Next     *node
	Others   []*node
	ByName   map[string]*node
	Self     any
}

func TestCycles(t *testing.T) {
	f := redact.New()
	clean, dirty := &node{Password: redact.Filtered}, &node{Password: "x"}
	for _, n := range []*node{clean, dirty} {
		other := &node{Password: redact.Filtered, Next: n}
		n.Next, n.Others, n.ByName, n.Self = other, []*node{n, other}, map[string]*node{"me": n}, n
	}
	if f.Value(clean) != clean {
		t.Error("a cycle without a secret was copied")
	}
	got := f.Value(dirty).(*node)
	if got == dirty || got.Password != redact.Filtered || dirty.Password != "x" {
		t.Errorf("copy %q of %q", got.Password, dirty.Password)
	}
	if got.Next.Next != got || got.Others[0] != got || got.Others[1] != got.Next || got.ByName["me"] != got || got.Self != any(got) {
		t.Error("the copy is not the same graph")
	}
	// The secret is known only after what leads to it in a circle was scanned.
	late := &node{Next: &node{}}
	late.Next.Next, late.ByName = late, map[string]*node{"token": dirty}
	if l := f.Value(late).(*node); l.Next.Next != l || l.ByName["token"] != nil {
		t.Error("a part of the copy is the original")
	}
	m := map[string]any{"secret": "x"}
	m["m"] = m
	if got := f.Value(m).(map[string]any)["m"].(map[string]any)["m"].(map[string]any)["secret"]; got != redact.Filtered {
		t.Errorf("map in itself: %v", got)
	}
}

// codec is one that shows what it was given.
type codec struct{}

func (codec) Encode(v any) ([]byte, string, error) { return fmt.Append(nil, v), "text/plain", nil }
func (codec) Decode(data []byte, _ string, v any) error {
	*v.(*string) = string(data)
	return nil
}

func TestCodecFiltersWhatLeavesOnly(t *testing.T) {
	c := redact.New().Codec(codec{})
	data, contentType, err := c.Encode(map[string]string{"token": "x"})
	if string(data) != "map[token:[FILTERED]]" || contentType != "text/plain" || err != nil {
		t.Errorf("%s, %s, %v", data, contentType, err)
	}
	var s string
	if err := c.Decode([]byte(`{"token":"x"}`), "", &s); err != nil || s != `{"token":"x"}` {
		t.Errorf("%s, %v", s, err)
	}
	if data, _, err := redact.New().Codec(nil).Encode(map[string]string{"token": "x"}); err != nil || string(data) != `{"token":"[FILTERED]"}` {
		t.Errorf("over the default codec: %s, %v", data, err)
	}
}

func TestConcurrentUse(t *testing.T) {
	f := redact.New()
	done := make(chan all)
	for range 4 {
		go func() { done <- f.Value(full()).(all) }()
	}
	got := []all{<-done, <-done, <-done, <-done}
	if slices.ContainsFunc(got, func(a all) bool { return !reflect.DeepEqual(a, got[0]) }) {
		t.Error("results differ")
	}
}

func BenchmarkValue(b *testing.B) {
	f := redact.New()
	for _, c := range []struct {
		name  string
		value any
	}{
		{"cannot hold", struct{ A, B int }{1, 2}},
		{"clean", map[string]any{"a": 1, "b": "c"}},
		{"dirty", map[string]any{"a": 1, "token": "c"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.Value(c.value)
			}
		})
	}
}
