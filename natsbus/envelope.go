package natsbus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/adapter"
)

// An envelope is an event in CloudEvents' JSON format: attributes and payload in
// one object, the payload last.

// typeJSON is the media type of data when none is given.
const typeJSON = "application/json"

// sizeHint is enough for most envelopes.
func sizeHint(m *adapter.Message) int {
	return 192 + len(m.ID) + len(m.Source) + len(m.Topic) + len(m.ContentType) + len(m.Data) + len(m.Data)/8
}

// appendEnvelope writes an event. It does not look at headers that travel beside
// the envelope.
func appendEnvelope(b []byte, m *adapter.Message) []byte {
	b = append(b, `{"specversion":"1.0","id":`...)
	b = appendText(b, m.ID)
	b = appendMember(b, "source", m.Source)
	b = appendMember(b, "type", m.Topic)
	b = appendTime(b, "time", m.Time)
	if m.ContentType != "" {
		b = appendMember(b, "datacontenttype", m.ContentType)
	}
	if m.Instrumented || m.Duration != 0 {
		b = appendMember(b, extDuration, m.Duration.String())
	}
	if m.Err != "" {
		b = appendMember(b, extError, m.Err)
	}
	b = appendTime(b, extDue, m.NotBefore)
	b = appendTime(b, extExpires, m.Expires)
	if len(m.Served) > 0 {
		b = appendMember(b, extServed, joinServed(m.Served))
	}
	for k, v := range m.Header {
		if name, ok := extension(k); ok {
			b = appendMember(b, name, v)
		}
	}
	return append(appendData(b, m), '}')
}

// appendData writes the payload in the form that its media type has in JSON. What
// would not come back byte for byte goes as base64.
func appendData(b []byte, m *adapter.Message) []byte {
	data := m.Data
	switch {
	case len(data) == 0:
		return b
	case isJSON(m.ContentType):
		if validJSON(data) && utf8.Valid(data) {
			return append(append(b, `,"data":`...), data...)
		}
	case strings.HasPrefix(m.ContentType, "text/"):
		if utf8.Valid(data) {
			return appendText(append(b, `,"data":`...), data)
		}
	}
	b = append(b, `,"data_base64":"`...)
	return append(base64.StdEncoding.AppendEncode(b, data), '"')
}

// isJSON is CloudEvents' rule for data that stands in an envelope as it is.
func isJSON(contentType string) bool {
	if contentType == typeJSON {
		return true
	}
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	return strings.HasSuffix(t, "/json") || strings.HasSuffix(t, "+json")
}

func appendMember(b []byte, name, v string) []byte {
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	return appendText(b, v)
}

func appendTime(b []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':', '"')
	return append(t.UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

// appendText writes a JSON string. What is no UTF-8 cannot be in one: it is
// replaced.
func appendText[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	start := len(b)
	b = append(b, s...)
	if n := plain(b[start:]); n < len(s) {
		b = appendEscaped(b[:start+n], string(s[n:]))
	}
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	for i, r := range s { // a byte that is no UTF-8 is U+FFFD
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', upperHex[r>>4], upperHex[r&15])
		case r < utf8.RuneSelf:
			b = append(b, s[i])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

var errEnvelope = errors.New("the structured CloudEvent is not valid JSON")

// readEnvelope reads an event, what it can of it. is says whether the body claims
// to be one: it has the member that only CloudEvents have.
func readEnvelope(m *adapter.Message, body []byte) (is bool, err error) {
	var data, encoded []byte
	s := scanner{b: body}
	if !s.next('{') {
		return false, errEnvelope
	}
	if !utf8.Valid(body) {
		err = errors.New("the structured CloudEvent is not UTF-8")
	}
	for first := true; !s.next('}'); first = false {
		if !first && !s.take(',') {
			return is, errEnvelope
		}
		s.space()
		name, escaped, ok := s.text()
		if !ok || !s.next(':') {
			return is, errEnvelope
		}
		s.space()
		start := s.i
		if !s.value(0) { // one less: data lies one deeper than it did alone
			return is, errEnvelope
		}
		if raw := body[start:s.i:s.i]; string(name) == "data" {
			data = raw
		} else if string(name) == "data_base64" {
			encoded = raw
		} else if string(name) == "specversion" {
			is = true
		} else if escaped {
			continue // no attribute's name needs that
		} else if why := readMember(m, name, raw); why != nil && err == nil {
			err = fmt.Errorf("structured CloudEvent: %w", why)
		}
	}
	if s.space(); s.i < len(body) {
		return is, errEnvelope
	}
	if err == nil {
		err = readData(m, data, encoded)
	}
	return is, err
}

// readMember reads an attribute. Those that every event has make no garbage but
// the strings that stay.
func readMember(m *adapter.Message, name, raw []byte) (err error) {
	v := raw
	switch {
	case raw[0] != '"':
		if string(raw) == "null" {
			return nil // as if it was not there
		}
		return readAttribute(m, strings.ToLower(string(name)), string(raw))
	case bytes.IndexByte(raw, '\\') < 0:
		v = raw[1 : len(raw)-1]
	default:
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		v = []byte(s)
	}
	switch string(name) {
	case "id":
		m.ID = string(v)
		return nil
	case "source":
		m.Source = string(v)
		return nil
	case "type":
		if string(v) == m.Topic {
			return nil
		}
	case "time":
		if m.Time.UnmarshalText(v) == nil {
			return nil // else it is less strict, or wrong
		}
	case "datacontenttype":
		if string(v) == typeJSON {
			m.ContentType = typeJSON
			return nil
		}
	}
	return readAttribute(m, strings.ToLower(string(name)), string(v))
}

// readData finds the bytes that the members stand for: a JSON string is text
// unless the content type says that the value itself is JSON.
func readData(m *adapter.Message, raw, encoded []byte) error {
	switch {
	case encoded != nil:
		var b []byte
		if err := json.Unmarshal(encoded, &b); err != nil {
			return fmt.Errorf("structured CloudEvent: data_base64: %w", err)
		}
		m.Data = b
		return nil
	case raw == nil:
		m.Data = nil
		return nil
	case m.ContentType == "":
		m.ContentType = typeJSON
	case raw[0] == '"' && !isJSON(m.ContentType):
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("structured CloudEvent: data: %w", err)
		}
		m.Data = []byte(s)
		return nil
	}
	m.Data = raw
	return nil
}
