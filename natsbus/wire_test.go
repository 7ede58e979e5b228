package natsbus

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/adapter"
)

// anyMessage draws a message, whatever its strings hold; of what is not UTF-8 it
// makes none.
func anyMessage(t *rapid.T) adapter.Message {
	text := rapid.String()
	m := adapter.Message{
		ID: rapid.StringN(1, 40, -1).Draw(t, "id"), Topic: "order.placed", Source: text.Draw(t, "source"),
		Time:         anyTime(t, "time"),
		ContentType:  rapid.OneOf(rapid.SampledFrom(mediaTypes), text).Draw(t, "type"),
		Data:         rapid.OneOf(rapid.SampledFrom(payloads), rapid.SliceOf(rapid.Byte())).Draw(t, "data"),
		Instrumented: rapid.Bool().Draw(t, "instrumented"),
		Served:       rapid.SliceOfN(rapid.StringN(1, 20, -1), 0, 3).Draw(t, "served"),
		Header:       rapid.MapOfN(rapid.OneOf(rapid.SampledFrom(keys), rapid.StringMatching(`[a-z][a-z0-9 .%-]{0,10}`)), text, 0, 5).Draw(t, "header"),
	}
	if m.Instrumented {
		m.Duration, m.Err = time.Duration(rapid.Int64Min(0).Draw(t, "duration")), text.Draw(t, "err")
	}
	if rapid.Bool().Draw(t, "later") {
		m.NotBefore, m.Expires = anyTime(t, "not before"), anyTime(t, "expires")
	}
	return m
}

var (
	mediaTypes = []string{"", "application/json", "application/problem+json; charset=utf-8", "text/plain", "text/json", "application/x-ndjson",
		"application/octet-stream", "application/protobuf", "TEXT/PLAIN", "Application/JSON"}
	payloads = [][]byte{nil, []byte(`{"n":1,"s":"\u20ac \n €"}`), []byte(` 1`), []byte("1\n"), []byte(`"text"`), []byte("null"), []byte("plain, \"quoted\"\n\x01"),
		[]byte(`{"n":`), []byte("[1]\n[2]\n"), []byte("\"\xff\""), []byte("\xff")}
	// What must not be taken for ours, nor be lost.
	keys = []string{"traceparent", "tracestate", "baggage", "content-type", "nats-msg-id", "ce-id", "ce-type", "ce-subject", "ce-comexample1", "ce-no_attribute",
		"ce-tidingsserved", "ce-data", "tidings-served", "tidings-tags", "tidings-h-x", "a:b", "status"}
)

func anyTime(t *rapid.T, name string) time.Time {
	return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns")).UTC()
}

// What is encoded in either form is decoded to the same, whatever it holds.
func TestWireRoundTrip(t *testing.T) {
	for _, f := range []form{structured, binary} {
		for _, class := range []adapter.Class{adapter.Live, adapter.Durable} {
			rapid.Check(t, func(t *rapid.T) {
				m := anyMessage(t)
				wire := f.encode("order.placed", &m, class)
				for k, vs := range wire.Header {
					for _, c := range []byte(k + vs[0]) {
						if c < 0x20 || c > 0x7e {
							t.Fatalf("header %q: %q cannot go over the wire", k, vs[0])
						}
					}
				}
				if f == structured && !json.Valid(wire.Data) {
					t.Fatalf("no JSON: %s", wire.Data)
				}
				got, err := decode("order.placed", wire.Header, wire.Data)
				if err != nil {
					t.Fatalf("%v: %v, %s", err, wire.Header, wire.Data)
				}
				same(t, got, m)
			})
		}
	}
}

