package protocodec_test

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/protocodec"
)

func Example() {
	// A bus whose payloads are protobuf messages. A typed topic has the pointer type.
	bus, err := tidings.New(tidings.Options{Codec: protocodec.Over(tidings.JSON), AlwaysEncode: true})
	if err != nil {
		panic(err)
	}
	greeted := tidings.NewTopic[*wrapperspb.StringValue]("greeted").On(bus)
	ctx := context.Background()
	if _, err := greeted.Subscribe(ctx, func(_ context.Context, _ tidings.Event, v *wrapperspb.StringValue) error {
		fmt.Println("hello", v.GetValue())
		return nil
	}, nil); err != nil {
		panic(err)
	}
	if err := greeted.Publish(ctx, wrapperspb.String("world")); err != nil {
		panic(err)
	}
	if err := bus.Drain(ctx); err != nil {
		panic(err)
	}
	// Output: hello world
}

func TestCodec(t *testing.T) {
	c := protocodec.Over(tidings.JSON)
	want, err := structpb.NewStruct(map[string]any{"n": 1, "s": "grüße"})
	if err != nil {
		t.Fatal(err)
	}
	data, mediaType, err := c.Encode(want)
	if err != nil || mediaType != "application/protobuf" {
		t.Fatalf("%s, %v", mediaType, err)
	}
	for _, mediaType := range []string{mediaType, "application/x-protobuf; messageType=x", "Application/vnd.google.protobuf"} {
		var value structpb.Struct
		var pointer *structpb.Struct
		var bytes []byte
		var generic any
		for _, v := range []any{&value, &pointer, &bytes, &generic} {
			if err := c.Decode(data, mediaType, v); err != nil {
				t.Errorf("%s into %T: %v", mediaType, v, err)
			}
		}
		if !proto.Equal(&value, want) || !proto.Equal(pointer, want) || string(bytes) != string(data) || string(generic.([]byte)) != string(data) {
			t.Errorf("%s: got %v, %v, %q, %q", mediaType, &value, pointer, bytes, generic)
		}
		var n int
		var p *int
		for _, v := range []any{&n, &p, (**structpb.Struct)(nil), 7} {
			if err := c.Decode(data, mediaType, v); err == nil {
				t.Errorf("%s was decoded into %T", mediaType, v)
			}
		}
		if err := c.Decode([]byte{0xff}, mediaType, &pointer); err == nil {
			t.Error("broken bytes were decoded")
		}
	}
}

// What is no message is the other codec's.
func TestTheRest(t *testing.T) {
	c := protocodec.Over(tidings.JSON)
	data, mediaType, err := c.Encode(map[string]int{"n": 1})
	if err != nil || mediaType != "application/json" {
		t.Fatalf("%s, %v", mediaType, err)
	}
	var got map[string]int
	if err := c.Decode(data, mediaType, &got); err != nil || got["n"] != 1 {
		t.Errorf("%v, %v", got, err)
	}
}
