package natsbus

import (
	bin "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
)

// A spoolRecord is an event as it lies in a spool: its head, led by its length, and then
// its payload. A head is headBinary and the fields, or, of older versions, JSON, which
// begins with a brace; encoding/json was a third of what a publisher that spools did.
type spoolRecord struct {
	Subject string      `json:"subject"`
	Topic   string      `json:"topic"`
	Header  nats.Header `json:"header"`
	Doubt   *doubt      `json:"doubt,omitempty"`
}

const headBinary = 1

// doubt is what was known of an event that was written before it was spooled.
type doubt struct {
	Since   time.Time `json:"since"` // when it was written first
	After   uint64    `json:"after"`
	Certain bool      `json:"certain"`
}

func encodeRecord(it *item) []byte {
	if it.batch != nil {
		it.dissolve()
	}
	r := spoolRecord{Subject: it.msg.Subject, Topic: it.topic, Header: it.msg.Header}
	if !it.first.IsZero() {
		r.Doubt = &doubt{Since: it.first, After: it.after, Certain: it.certain}
	}
	head := r.appendTo(make([]byte, 0, 64+it.size))
	b := make([]byte, 0, bin.MaxVarintLen32+len(head)+len(it.msg.Data))
	b = bin.AppendUvarint(b, uint64(len(head)))
	return append(append(b, head...), it.msg.Data...)
}

// appendTo writes a head: strings and numbers, each string led by its length.
func (r *spoolRecord) appendTo(b []byte) []byte {
	b = append(b, headBinary)
	b = appendString(appendString(b, r.Subject), r.Topic)
	b = bin.AppendUvarint(b, uint64(len(r.Header)))
	for k, values := range r.Header {
		b = bin.AppendUvarint(appendString(b, k), uint64(len(values)))
		for _, v := range values {
			b = appendString(b, v)
		}
	}
	if r.Doubt == nil {
		return b
	}
	b = bin.AppendVarint(b, r.Doubt.Since.UnixNano())
	b = bin.AppendUvarint(b, r.Doubt.After)
	if r.Doubt.Certain {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte {
	return append(bin.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeRecord makes an item of a record, and says whether it was in doubt. It keeps b.
func decodeRecord(b []byte) (*item, *doubt, error) {
	n, w := bin.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, errors.New("the record has no head")
	}
	r, err := readHead(b[w : w+int(n)])
	if err != nil {
		return nil, nil, fmt.Errorf("the record's head: %w", err)
	}
	if r.Subject == "" || len(r.Header[nats.MsgIdHdr]) != 1 {
		return nil, nil, errors.New("the record's head has no subject or no id")
	}
	msg := &nats.Msg{Subject: r.Subject, Header: r.Header, Data: b[w+int(n):]}
	it := &item{msg: msg, topic: r.Topic, class: adapter.Durable, size: wireSize(msg), forwarded: true}
	if d := r.Doubt; d != nil {
		it.first, it.after, it.certain, it.lost = longAgo(d.Since), d.After, d.Certain, true
	}
	return it, r.Doubt, nil
}

func readHead(b []byte) (r spoolRecord, err error) {
	if len(b) == 0 || b[0] != headBinary {
		return r, json.Unmarshal(b, &r)
	}
	s := headReader{b: string(b[1:])}
	r.Subject, r.Topic = s.text(), s.text()
	n := s.count()
	h := headers{}
	h.room(n)
	for range n {
		k, values := s.text(), s.count()
		for range values {
			h.add(k, s.text())
		}
	}
	r.Header = h.m
	if s.b != "" {
		d := &doubt{Since: time.Unix(0, s.signed()), After: s.number()}
		d.Certain = s.number() == 1
		r.Doubt = d
	}
	if s.bad || s.b != "" {
		return r, errors.New("it is cut off, or of a later version")
	}
	return r, nil
}

// A headReader takes a head apart; what it returns lies in it.
type headReader struct {
	b   string
	bad bool
}

func (s *headReader) number() uint64 { return read(s, bin.Uvarint) }
func (s *headReader) signed() int64  { return read(s, bin.Varint) }

func read[T any](s *headReader, varint func([]byte) (T, int)) T {
	v, w := varint([]byte(s.b[:min(len(s.b), bin.MaxVarintLen64)]))
	if w <= 0 {
		s.bad, s.b = true, ""
		return v
	}
	s.b = s.b[w:]
	return v
}

// count is a number of things of a byte or more each, all of them still to be read.
func (s *headReader) count() int {
	n := s.number()
	if n > uint64(len(s.b)) {
		s.bad, s.b = true, ""
		return 0
	}
	return int(n)
}

func (s *headReader) text() string {
	n := s.count()
	t := s.b[:n]
	s.b = s.b[n:]
	return t
}

// longAgo is a time that another process, or another clock, has noted. One that is not
// past says that the clock was set: then it was long ago.
func longAgo(t time.Time) time.Time {
	now := time.Now()
	if age := now.Round(0).Sub(t); age >= 0 {
		return now.Add(-age)
	}
	return now.Add(-24 * time.Hour)
}
