package natsbus

import (
	bin "encoding/binary"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"
)

// What lies in a spool comes back as it was, whatever it holds.
func TestRecordComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		msg := &nats.Msg{Subject: "s" + text.Draw(t, "subject"), Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data"), Header: nats.Header{}}
		for k, v := range rapid.MapOf(text, rapid.SliceOfN(text, 1, 3)).Draw(t, "header") {
			msg.Header[k] = v
		}
		msg.Header[nats.MsgIdHdr] = []string{text.Draw(t, "id")}
		it := &item{msg: msg, topic: text.Draw(t, "topic")}
		if rapid.Bool().Draw(t, "in doubt") {
			it.first, it.after, it.certain = time.Unix(1, rapid.Int64Range(0, 1e18).Draw(t, "since")), rapid.Uint64().Draw(t, "after"), rapid.Bool().Draw(t, "certain")
		}
		got, d, err := decodeRecord(encodeRecord(it))
		if err != nil {
			t.Fatal(err)
		}
		if got.msg.Subject != msg.Subject || got.topic != it.topic || !reflect.DeepEqual(got.msg.Header, msg.Header) || string(got.msg.Data) != string(msg.Data) {
			t.Fatalf("%+v came back as %+v", msg, got.msg)
		}
		if (d != nil) != !it.first.IsZero() {
			t.Fatalf("the doubt of %v came back as %v", it.first, d)
		}
		if d != nil && (!d.Since.Equal(it.first) || d.After != it.after || d.Certain != it.certain) {
			t.Fatalf("%+v came back as %+v", it, d)
		}
	})
}

// A spool that an older version has left behind is read.
func TestRecordOfAnOlderVersion(t *testing.T) {
	head := `{"subject":"order.placed","topic":"order.placed","header":{"Nats-Msg-Id":["7"],"ce-id":["7"]},"doubt":{"since":"2026-11-25T10:00:00Z","after":4,"certain":true}}`
	it, d, err := decodeRecord(append(bin.AppendUvarint(nil, uint64(len(head))), head+"payload"...))
	if err != nil {
		t.Fatal(err)
	}
	if it.topic != "order.placed" || it.id() != "7" || string(it.msg.Data) != "payload" || d == nil || d.After != 4 || !d.Certain {
		t.Errorf("%+v, %+v", it.msg, d)
	}
}

// Of no bytes does reading panic, or take more memory than they are; and what it accepts
// is written and read again as the same.
func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord(&item{topic: "a", msg: &nats.Msg{Subject: "a", Header: nats.Header{nats.MsgIdHdr: {"1"}}, Data: []byte("x")}}))
	f.Add(encodeRecord(&item{topic: "a", msg: &nats.Msg{Subject: "a", Header: nats.Header{nats.MsgIdHdr: {"1"}}}, first: time.Unix(1, 0), after: 9}))
	f.Add([]byte("\x03{}x"))
	f.Add([]byte{4, headBinary, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		it, d, err := decodeRecord(b)
		if err != nil {
			return
		}
		it.first = time.Time{}
		if d != nil {
			it.first = d.Since
		}
		again, d2, err := decodeRecord(encodeRecord(it))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := mustJSON(t, again.msg.Header), mustJSON(t, it.msg.Header); got != want || again.msg.Subject != it.msg.Subject || (d == nil) != (d2 == nil) {
			t.Fatalf("%s %s came back as %s %s", it.msg.Subject, want, again.msg.Subject, got)
		}
	})
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
