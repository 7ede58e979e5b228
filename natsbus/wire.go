package natsbus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings/adapter"
)

// A form is how events are written. Both are read, always. Durable events are
// binary: they need headers anyway, who looks through a stream reads headers alone,
// and nothing is gained by the other form. docs/decisions/029-wire-form.md has the
// measurements.
type form uint8

const (
	// structured: the message's body is the event in JSON, as CloudEvents' NATS
	// binding 1.0.2 has it, the one that is released. Headers cost nats.go and the
	// server more than the rest of a message, so there are none unless something
	// must be in one; then Content-Type names the mode, as later bindings ask.
	structured form = iota
	// binary: the message's body is the payload, and each attribute a header.
	binary
)

// Names of the extensions that are our own, or that we understand.
const (
	extDuration = "tidingsduration"
	extError    = "tidingserror"
	extDue      = "tidingsnotbefore"
	extServed   = "tidingsserved"
	extExpires  = "expirytime" // CloudEvents documents it
)

// Header names, all in lower case as the CloudEvents binding writes them:
// nats.go compares header names by case, so what is read is folded first.
const (
	hCE       = "ce-"
	hSpec     = hCE + "specversion"
	hID       = hCE + "id"
	hSource   = hCE + "source"
	hType     = hCE + "type"
	hTime     = hCE + "time"
	hContent  = hCE + "datacontenttype"
	hDuration = hCE + extDuration
	hError    = hCE + extError
	hDue      = hCE + extDue
	hExpires  = hCE + extExpires
	hServed   = "tidings-served"
	// hUser begins the publisher's own headers, so that none can be taken for
	// one of ours or of the server's.
	hUser = "tidings-h-"
)

// hMode and its values say which form a message has.
const (
	hMode    = "Content-Type"
	typeCE   = "application/cloudevents"
	typeCEJS = typeCE + "+json"
)

// plainHeaders travel under their own names: they are W3C trace context, which
// others on the way read and write.
var plainHeaders = map[string]bool{"traceparent": true, "tracestate": true, "baggage": true}

// reservedNames are attributes that have a field of their own, or a meaning.
var reservedNames = map[string]bool{"id": true, "source": true, "type": true, "time": true, "specversion": true,
	"datacontenttype": true, "data": true, "data_base64": true,
	extDuration: true, extError: true, extDue: true, extServed: true, extExpires: true}

// extension is the name of the CloudEvents attribute that a header of an event
// stands for: one that came with an event of somebody else, and goes on as it came.
func extension(key string) (name string, ok bool) {
	name, ok = strings.CutPrefix(key, hCE)
	if !ok || name == "" || reservedNames[name] {
		return "", false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", false
		}
	}
	return name, true
}

// encode makes a message on subject subj. It may keep m.Data.
func (f form) encode(subj string, m *adapter.Message, c adapter.Class) *nats.Msg {
	msg := new(nats.Msg)
	f.write(msg, nil, subj, m, c)
	return msg
}

// write is encode into an empty message; an envelope goes into buf if it has room.
func (f form) write(msg *nats.Msg, buf []byte, subj string, m *adapter.Message, c adapter.Class) {
	msg.Subject = subj
	var h headers
	if f == binary {
		h.attributes(m)
		msg.Data = m.Data
	} else {
		if n := sizeHint(m); cap(buf) < n {
			buf = make([]byte, 0, n)
		}
		msg.Data = appendEnvelope(buf[:0], m)
	}
	for k, v := range m.Header {
		if plainHeaders[k] {
			h.set(k, pct(v))
		} else if _, ok := extension(k); !ok {
			h.set(hUser+pctKey(k), pct(v))
		}
	}
	if c == adapter.Durable {
		h.set(nats.MsgIdHdr, pct(m.ID))
	}
	if f == structured && h.m != nil {
		h.set(hMode, typeCEJS)
	}
	msg.Header = h.m
}

// headers are those of a message in the making. All values lie in one slice, since one
// each would be half of what publishing an event allocates.
type headers struct {
	m      nats.Header
	values []string
}

// room makes room for so many.
func (h *headers) room(n int) { h.m, h.values = make(nats.Header, n), make([]string, 0, n) }

func (h *headers) set(k, v string) {
	if h.m == nil {
		h.room(2)
	}
	h.values = append(h.values, v)
	n := len(h.values)
	h.m[k] = h.values[n-1 : n : n]
}

// add is set for a name that may have values already.
func (h *headers) add(k, v string) {
	old := h.m[k]
	h.set(k, v)
	if old != nil {
		h.m[k] = append(old, v)
	}
}

// attributes sets the headers of the binary form.
func (h *headers) attributes(m *adapter.Message) {
	h.room(8 + len(m.Header))
	h.set(hSpec, "1.0")
	h.set(hID, pct(m.ID))
	h.set(hSource, pct(m.Source))
	h.set(hType, pct(m.Topic))
	if !m.Time.IsZero() {
		h.set(hTime, m.Time.UTC().Format(time.RFC3339Nano))
	}
	if m.ContentType != "" {
		h.set(hContent, pct(m.ContentType))
	}
	if m.Instrumented || m.Duration != 0 { // says that it is instrumented, too: another header would be dear
		h.set(hDuration, pct(m.Duration.String()))
	}
	if m.Err != "" {
		h.set(hError, pct(m.Err))
	}
	if !m.NotBefore.IsZero() {
		h.set(hDue, m.NotBefore.UTC().Format(time.RFC3339Nano))
	}
	if !m.Expires.IsZero() {
		h.set(hExpires, m.Expires.UTC().Format(time.RFC3339Nano))
	}
	if len(m.Served) > 0 {
		h.set(hServed, joinServed(m.Served))
	}
	for k, v := range m.Header {
		if _, ok := extension(k); ok {
			h.set(k, pct(v))
		}
	}
}

