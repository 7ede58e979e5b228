package interop_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
	"github.com/tidings-go/tidings/protocodec"
)

// Both are set by CI, which has them from elsewhere; a peer that is not given is not
// asked.
var (
	sdkPeer  = flag.String("sdkpeer", "", "the program of ./sdkpeer, to exchange events with the CloudEvents Go SDK")
	nodePeer = flag.String("node", "", "folder with peer.mjs and what its package.json asks for, to exchange events with JavaScript")
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

type payload struct {
	kind, contentType string
	value             any
}

// payloads by their kind, as the peers have them too.
var payloads = []payload{
	{"json", "application/json", map[string]any{"n": 1., "s": "grüße"}},
	{"text", "text/plain; charset=utf-8", "grüße, \"world\"\n"},
	{"bytes", "application/octet-stream", []byte{0, 1, 254, 255}},
	{"proto", "application/protobuf", wrapperspb.String("grüße")},
}

// A line is what a peer says of an event that it has read.
type line struct {
	Subject, Mode, Error, Traceparent string

	ID, Source, Type, DataContentType string

	Time       time.Time
	Extensions map[string]any
	Data       []byte
}

// A peer is a program that knows nothing of Tidings.
type peer struct {
	lines chan line
	modes []string // in which it sends
	raw   bool     // it does not decode what is percent-encoded, as the Go SDK
}

func start(t *testing.T, p peer, cmd *exec.Cmd) peer {
	t.Helper()
	p.lines = make(chan line, 100)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		d := json.NewDecoder(bufio.NewReader(out))
		for {
			var l line
			if err := d.Decode(&l); err != nil {
				read <- err
				return
			}
			p.lines <- l
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		if err := <-read; !errors.Is(err, io.EOF) {
			t.Errorf("what the peer says: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the peer: %v", err)
		}
	})
	return p
}

func (p peer) next(t *testing.T) line {
	t.Helper()
	select {
	case l := <-p.lines:
		return l
	case <-time.After(20 * time.Second):
		t.Fatal("the peer says nothing")
		return line{}
	}
}

func TestPeers(t *testing.T) {
	if *sdkPeer != "" {
		t.Run("Go SDK", func(t *testing.T) {
			exchange(t, peer{modes: []string{"structured", "binary"}, raw: true}, func(url string) *exec.Cmd { return exec.Command(*sdkPeer, url) })
		})
	}
	if *nodePeer != "" {
		t.Run("JavaScript", func(t *testing.T) {
			exchange(t, peer{modes: []string{"structured", "named", "binary"}}, func(url string) *exec.Cmd {
				return exec.Command("node", filepath.Join(*nodePeer, "peer.mjs"), url)
			})
		})
	}
}

