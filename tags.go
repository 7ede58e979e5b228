package tidings

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

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
	tags, parent := Tags(ctx), Parent(ctx, e)
	if e.r.tags != nil {
		tags = e.r.tags
	}
	if len(tags) == 0 && parent == "" {
		return nil, nil
	}
	h := map[string]string{}
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

// withHeader gives ctx back what the publisher's had.
func withHeader(ctx context.Context, m *adapter.Message) context.Context {
	var tags map[string]any
	if s := m.Header[headerTags]; s != "" && json.Unmarshal([]byte(s), &tags) == nil {
		ctx = context.WithValue(ctx, tagsKey{}, tags)
	}
	if id := m.Header[headerParent]; id != "" {
		ctx = context.WithValue(ctx, blockKey{}, &block{event: Event{r: &record{id: id}}})
	}
	return ctx
}
