package tidings

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Codec turns payloads into bytes and back. Its methods are called
// concurrently.
type Codec interface {
	// Encode returns the bytes of v and their media type.
	Encode(v any) (data []byte, contentType string, err error)
	// Decode fills what v points to.
	Decode(data []byte, contentType string, v any) error
}

// JSON is the default codec: JSON, but for what is bytes or text already; []byte,
// json.RawMessage and string go as they are.
var JSON Codec = jsonCodec{}

type jsonCodec struct{}

func (jsonCodec) Encode(v any) ([]byte, string, error) {
	switch v := v.(type) {
	case json.RawMessage:
		return v, "application/json", nil
	case []byte:
		return v, "application/octet-stream", nil
	case string:
		return []byte(v), "text/plain; charset=utf-8", nil
	}
	data, err := json.Marshal(v)
	return data, "application/json", err
}

func (jsonCodec) Decode(data []byte, contentType string, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = data
		return nil
	case *json.RawMessage:
		*v = data
		return nil
	case *string:
		if strings.HasPrefix(contentType, "text/") {
			*v = string(data)
			return nil
		}
	case *any:
		if strings.HasPrefix(contentType, "text/") {
			*v = string(data)
			return nil
		}
		if !isJSON(contentType) {
			*v = data
			return nil
		}
	}
	if !isJSON(contentType) {
		return fmt.Errorf("cannot decode %s into %T: decode into []byte, or set Options.Codec", contentType, v)
	}
	return json.Unmarshal(data, v)
}

// isJSON: an absent type counts, since most of what comes without one is JSON.
func isJSON(contentType string) bool {
	mt, _, _ := strings.Cut(contentType, ";")
	mt = strings.TrimSpace(mt)
	return mt == "" || mt == "application/json" || mt == "text/json" || strings.HasSuffix(mt, "+json")
}
