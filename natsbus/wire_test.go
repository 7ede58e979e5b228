package natsbus

import (
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/adapter"
)

// What is encoded is decoded to the same, whatever the strings hold.
func TestWireRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		m := adapter.Message{
			ID: rapid.StringN(1, 40, -1).Draw(t, "id"), Topic: "order.placed", Source: text.Draw(t, "source"),
			Time:        time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			ContentType: text.Draw(t, "type"), Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data"),
			Duration: time.Duration(rapid.Int64Min(0).Draw(t, "duration")), Err: text.Draw(t, "err"),
			Served: rapid.SliceOfN(rapid.StringN(1, 20, -1), 0, 3).Draw(t, "served"), Instrumented: rapid.Bool().Draw(t, "instrumented"),
			Header: rapid.MapOfN(rapid.StringMatching(`[a-z][a-z0-9 .%-]{0,10}`), text, 0, 3).Draw(t, "header"),
		}
		if !m.Instrumented {
			m.Duration, m.Err = 0, ""
		}
		wire := encode("order.placed", &m, adapter.Durable)
		for k, vs := range wire.Header {
			for _, c := range []byte(k + vs[0]) {
				if c < 0x20 || c > 0x7e {
					t.Fatalf("header %q: %q cannot go over the wire", k, vs[0])
				}
			}
		}
		got, err := decode("order.placed", wire.Header, wire.Data)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Header) == 0 {
			m.Header = nil
		}
		if len(m.Served) == 0 {
			m.Served = nil
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("sent %+v\ngot  %+v", m, got)
		}
	})
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
		"no CloudEvent": {nats.Header{"Nats-Msg-Id": {"9"}}, "hello", adapter.Message{ID: "9", Topic: "order.placed", Data: []byte("hello")}},
	} {
		got, err := decode("order.placed", c.header, []byte(c.body))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("ce-id", "7", "body")
	f.Add("content-type", "application/cloudevents+json", `{"specversion":"1.0","id":"7","data":{"n":1}}`)
	f.Add("content-type", "application/cloudevents+json", `{"data_base64":"!"}`)
	f.Add("ce-time", "yesterday", "")
	f.Add("tidings-served", "a%7Cb,%", "")
	f.Add("ce-source", `"quoted \" %41"`, "")
	f.Fuzz(func(t *testing.T, k, v, body string) {
		m, err := decode("order.placed", nats.Header{k: {v}}, []byte(body))
		if m.Topic != "order.placed" || m.ID == "" {
			t.Errorf("topic %q, id %q", m.Topic, m.ID)
		}
		if err != nil && string(m.Data) != body {
			t.Errorf("the body of what cannot be decoded was changed: %q", m.Data)
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