func open(t *testing.T, url string, app string) *tidings.Bus {
	t.Helper()
	b, err := tidings.Open(t.Context(), url, tidings.Options{App: app, Instance: "1", Logger: slog.New(slog.DiscardHandler), Codec: protocodec.Over(tidings.JSON), Routes: []tidings.Route{
		{Pattern: "sent.binary.>", Class: tidings.Durable}, {Pattern: "read.durable.>", Class: tidings.Durable}, {Pattern: ">", Class: tidings.Live}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func exchange(t *testing.T, p peer, command func(url string) *exec.Cmd) {
	url := testkit.Server(t).URL()
	bus := open(t, url, "shop")
	got := make(chan tidings.Event, 100)
	take := func(_ context.Context, e tidings.Event) error { got <- e; return nil }
	for _, mode := range p.modes {
		if _, err := bus.Subscribe(t.Context(), "sent."+mode+".*", take, &tidings.SubscribeOptions{Durable: mode == "binary"}); err != nil {
			t.Fatal(err)
		}
	}
	p = start(t, p, command(url))
	if l := p.next(t); l.Subject != "ready" {
		t.Fatalf("the peer began with %+v", l)
	}
	t.Run("reads ours", func(t *testing.T) { p.reads(t, bus, open(t, url+"?wire=binary", "shop")) })
	t.Run("is read", func(t *testing.T) { p.isRead(t, got) })
}

// reads has the peer read each kind of payload in each form.
func (p peer) reads(t *testing.T, bus, binary *tidings.Bus) {
	ctx := t.Context()
	trace := tidings.WithHeaders(ctx, map[string]string{"traceparent": traceparent})
	for _, pay := range payloads {
		for _, f := range []struct {
			name, mode string
			bus        *tidings.Bus
			ctx        context.Context
			extensions map[string]any
		}{
			{"live", "structured", bus, ctx, nil},
			{"traced", "structured", bus, trace, map[string]any{"traceparent": traceparent}},
			{"binary", "binary", binary, ctx, nil},
			{"durable", "binary", bus, trace, map[string]any{"traceparent": traceparent}},
		} {
			topic := "read." + f.name + "." + pay.kind
			before := time.Now().Truncate(time.Millisecond)
			if err := f.bus.Publish(f.ctx, topic, pay.value); err != nil {
				t.Fatal(err)
			}
			l := p.next(t)
			if p.raw && l.Mode == "binary" {
				l.DataContentType, _ = url.PathUnescape(l.DataContentType)
			}
			if l.Error != "" || l.Subject != topic || l.Mode != f.mode || l.ID == "" || l.Source != "//shop/1" || l.Type != topic || l.DataContentType != pay.contentType {
				t.Errorf("%s: %+v", topic, l)
			}
			if l.Time.Before(before) || l.Time.After(time.Now()) {
				t.Errorf("%s: its time is %v", topic, l.Time)
			}
			if len(l.Extensions)+len(f.extensions) > 0 && !reflect.DeepEqual(l.Extensions, f.extensions) || l.Traceparent != tidings.Headers(f.ctx)["traceparent"] {
				t.Errorf("%s: extensions %v, traceparent %q", topic, l.Extensions, l.Traceparent)
			}
			sameBytes(t, topic, l.Data, pay.value)
		}
	}
	err := bus.Instrument(ctx, "read.block", nil, func(context.Context) error { return errors.New("no\n100 % ✗") })
	if l := p.next(t); err == nil || l.Error != "" || l.Extensions["tidingserror"] != "no\n100 % ✗" || l.Extensions["tidingsduration"] == "" {
		t.Errorf("a block: %v, %+v", err, l)
	}
}

func sameBytes(t *testing.T, what string, data []byte, value any) {
	t.Helper()
	switch want := value.(type) {
	case string:
		if string(data) != want {
			t.Errorf("%s: %q", what, data)
		}
	case []byte:
		if !slices.Equal(data, want) {
			t.Errorf("%s: %q", what, data)
		}
	case proto.Message:
		var v wrapperspb.StringValue
		if err := proto.Unmarshal(data, &v); err != nil || !proto.Equal(&v, want) {
			t.Errorf("%s: %q, %v", what, data, err)
		}
	default:
		var v any
		if err := json.Unmarshal(data, &v); err != nil || !reflect.DeepEqual(v, value) {
			t.Errorf("%s: %s", what, data)
		}
	}
}

// isRead looks at what the peer has sent.
func (p peer) isRead(t *testing.T, got <-chan tidings.Event) {
	left := map[string]bool{}
	for _, mode := range p.modes {
		for _, pay := range payloads {
			left["sent."+mode+"."+pay.kind] = true
		}
	}
	for len(left) > 0 {
		var e tidings.Event
		select {
		case e = <-got:
		case <-time.After(20 * time.Second):
			t.Fatalf("not there: %v", left)
		}
		if !left[e.Topic()] {
			t.Fatalf("%v came unasked, or twice", e)
		}
		delete(left, e.Topic())
		parts := strings.Split(e.Topic(), ".")
		if e.ID() != "id-"+parts[2] || !strings.HasPrefix(e.Source(), "//peer/") || e.Header("ce-type") != "peer.sent" || e.Header("ce-comexample") != "x y" {
			t.Errorf("%v from %q: type %q, extension %q", e, e.Source(), e.Header("ce-type"), e.Header("ce-comexample"))
		}
		if want := map[bool]string{true: traceparent}[parts[1] == "named"]; e.Header("traceparent") != want {
			t.Errorf("%v: traceparent %q", e, e.Header("traceparent"))
		}
		var err error
		var v any
		want := payloads[slices.IndexFunc(payloads, func(p payload) bool { return p.kind == parts[2] })].value
		if m, ok := want.(proto.Message); ok {
			got := new(wrapperspb.StringValue)
			if err = e.Decode(got); err == nil && proto.Equal(got, m) {
				continue
			}
		} else if err = e.Decode(&v); err == nil && reflect.DeepEqual(v, want) {
			continue
		}
		t.Errorf("%v: decoded %v, %v; want %v", e, v, err, want)
	}
}
