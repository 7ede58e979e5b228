package tidings

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/tidings-go/tidings/adapter"
)

type (
	tagsKey  struct{}
	blockKey struct{}
)

// WithTags returns a context whose events carry these tags besides those that
// ctx has already; on equal keys the new ones win. Tags travel with the event, as
// JSON when it leaves the process, and with the context: what a handler publishes
// with its own ctx carries them on. The map is copied.
func WithTags(ctx context.Context, tags map[string]any) context.Context {
	all := make(map[string]any, len(tags)+4)
	maps.Copy(all, Tags(ctx))
	maps.Copy(all, tags)
	return context.WithValue(ctx, tagsKey{}, all)
}

// Tags returns the tags of the context: inside a handler, those that its event
// was published with. It is nil without any, and not to be changed.
func Tags(ctx context.Context) map[string]any {
	tags, _ := ctx.Value(tagsKey{}).(map[string]any)
	return tags
}

type headersKey struct{}

// WithHeaders returns a context whose events carry these headers besides those that
// ctx has already; on equal keys the new ones win. Keys are in lower case, and made
// so. They are for what others on the way read, and cost more than tags: W3C trace
// context (traceparent, tracestate, baggage) travels under its own names, which
// brokers' and other languages' tools know, all else under names of its own. A
// handler in another process finds them by [Event.Header]; of those of W3C trace
// context its ctx has them too, so that what it publishes carries on the trace. The
// map is copied.
func WithHeaders(ctx context.Context, headers map[string]string) context.Context {
	all := make(map[string]string, len(headers)+3)
	maps.Copy(all, Headers(ctx))
	for k, v := range headers {
		all[strings.ToLower(k)] = v
	}
	return context.WithValue(ctx, headersKey{}, all)
}

// Headers returns the headers of the context: those of [WithHeaders], or inside a
// handler the W3C trace context of an event from another process. It is nil without
// any, and not to be changed.
func Headers(ctx context.Context) map[string]string {
	h, _ := ctx.Value(headersKey{}).(map[string]string)
	return h
}

// traceHeaders are W3C trace context.
var traceHeaders = [...]string{"traceparent", "tracestate", "baggage"}

// block is an instrumented block that is running.
type block struct {
	event Event
	outer string // id of the event around it
}

// Parent returns the id of the event in whose instrumented block e was published
// or instrumented, also in another process; empty if there is none. ctx is what
// e's handler was given.
//
// A block is known to what is published inside it, with the context that it was
// given, when a subscription to its topic has [SubscribeOptions.Start]: that
// context costs an allocation, which nobody else is to pay.
func Parent(ctx context.Context, e Event) string {
	b, _ := ctx.Value(blockKey{}).(*block)
	if b == nil {
		return ""
	}
	if id := b.event.ID(); id != e.ID() {
		return id
	}
	return b.outer // the block is e's own
}

// Header names of what travels with an event besides its payload.
const (
	headerTags   = "tidings-tags"
	headerParent = "tidings-parent"
)

// header is what ctx adds to the event on the wire.
func (e Event) header(ctx context.Context) (map[string]string, error) {
	tags, parent, others := Tags(ctx), Parent(ctx, e), Headers(ctx)
	if e.r.tags != nil {
		tags = e.r.tags
	}
	if len(tags) == 0 && parent == "" && len(others) == 0 {
		return nil, nil
	}
	h := make(map[string]string, len(others)+4)
	maps.Copy(h, others)
	// CloudEvents' extension for tracing: where the event began, whatever hops come.
	for _, k := range traceHeaders[:2] {
		if v := h[k]; v != "" {
			h["ce-"+k] = v
		}
	}
	if len(tags) > 0 {
		data, err := json.Marshal(tags)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the tags: %w", err)
		}
		h[headerTags] = string(data)
	}
	if parent != "" {
		h[headerParent] = parent
	}
	return h, nil
}

// forwarded are the headers of an event that goes on: its own, but for the hop,
// which is that of ctx if that has one.
func forwarded(ctx context.Context, own map[string]string) map[string]string {
	hop := Headers(ctx)
	if hop["traceparent"] == "" {
		return own
	}
	h := maps.Clone(own)
	if h == nil {
		h = map[string]string{}
	}
	for _, k := range traceHeaders {
		delete(h, k)
		if v := hop[k]; v != "" {
			h[k] = v
		}
	}
	return h
}

// withHeader gives ctx back what the publisher's had.
func withHeader(ctx context.Context, m *adapter.Message) context.Context {
	if len(m.Header) == 0 {
		return ctx // most events, and nothing allocated for them
	}
	var tags map[string]any
	if s := m.Header[headerTags]; s != "" && json.Unmarshal([]byte(s), &tags) == nil {
		ctx = context.WithValue(ctx, tagsKey{}, tags)
	}
	if id := m.Header[headerParent]; id != "" {
		ctx = context.WithValue(ctx, blockKey{}, &block{event: Event{r: &record{id: id}}})
	}
	var trace map[string]string
	for _, k := range traceHeaders {
		if v := m.Header[k]; v != "" {
			if trace == nil {
				trace = make(map[string]string, len(traceHeaders))
			}
			trace[k] = v
		}
	}
	if trace != nil {
		ctx = context.WithValue(ctx, headersKey{}, trace)
	}
	return ctx
}
