// Package protocodec encodes protobuf messages as such, and all else as another
// codec does:
//
//	tidings.Open(ctx, url, tidings.Options{Codec: protocodec.Over(tidings.JSON)})
//
// The media type on the wire is application/protobuf. A handler decodes into the
// message's type, by [tidings.Event.Decode] or with a typed topic of the pointer
// type; which message it is, the topic says.
package protocodec

import (
	"fmt"
	"reflect"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/tidings-go/tidings"
)

// contentType is what is written; others write it with x- or vnd.google. before it.
const contentType = "application/protobuf"

// Over returns a codec for protobuf messages that leaves everything else to another
// codec. Its methods may be called concurrently if those of the other may.
func Over(other tidings.Codec) tidings.Codec { return codec{other} }

type codec struct{ other tidings.Codec }

// Encode implements [tidings.Codec].
func (c codec) Encode(v any) ([]byte, string, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.other.Encode(v)
	}
	data, err := proto.Marshal(m)
	return data, contentType, err
}

// Decode implements [tidings.Codec]. Into a []byte it gives the bytes; into
// another type that is no message it is an error.
func (c codec) Decode(data []byte, mediaType string, v any) error {
	if !isProto(mediaType) {
		return c.other.Decode(data, mediaType, v)
	}
	switch v := v.(type) {
	case *[]byte:
		*v = data
		return nil
	case *any:
		*v = data // which message it is, nobody has said
		return nil
	case proto.Message:
		return proto.Unmarshal(data, v)
	}
	// A pointer to a pointer to a message, as typed topics have: it is made.
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && !p.IsNil() && p.Elem().Kind() == reflect.Pointer {
		made := reflect.New(p.Type().Elem().Elem())
		if m, ok := made.Interface().(proto.Message); ok {
			if err := proto.Unmarshal(data, m); err != nil {
				return err
			}
			p.Elem().Set(made)
			return nil
		}
	}
	return fmt.Errorf("cannot decode %s into %T: decode into the pointer type of its message, or into []byte", mediaType, v)
}

func isProto(mediaType string) bool {
	t, _, _ := strings.Cut(mediaType, ";")
	switch strings.ToLower(strings.TrimSpace(t)) {
	case contentType, "application/x-protobuf", "application/vnd.google.protobuf":
		return true
	}
	return false
}