// decode reads a message in any form. With an error the message still holds the
// topic and the body as it came.
func decode(topic string, h nats.Header, body []byte) (m adapter.Message, err error) {
	err = decodeInto(&m, topic, h, body)
	return m, err
}

// decodeInto is decode into an empty message: they are large to copy.
func decodeInto(m *adapter.Message, topic string, h nats.Header, body []byte) (err error) {
	m.Topic, m.Data = topic, body
	mode, msgID, attributes := lookAt(h)
	switch media, _, _ := strings.Cut(mode, ";"); {
	case len(mode) >= len(typeCE) && strings.EqualFold(mode[:len(typeCE)], typeCE):
		if media = strings.TrimSpace(media); !strings.EqualFold(media, typeCE) && !strings.EqualFold(media, typeCEJS) {
			err = fmt.Errorf("a CloudEvent as %s: only %s is understood", media, typeCEJS)
			break
		}
		_, err = readEnvelope(m, body)
	case mode != "" || attributes:
		m.ContentType = mode
	default: // as binding 1.0.2 has it, and the Go SDK sends it; or no CloudEvent at all
		var is bool
		if is, err = readEnvelope(m, body); !is {
			*m, err = adapter.Message{Topic: topic, Data: body}, nil
		}
	}
	for k, v := range h {
		if len(v) > 0 {
			err = errors.Join(err, readHeader(m, strings.ToLower(k), v[0]))
		}
	}
	if m.ID == "" {
		if m.ID = msgID; m.ID == "" {
			m.ID = nuid.Next()
		}
	}
	if err != nil {
		m.Data = body
	}
	return err
}

// lookAt finds what says in which form a message is.
func lookAt(h nats.Header) (mode, msgID string, attributes bool) {
	for k, v := range h {
		switch {
		case len(v) == 0:
		case strings.EqualFold(k, hMode):
			mode = v[0]
		case strings.EqualFold(k, nats.MsgIdHdr):
			msgID = v[0]
		case len(k) > len(hCE) && strings.EqualFold(k[:len(hCE)], hCE):
			attributes = true
		}
	}
	return strings.ToValidUTF8(mode, "\uFFFD"), strings.ToValidUTF8(msgID, "\uFFFD"), attributes
}

// readHeader reads one header, its name in lower case.
func readHeader(m *adapter.Message, k, raw string) error {
	if strings.HasPrefix(k, "nats-") || k == "content-type" || k == hRequest {
		return nil
	}
	if k == hServed {
		return readServed(m, raw)
	}
	v, err := unpct(raw)
	if err != nil {
		return fmt.Errorf("header %s: %w", k, err)
	}
	if user, ok := strings.CutPrefix(k, hUser); ok {
		if user, err = unpct(user); err != nil {
			return fmt.Errorf("header %s: %w", k, err)
		}
		setHeader(m, user, v)
		return nil
	}
	if name, ok := strings.CutPrefix(k, hCE); ok {
		return readAttribute(m, name, v)
	}
	setHeader(m, k, v)
	return nil
}

// readAttribute puts a CloudEvents attribute where it belongs; what Tidings has
// no field for becomes a header.
func readAttribute(m *adapter.Message, name, v string) (err error) {
	switch name {
	case "specversion":
	case "id":
		m.ID = v
	case "source":
		m.Source = v
	case "type":
		// The subject is what the pattern matched; a type that differs is kept.
		if v != m.Topic {
			setHeader(m, hType, v)
		}
	case "time":
		m.Time, err = time.Parse(time.RFC3339Nano, v)
	case "datacontenttype":
		m.ContentType = v
	case extDuration:
		m.Instrumented = true
		m.Duration, err = time.ParseDuration(v)
	case extDue:
		m.NotBefore, err = time.Parse(time.RFC3339Nano, v)
	case extExpires:
		m.Expires, err = time.Parse(time.RFC3339Nano, v)
	case extError:
		m.Instrumented, m.Err = true, v
	case extServed:
		err = readServed(m, v)
	default:
		setHeader(m, hCE+name, v)
	}
	if err != nil {
		err = fmt.Errorf("%s%s: %w", hCE, name, err)
	}
	return err
}

// joinServed makes one value of the keys; readServed undoes it.
func joinServed(served []string) string {
	parts := make([]string, len(served))
	for i, s := range served {
		parts[i] = strings.ReplaceAll(pct(s), ",", "%2C")
	}
	return strings.Join(parts, ",")
}

func readServed(m *adapter.Message, raw string) error {
	for s := range strings.SplitSeq(raw, ",") {
		v, err := unpct(s)
		if err != nil {
			return fmt.Errorf("%s: %w", hServed, err)
		}
		m.Served = append(m.Served, v)
	}
	return nil
}

func setHeader(m *adapter.Message, k, v string) {
	if m.Header == nil {
		m.Header = map[string]string{}
	}
	m.Header[k] = v
}
