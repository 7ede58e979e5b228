package natsbus

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings/adapter"
)

// Header names, all in lower case as the CloudEvents binding writes them:
// nats.go compares header names by case, so what is read is folded first.
const (
	hSpec     = "ce-specversion"
	hID       = "ce-id"
	hSource   = "ce-source"
	hType     = "ce-type"
	hTime     = "ce-time"
	hContent  = "ce-datacontenttype"
	hDuration = "ce-tidingsduration"
	hError    = "ce-tidingserror"
	hServed   = "tidings-served"
	// hUser begins the publisher's own headers, so that none can be taken for
	// one of ours or of the server's.
	hUser = "tidings-h-"
	// hBroken marks what was delivered although it could not be decoded.
	hBroken    = "tidings-undecodable"
	structured = "application/cloudevents+json"
)

// plainHeaders travel under their own names: they are W3C trace context, which
// others on the way read and write.
var plainHeaders = map[string]bool{"traceparent": true, "tracestate": true, "baggage": true}

// encode makes the headers and the body of a message on subject subj. It does
// not copy m.Data.
func encode(subj string, m *adapter.Message, c adapter.Class) *nats.Msg {
	h := make(nats.Header, 8+len(m.Header))
	set := func(k, v string) { h[k] = []string{v} }
	set(hSpec, "1.0")
	set(hID, pct(m.ID))
	set(hSource, pct(m.Source))
	set(hType, pct(m.Topic))
	if !m.Time.IsZero() {
		set(hTime, m.Time.UTC().Format(time.RFC3339Nano))
	}
	if m.ContentType != "" {
		set(hContent, pct(m.ContentType))
	}
	if m.Instrumented || m.Duration != 0 { // says that it is instrumented, too: another header would be dear
		set(hDuration, pct(m.Duration.String()))
	}
	if m.Err != "" {
		set(hError, pct(m.Err))
	}
	for k, v := range m.Header {
		if plainHeaders[k] {
			set(k, pct(v))
		} else {
			set(hUser+pctKey(k), pct(v))
		}
	}
	if len(m.Served) > 0 {
		parts := make([]string, len(m.Served))
		for i, s := range m.Served {
			parts[i] = strings.ReplaceAll(pct(s), ",", "%2C")
		}
		set(hServed, strings.Join(parts, ","))
	}
	if c == adapter.Durable {
		set(nats.MsgIdHdr, pct(m.ID))
	}
	return &nats.Msg{Subject: subj, Header: h, Data: m.Data}
}

// decode reads a message in any of the modes. With an error the message still
// holds the topic and the body as it came.
func decode(topic string, h nats.Header, body []byte) (adapter.Message, error) {
	m := adapter.Message{Topic: topic, Data: body}
	folded := make(map[string]string, len(h))
	for k, v := range h {
		if len(v) > 0 {
			folded[strings.ToLower(k)] = v[0]
		}
	}
	var err error
	if strings.HasPrefix(folded["content-type"], structured) {
		err = readStructured(&m, body)
		delete(folded, "content-type")
	}
	for k, v := range folded {
		err = errors.Join(err, readHeader(&m, k, v))
	}
	if m.ContentType == "" {
		m.ContentType = folded["content-type"]
	}
	if m.ID == "" {
		if m.ID = folded["nats-msg-id"]; m.ID == "" {
			m.ID = nuid.Next()
		}
	}
	return m, err
}

