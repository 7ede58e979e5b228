package tidings_test

import (
	"context"
	"maps"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

const (
	origin = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	hop    = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
)

// seen is what a handler was told.
type seen struct {
	event tidings.Event
	ctx   map[string]string // Headers of its context
}

func watching(got chan<- seen) tidings.Handler {
	return func(ctx context.Context, e tidings.Event) error {
		got <- seen{e, tidings.Headers(ctx)}
		return nil
	}
}

// W3C trace context reaches every handler, remote ones by headers of its own names
// and by the context, and goes on with what they publish. Other headers reach the
// handlers of the event alone.
func TestTraceContext(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, billing, mail := process(t, url, "shop", quiet()), process(t, url, "billing", quiet()), process(t, url, "mail", quiet())
		here, there, beyond := make(chan seen, 2), make(chan seen, 2), make(chan seen, 2)
		for topic, durable := range map[string]bool{"order.placed": true, "cart.seen": false} {
			subscribe(t, shop, topic, watching(here), nil)
			subscribe(t, billing, topic, func(ctx context.Context, e tidings.Event) error {
				there <- seen{e, tidings.Headers(ctx)}
				return billing.Publish(ctx, "invoice.sent", nil)
			}, &tidings.SubscribeOptions{Durable: durable})
		}
		subscribe(t, mail, "invoice.*", watching(beyond), nil)
		trace := map[string]string{"traceparent": origin, "tracestate": "vendor=a b", "baggage": "user=ä"}
		sent := maps.Clone(trace)
		sent["X-Order"] = "nr 7"
		for _, topic := range []string{"order.placed", "cart.seen"} {
			if err := shop.Publish(tidings.WithHeaders(deadline(t), sent), topic, 1); err != nil {
				t.Fatal(err)
			}
			if s := soonest(t, here); s.ctx["traceparent"] != origin || s.ctx["x-order"] != "nr 7" {
				t.Errorf("%s: a handler of the publisher's process has %v", topic, s.ctx)
			}
			s := soonest(t, there)
			for k, v := range trace {
				if s.event.Header(k) != v {
					t.Errorf("%s: header %s is %q in another process, want %q", topic, k, s.event.Header(k), v)
				}
			}
			if s.event.Header("x-order") != "nr 7" || s.event.Header("ce-traceparent") != origin || s.event.Header("ce-tracestate") != "vendor=a b" {
				t.Errorf("%s: other headers: %q, %q", topic, s.event.Header("x-order"), s.event.Header("ce-traceparent"))
			}
			if !maps.Equal(s.ctx, trace) {
				t.Errorf("%s: its handler's context has %v, want %v", topic, s.ctx, trace)
			}
			if s := soonest(t, beyond); s.event.Header("traceparent") != origin || s.event.Header("baggage") != "user=ä" || s.event.Header("x-order") != "" {
				t.Errorf("%s: what the handler published has %q, %q", topic, s.event.Header("traceparent"), s.event.Header("x-order"))
			}
		}
	})
}

// An event that goes on keeps where it began; the hop is that of who sends it on.
func TestTraceContextOfAForwardedEvent(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		shop, proxy, mail := process(t, url, "shop", quiet()), process(t, url, "proxy", quiet()), process(t, url, "mail", quiet())
		got := make(chan seen, 2)
		turns := make(chan context.Context, 1)
		subscribe(t, proxy, "cart.seen", func(_ context.Context, e tidings.Event) error {
			select {
			case next := <-turns:
				return proxy.PublishEvent(next, e)
			default:
				return nil // that was its own
			}
		}, nil)
		subscribe(t, mail, "cart.seen", watching(got), nil)
		for _, c := range []struct{ with, want string }{{"", origin}, {hop, hop}} {
			next := deadline(t)
			if c.with != "" {
				next = tidings.WithHeaders(next, map[string]string{"traceparent": c.with})
			}
			turns <- next
			first := tidings.WithHeaders(deadline(t), map[string]string{"traceparent": origin, "tracestate": "v=1", "x": "y"})
			if err := shop.Publish(first, "cart.seen", 1); err != nil {
				t.Fatal(err)
			}
			hops := map[string]bool{}
			for range 2 { // from the shop, and from the proxy
				s := soonest(t, got)
				hops[s.event.Header("traceparent")] = true
				if s.event.Header("ce-traceparent") != origin || s.event.Header("x") != "y" {
					t.Errorf("began at %q, x is %q", s.event.Header("ce-traceparent"), s.event.Header("x"))
				}
				if s.event.Header("traceparent") == hop && s.event.Header("tracestate") != "" {
					t.Errorf("the state of another hop stayed: %q", s.event.Header("tracestate"))
				}
			}
			if !hops[origin] || !hops[c.want] {
				t.Errorf("the hops are %v, want %s and %s", hops, origin, c.want)
			}
		}
	})
}

// What others send in plain NATS headers is found, whatever the form of the rest.
func TestTraceContextFromOthers(t *testing.T) {
	url := testkit.Server(t).URL()
	b := process(t, url, "billing", quiet())
	got := make(chan seen, 1)
	subscribe(t, b, "cart.*", watching(got), nil)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	const event = `{"specversion":"1.0","id":"7","source":"s","type":"cart.seen","traceparent":"` + hop + `","data":1}`
	for name, m := range map[string]*nats.Msg{
		"plain":               {Data: []byte("x"), Header: nats.Header{"Traceparent": {origin}}},
		"structured":          {Data: []byte(event), Header: nats.Header{"Content-Type": {"application/cloudevents+json"}, "traceparent": {origin}}},
		"structured, unnamed": {Data: []byte(event), Header: nats.Header{"traceparent": {origin}}},
		"binary":              {Data: []byte("1"), Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"7"}, "ce-traceparent": {hop}, "traceparent": {origin}}},
	} {
		m.Subject = "cart.seen"
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		s := soonest(t, got)
		if s.event.Header("traceparent") != origin || s.ctx["traceparent"] != origin || (name != "plain" && s.event.Header("ce-traceparent") != hop) {
			t.Errorf("%s: traceparent %q, in the context %q, began at %q", name, s.event.Header("traceparent"), s.ctx["traceparent"], s.event.Header("ce-traceparent"))
		}
	}
}