// same compares messages; nothing is the same as an empty list of it.
func same(t interface{ Fatalf(string, ...any) }, got, want adapter.Message) {
	for _, m := range []*adapter.Message{&got, &want} {
		if len(m.Header) == 0 {
			m.Header = nil
		}
		if len(m.Served) == 0 {
			m.Served = nil
		}
		if len(m.Data) == 0 {
			m.Data = nil
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("sent %+v\ngot  %+v", want, got)
	}
}

// Text that is no UTF-8 goes nowhere: it is replaced, in both forms alike, and the
// payload stays.
func TestWireReplacesWhatIsNoText(t *testing.T) {
	for _, f := range []form{structured, binary} {
		bad := adapter.Message{ID: "7", Topic: "order.placed", Source: "a\xffb", Err: "\xc3(", Instrumented: true, ContentType: "text/plain", Data: []byte("\xff"),
			Header: map[string]string{"x": "\xffz", "ce-ext": "\xff"}}
		wire := f.encode("order.placed", &bad, adapter.Live)
		got, err := decode("order.placed", wire.Header, wire.Data)
		if err != nil {
			t.Fatal(err)
		}
		want := bad
		want.Source, want.Err, want.Header = "a\uFFFDb", "\uFFFD(", map[string]string{"x": "\uFFFDz", "ce-ext": "\uFFFD"}
		same(t, got, want)
	}
}

// An ordinary live event has no header, a durable one those that must be.
func TestWireHeaders(t *testing.T) {
	m := adapter.Message{ID: "7", Topic: "order.placed", Source: "//shop/1", Time: time.Unix(1, 0), ContentType: "application/json", Data: []byte(`{"n":1}`),
		Served: []string{"a|order.*"}}
	if h := structured.encode("order.placed", &m, adapter.Live).Header; h != nil {
		t.Errorf("a live event has the headers %v", h)
	}
	want := nats.Header{"Content-Type": {"application/cloudevents+json"}, "Nats-Msg-Id": {"7"}}
	if h := structured.encode("order.placed", &m, adapter.Durable).Header; !reflect.DeepEqual(h, want) {
		t.Errorf("a durable event has the headers %v", h)
	}
	m.Header = map[string]string{"traceparent": "00-1-2-3"}
	want = nats.Header{"Content-Type": {"application/cloudevents+json"}, "traceparent": {"00-1-2-3"}}
	if h := structured.encode("order.placed", &m, adapter.Live).Header; !reflect.DeepEqual(h, want) {
		t.Errorf("a live event with trace context has the headers %v", h)
	}
}

// The binary form is byte for byte what was written before there was another:
// processes of that time read it, when wire=binary is set while they still run.
func TestWireBinaryIsAsItWas(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	m := adapter.Message{ID: "7", Topic: "order.placed", Source: "//shop/1", Time: at, ContentType: "text/plain; charset=utf-8", Data: []byte("x"),
		Instrumented: true, Duration: time.Second, Err: "no €", NotBefore: at, Expires: at, Served: []string{"a|b,c"},
		Header: map[string]string{"traceparent": "00-1-2-3", "Key": "v w", "ce-id": "mine"}}
	want := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"7"}, "ce-source": {"//shop/1"}, "ce-type": {"order.placed"},
		"ce-time": {"2026-01-02T03:04:05.000000006Z"}, "ce-datacontenttype": {"text/plain;%20charset=utf-8"}, "ce-tidingsduration": {"1s"},
		"ce-tidingserror": {"no%20%E2%82%AC"}, "ce-tidingsnotbefore": {"2026-01-02T03:04:05.000000006Z"}, "ce-expirytime": {"2026-01-02T03:04:05.000000006Z"},
		"tidings-served": {"a|b%2Cc"}, "traceparent": {"00-1-2-3"}, "tidings-h-%4Bey": {"v%20w"}, "tidings-h-ce-id": {"mine"}, "Nats-Msg-Id": {"7"}}
	if h := binary.encode("order.placed", &m, adapter.Durable).Header; !reflect.DeepEqual(h, want) {
		t.Errorf("got  %v\nwant %v", h, want)
	}
}

