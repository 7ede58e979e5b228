package redact

import (
	"bytes"
	"encoding/json"
)

// json filters an object or array of JSON. Order, numbers and repeated keys stay
// as they are; what is no such JSON is returned as it is.
func (f *Filter) json(data []byte) (out []byte, changed bool) {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' && trimmed[0] != '[' || !json.Valid(data) {
		return data, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	w := jsonFilter{f: f, dec: dec}
	w.enc = json.NewEncoder(&w.out)
	w.enc.SetEscapeHTML(false)
	w.value()
	if !w.changed {
		return data, false
	}
	return w.out.Bytes(), true
}

// jsonFilter copies JSON that is known to be valid, so that nothing can fail.
type jsonFilter struct {
	f       *Filter
	dec     *json.Decoder
	enc     *json.Encoder
	out     bytes.Buffer
	changed bool
}

func (w *jsonFilter) value() {
	tok, _ := w.dec.Token()
	switch tok {
	case json.Delim('{'):
		w.members('}', func() {
			key, _ := w.dec.Token()
			w.scalar(key)
			w.out.WriteByte(':')
			if w.f.secret(key.(string)) {
				w.mask()
			} else {
				w.value()
			}
		})
	case json.Delim('['):
		w.members(']', w.value)
	default:
		w.scalar(tok)
	}
}

func (w *jsonFilter) members(end byte, one func()) {
	w.out.WriteByte(end - 2) // in ASCII, { and [ are two before } and ]
	for first := true; w.dec.More(); first = false {
		if !first {
			w.out.WriteByte(',')
		}
		one()
	}
	_, _ = w.dec.Token()
	w.out.WriteByte(end)
}

// mask keeps the kind of value, so that it still decodes into what it did.
func (w *jsonFilter) mask() {
	var old json.RawMessage
	_ = w.dec.Decode(&old)
	mask := "null"
	switch c := old[0]; {
	case c == '"':
		mask = `"` + Filtered + `"`
	case c == 't' || c == 'f':
		mask = "false"
	case c == '-' || '0' <= c && c <= '9':
		mask = "0"
	}
	w.changed = w.changed || mask != string(old)
	w.out.WriteString(mask)
}

func (w *jsonFilter) scalar(v any) {
	_ = w.enc.Encode(v)
	w.out.Truncate(w.out.Len() - 1) // the encoder ends each value with a line feed
}