// readHeader reads one header, its name in lower case.
func readHeader(m *adapter.Message, k, raw string) error {
	if strings.HasPrefix(k, "nats-") || k == hSpec || k == "content-type" {
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
	return readAttribute(m, strings.TrimPrefix(k, "ce-"), k, v)
}

// readAttribute puts a CloudEvents attribute where it belongs; what Tidings has
// no field for becomes a header under the name keep.
func readAttribute(m *adapter.Message, name, keep, v string) (err error) {
	if name == keep && !strings.HasPrefix(keep, "ce-") {
		setHeader(m, keep, v)
		return nil
	}
	switch name {
	case "id":
		m.ID = v
	case "source":
		m.Source = v
	case "type":
		// The subject is what the pattern matched; a type that differs is kept.
		if v != m.Topic {
			setHeader(m, keep, v)
		}
	case "time":
		if m.Time, err = time.Parse(time.RFC3339Nano, v); err != nil {
			err = fmt.Errorf("%s: %w", keep, err)
		}
	case "datacontenttype":
		m.ContentType = v
	case "tidingsduration":
		m.Instrumented = true
		if m.Duration, err = time.ParseDuration(v); err != nil {
			err = fmt.Errorf("%s: %w", keep, err)
		}
	case "tidingserror":
		m.Instrumented, m.Err = true, v
	default:
		setHeader(m, keep, v)
	}
	return err
}

func readServed(m *adapter.Message, raw string) error {
	for s := range strings.SplitSeq(raw, ",") {
		v, err := unpct(s)
		if err != nil {
			return fmt.Errorf("header %s: %w", hServed, err)
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

// readStructured reads the JSON event format.
func readStructured(m *adapter.Message, body []byte) error {
	var ev map[string]json.RawMessage
	if err := json.Unmarshal(body, &ev); err != nil {
		return fmt.Errorf("structured CloudEvent: %w", err)
	}
	var data []byte
	for k, raw := range ev {
		switch k {
		case "specversion", "data":
			continue
		case "data_base64":
			var s string
			if err := json.Unmarshal(raw, &s); err != nil {
				return fmt.Errorf("structured CloudEvent: data_base64: %w", err)
			}
			b, err := base64.StdEncoding.DecodeString(s)
			if err != nil {
				return fmt.Errorf("structured CloudEvent: data_base64: %w", err)
			}
			data = b
			continue
		}
		v := string(raw)
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &v); err != nil {
				return fmt.Errorf("structured CloudEvent: %s: %w", k, err)
			}
		}
		k = strings.ToLower(k)
		if err := readAttribute(m, k, "ce-"+k, v); err != nil {
			return err
		}
	}
	if raw, ok := ev["data"]; ok {
		data = structuredData(m, raw)
	}
	m.Data = data
	return nil
}

// structuredData returns the bytes that data stands for: a JSON string is text
// unless the content type says that the value itself is JSON.
func structuredData(m *adapter.Message, raw json.RawMessage) []byte {
	isJSON := m.ContentType == "" || strings.Contains(m.ContentType, "json")
	if m.ContentType == "" {
		m.ContentType = "application/json"
	}
	var s string
	if !isJSON && json.Unmarshal(raw, &s) == nil {
		return []byte(s)
	}
	return raw
}

const upperHex = "0123456789ABCDEF"

// pct encodes a header value as the binding asks: the space, ", % and all that
// is outside U+0021 to U+007E, as the bytes of UTF-8.
// What is no UTF-8 could not be read back: it is replaced.
func pct(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return escape(s, func(c byte) bool { return c == '"' || c == '%' })
}

// pctKey encodes the name of a header: it may hold neither a colon nor an upper
// case letter (names are folded when read).
func pctKey(s string) string {
	return escape(s, func(c byte) bool { return c == ':' || c == '%' || (c >= 'A' && c <= 'Z') })
}

func escape(s string, special func(byte) bool) string {
	bad := func(c byte) bool { return c <= ' ' || c > '~' || special(c) }
	n := 0
	for i := range len(s) {
		if bad(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; bad(c) {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// unpct undoes pct: it takes quotes off, decodes one round, and refuses what is
// not UTF-8 then. A % that begins no escape stays, for senders that do not
// encode.
func unpct(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = unquote(s[1 : len(s)-1])
	}
	if strings.IndexByte(s, '%') >= 0 {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) {
				hi, ok1 := unhex(s[i+1])
				lo, ok2 := unhex(s[i+2])
				if ok1 && ok2 {
					b = append(b, hi<<4|lo)
					i += 2
					continue
				}
			}
			b = append(b, s[i])
		}
		s = string(b)
	}
	if !utf8.ValidString(s) {
		return "", errors.New("not UTF-8")
	}
	return s, nil
}

func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
