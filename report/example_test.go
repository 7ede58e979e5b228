package report_test

import (
	"context"
	"fmt"
	"path"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/report"
)

type SignUp struct {
	Name     string
	Password string
}

func Example() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = report.Subscribe(ctx, bus, ">", func(_ context.Context, e report.Event) error {
		fmt.Println(e.Name, e.Payload, e.Tags, e.Context, path.Base(e.Location.File))
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	events := report.New(bus, report.Options{})

	ctx = report.WithContext(ctx, map[string]any{"request_id": "r1"})
	_ = events.Notify(ctx, "user.created", map[string]any{"id": 7, "api_token": "s3cret"})
	_ = events.NotifyObject(report.Tagged(ctx, "web", map[string]any{"shop": 3}), SignUp{"Ada", "analytical"})
	_ = events.Debug(report.ClearContext(ctx), "cache.state", func() any { return map[string]any{"entries": 12} })
	_ = bus.Drain(ctx)
	// Output:
	// user.created map[api_token:[FILTERED] id:7] map[] map[request_id:r1] example_test.go
	// report_test.sign_up {Ada [FILTERED]} map[shop:3 web:true] map[request_id:r1] example_test.go
	// cache.state map[entries:12] map[] map[] example_test.go
}