// The example of the CloudEvents NATS binding for percent-encoding, and what
// others really send.
func TestReadsWhatOthersSend(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		header nats.Header
		body   string
		want   adapter.Message
	}{
		"binary": {nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"7"}, "ce-source": {"//shop/one"}, "ce-type": {"order.placed"},
			"ce-time": {"2026-01-02T03:04:05Z"}, "ce-datacontenttype": {"application/json"}, "ce-comexample": {"Euro%20%E2%82%AC%20%F0%9F%98%80"}}, `{"n":1}`,
			adapter.Message{ID: "7", Topic: "order.placed", Source: "//shop/one", Time: at, ContentType: "application/json", Data: []byte(`{"n":1}`),
				Header: map[string]string{"ce-comexample": "Euro € 😀"}}},
		"other case, content-type instead": {nats.Header{"Ce-Id": {"7"}, "CE-Source": {"s"}, "Content-Type": {"text/plain"}}, "x",
			adapter.Message{ID: "7", Topic: "order.placed", Source: "s", ContentType: "text/plain", Data: []byte("x")}},
		"structured": {nats.Header{"Content-Type": {"application/cloudevents+json; charset=utf-8"}},
			`{"specversion":"1.0","id":"7","source":"s","type":"order.placed","time":"2026-01-02T03:04:05Z","datacontenttype":"application/json","data":{"n":1}}`,
			adapter.Message{ID: "7", Topic: "order.placed", Source: "s", Time: at, ContentType: "application/json", Data: []byte(`{"n":1}`)}},
		"structured, binary data": {nats.Header{"content-type": {"application/cloudevents+json"}},
			`{"specversion":"1.0","id":"7","source":"s","type":"order.placed","datacontenttype":"image/png","data_base64":"AAEC"}`,
			adapter.Message{ID: "7", Topic: "order.placed", Source: "s", ContentType: "image/png", Data: []byte{0, 1, 2}}},
		"structured, by the first binding and the Go SDK: without a header": {nil,
			`{"specversion":"1.0","id":"7","source":"s","type":"order.placed","datacontenttype":"text/plain","data":"x\n","comexample":true,"other":null}`,
			adapter.Message{ID: "7", Topic: "order.placed", Source: "s", ContentType: "text/plain", Data: []byte("x\n"), Header: map[string]string{"ce-comexample": "true"}}},
		"the same, spaced, the payload first, stored by others": {nats.Header{"Nats-Msg-Id": {"9"}, "traceparent": {"00-1-2-3"}},
			"\n { \"data\" : [ 1, 2 ] , \"specversion\" : \"1.0\" , \"id\" : \"\\u0037\", \"source\":\"s\", \"type\":\"other.type\" } \n",
			adapter.Message{ID: "7", Topic: "order.placed", Source: "s", ContentType: "application/json", Data: []byte(`[ 1, 2 ]`),
				Header: map[string]string{"ce-type": "other.type", "traceparent": "00-1-2-3"}}},
		"structured, the media type of the SDK's draft": {nats.Header{"content-type": {"Application/CloudEvents"}},
			`{"specversion":"1.0","id":"7","source":"s","type":"order.placed"}`, adapter.Message{ID: "7", Topic: "order.placed", Source: "s"}},
		"JSON that is no CloudEvent": {nil, `{"id":"7","source":"s"}`, adapter.Message{Topic: "order.placed", Data: []byte(`{"id":"7","source":"s"}`)}},
		"JSON as its header says, whatever is in it": {nats.Header{"Content-Type": {"application/json"}}, `{"specversion":"1.0"}`,
			adapter.Message{Topic: "order.placed", ContentType: "application/json", Data: []byte(`{"specversion":"1.0"}`)}},
		"no CloudEvent": {nats.Header{"Nats-Msg-Id": {"9"}}, "hello", adapter.Message{ID: "9", Topic: "order.placed", Data: []byte("hello")}},
	} {
		got, err := decode("order.placed", c.header, []byte(c.body))
		if c.want.ID == "" {
			c.want.ID = got.ID // a new one
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, c.want)
		}
	}
}

