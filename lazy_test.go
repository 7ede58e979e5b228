package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/tidings-go/tidings"
)

// What is dear is built once, and only for somebody; its context goes along.
func TestPublishLazy(t *testing.T) {
	pass := []func(tidings.PublishFunc) tidings.PublishFunc{func(next tidings.PublishFunc) tidings.PublishFunc { return next }}
	for name, c := range map[string]struct {
		bus    tidings.Options
		filter bool
		asked  int // for one event
	}{
		"short way":          {},
		"filter":             {filter: true, asked: 1},
		"strict":             {bus: tidings.Options{Strict: true}, filter: true, asked: 1},
		"encoded":            {bus: tidings.Options{AlwaysEncode: true}, filter: true, asked: 1},
		"publish middleware": {bus: tidings.Options{PublishMiddleware: pass}, filter: true, asked: 2},
	} {
		b, all := newBus(t, c.bus), told{}
		asked, built := 0, 0
		o := &tidings.SubscribeOptions{Inline: true}
		if c.filter {
			o.Filter = func(topic string) bool { asked++; return topic == "a" }
		}
		subscribe(t, b, "*", func(ctx context.Context, e tidings.Event) error {
			all.note(e.Topic(), fmt.Sprint(e.Payload(), tidings.Tags(ctx)["k"]))
			return nil
		}, o)
		publish := func(topic string) error {
			return b.PublishLazy(ctx, topic, func(ctx context.Context) (context.Context, any) {
				built++
				return tidings.WithTags(ctx, map[string]any{"k": "v"}), "built"
			})
		}
		if err := publish("a"); err != nil || built != 1 || asked != c.asked {
			t.Errorf("%s: %v, built %d times, filter asked %d times, want %d", name, err, built, asked, c.asked)
		}
		all.want(t, "a builtv")
		if err := publish("b.unheard"); err != nil || built != 1 {
			t.Errorf("%s: nobody listens: %v, built %d times", name, err, built)
		}
		if err := publish("b"); err != nil || (built == 1) != c.filter {
			t.Errorf("%s: the filter does not want it: %v, built %d times", name, err, built)
		}
		built = 0
		if err := publish("bad topic"); !errors.Is(err, tidings.ErrTopic) {
			t.Errorf("%s: a bad topic: %v", name, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := publish("a"); !errors.Is(err, tidings.ErrClosed) || built != 0 {
			t.Errorf("%s: closed: %v, built %d times", name, err, built)
		}
	}
}
