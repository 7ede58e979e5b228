// Command sdkpeer is a program that knows CloudEvents by their Go SDK, NATS by that
// SDK's protocols, and not Tidings. It is a module of its own, as nothing else needs
// what it imports.
//
// It prints each CloudEvent that it gets on read.> as a line of JSON, after the
// SDK has validated it, and sends events as the SDK does, structured ones on
// sent.structured.KIND and binary ones on sent.binary.KIND, which a stream has.
// It ends with its input.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/cloudevents/sdk-go/protocol/nats/v2"
	"github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	natsio "github.com/nats-io/nats.go"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sdkpeer:", err)
		os.Exit(1)
	}
}

func run(url string) error {
	nc, err := natsio.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	out := json.NewEncoder(os.Stdout)
	_, err = nc.Subscribe("read.>", func(m *natsio.Msg) {
		if err := out.Encode(read(m)); err != nil {
			fmt.Fprintln(os.Stderr, "sdkpeer:", err)
			os.Exit(1)
		}
	})
	if err != nil {
		return err
	}
	if err := nc.Flush(); err != nil {
		return err
	}
	if err := out.Encode(map[string]string{"subject": "ready"}); err != nil {
		return err
	}
	if err := send(nc); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// read makes of a message what the SDK understands of it.
func read(m *natsio.Msg) map[string]any {
	told := map[string]any{"subject": m.Subject, "traceparent": m.Header.Get("traceparent")}
	msg := nats_jetstream.NewMessage(m)
	told["mode"] = msg.ReadEncoding().String()
	e, err := binding.ToEvent(context.Background(), msg)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		told["error"] = err.Error()
		return told
	}
	told["id"], told["source"], told["type"], told["time"] = e.ID(), e.Source(), e.Type(), e.Time()
	told["datacontenttype"], told["extensions"], told["data"] = e.DataContentType(), e.Extensions(), e.Data()
	return told
}

// kinds of payload, the same in all peers.
var kinds = []struct {
	name, contentType string
	data              any
}{
	{"json", "application/json", map[string]any{"n": 1, "s": "grüße"}},
	{"text", "text/plain", "grüße, \"world\"\n"},
	{"bytes", "application/octet-stream", []byte{0, 1, 254, 255}},
	{"proto", "application/protobuf", append([]byte{10, 7}, "grüße"...)}, // google.protobuf.StringValue
}

func send(nc *natsio.Conn) error {
	ctx := context.Background()
	for _, k := range kinds {
		e := event.New()
		e.SetID("id-" + k.name)
		e.SetSource("//peer/go")
		e.SetType("peer.sent")
		e.SetExtension("comexample", "x y")
		if err := e.SetData(k.contentType, k.data); err != nil {
			return err
		}
		if k.name == "text" && !bytes.Equal(e.Data(), []byte(k.data.(string))) {
			return fmt.Errorf("the SDK made %q of a text", e.Data())
		}
		structured, err := nats.NewSenderFromConn(nc, "sent.structured."+k.name)
		if err != nil {
			return err
		}
		if err := structured.Send(ctx, binding.ToMessage(&e)); err != nil {
			return err
		}
		binary, err := nats_jetstream.NewSenderFromConn(nc, "peers", "sent.binary."+k.name, nil)
		if err != nil {
			return err
		}
		if err := binary.Send(binding.WithForceBinary(ctx), binding.ToMessage(&e)); err != nil {
			return err
		}
	}
	return nc.Flush()
}