// What claims to be an event and cannot be read is an error that says what is
// wrong; what could be read, and the body as it came, are kept.
func TestUndecodable(t *testing.T) {
	for body, say := range map[string]string{
		`{"specversion":"1.0","source":"s","id":`:                      "not valid JSON",
		`{"source":"s","specversion":"1.0"} x`:                         "not valid JSON",
		`{"source":"s","specversion":"1.0","data":tru}`:                "not valid JSON",
		`{"source":"s","specversion":"1.0","time":"yesterday"}`:        "time",
		`{"source":"s","specversion":"1.0","data_base64":"!"}`:         "data_base64",
		`{"source":"s","specversion":"1.0","data_base64":7}`:           "data_base64",
		`{"source":"s","specversion":"1.0","tidingsduration":"soon"}`:  "tidingsduration",
		"{\"source\":\"s\",\"specversion\":\"1.0\",\"data\":\"\xff\"}": "UTF-8",
	} {
		for _, h := range []nats.Header{nil, {"Content-Type": {"application/cloudevents+json"}}} {
			m, err := decode("order.placed", h, []byte(body))
			if err == nil || !strings.Contains(err.Error(), say) {
				t.Errorf("%s: %v", body, err)
			}
			if m.Topic != "order.placed" || string(m.Data) != body || (m.Source != "s" && !strings.HasSuffix(body, `"id":`)) {
				t.Errorf("%s: what is left is %+v", body, m)
			}
		}
	}
	for mode, body := range map[string]string{"application/cloudevents+json": "plain", "application/cloudevents+avro": "\x00", "application/cloudevents-batch+json": "[]"} {
		if m, err := decode("order.placed", nats.Header{"Content-Type": {mode}}, []byte(body)); err == nil || string(m.Data) != body {
			t.Errorf("%s: %v, %+v", mode, err, m)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("ce-id", "7", "body")
	f.Add("content-type", "application/cloudevents+json", `{"specversion":"1.0","id":"7","data":{"n":1}}`)
	f.Add("content-type", "application/cloudevents+json", `{"data_base64":"!"}`)
	f.Add("x", "", `{"specversion":"1.0","id":"7","source":"s","type":"t","datacontenttype":"text/plain","data":"\u20ac"}`)
	f.Add("ce-time", "yesterday", "")
	f.Add("tidings-served", "a%7Cb,%", "")
	f.Add("ce-source", `"quoted \" %41"`, "")
	f.Fuzz(func(t *testing.T, k, v, body string) {
		m, err := decode("order.placed", nats.Header{k: {v}}, []byte(body))
		if m.Topic != "order.placed" || m.ID == "" {
			t.Errorf("topic %q, id %q", m.Topic, m.ID)
		}
		if err != nil {
			if string(m.Data) != body {
				t.Errorf("the body of what cannot be decoded was changed: %q", m.Data)
			}
			return
		}
		// What was read can be written, in both forms, and read again.
		for _, f := range []form{structured, binary} {
			wire := f.encode("order.placed", &m, adapter.Durable)
			again, err := decode("order.placed", wire.Header, wire.Data)
			if err != nil {
				t.Fatalf("%+v cannot be read again: %v", m, err)
			}
			same(t, again, m)
		}
	})
}

// What encoding/json takes as nested too deep is none for the scanner, and nothing
// overflows the stack.
func TestScanDepth(t *testing.T) {
	for _, n := range []int{maxNesting, maxNesting + 1, 5_000_000} {
		b := []byte(strings.Repeat("[", n) + strings.Repeat("]", n))
		if got := validJSON(b); got != (n <= maxNesting) || got != json.Valid(b) {
			t.Errorf("%d arrays in each other are valid: %v", n, got)
		}
	}
}

// The scanner accepts what encoding/json does, but for spaces around it.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+3,true,false,null,"\u00e9\n"]}`, `[]`, `{}`, `01`, `1.`, `-`, `"\x"`, `"\u12g4"`, `{"a"}`, `[1,]`, `{,}`, "\"\x1f\"", `tru`, `[[[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := json.Valid(b) && len(bytes.Trim(b, " \t\r\n")) == len(b)
		if got := validJSON(b); got != want {
			t.Errorf("%q is valid: %v, encoding/json says %v", b, got, want)
		}
	})
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{"nats://127.0.0.1:4222", "nats://s3cret@h:1,h2:2?token-file=/x", "tls://u:p%40@[::1]:4", "nats://%zz@h", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseURL(s)
		if err == nil && (a == nil || len(a.servers) == 0 || a.public == "") {
			t.Errorf("%q: %+v", s, a)
		}
	})
}
