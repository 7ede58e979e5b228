package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/tidings-go/tidings"
)

// silenced adds to the filter of a log method: nothing is called, and nothing is
// built for it, while nobody would read what it logs.
func (o *Options) silenced(method string, filter func(string) bool) func(string) bool {
	return func(topic string) bool {
		level := slog.LevelInfo
		if o.Level != nil {
			level = o.Level(method)
		}
		return o.Logger.Enabled(context.Background(), level) && (filter == nil || filter(topic))
	}
}

// logging keeps the failures of a log method from everybody but the log.
func (o *Options) logging(h tidings.Handler) tidings.Handler {
	return func(ctx context.Context, e tidings.Event) error {
		if err := protect(ctx, e, h); err != nil {
			o.Logger.LogAttrs(ctx, slog.LevelError, fmt.Sprintf("could not log %q event", e.Topic()), attrs(err)...)
		}
		return nil
	}
}

func attrs(err error) []slog.Attr {
	var p *tidings.PanicError
	if !errors.As(err, &p) {
		return []slog.Attr{slog.String("class", fmt.Sprintf("%T", err)), slog.String("message", err.Error())}
	}
	return []slog.Attr{slog.String("class", fmt.Sprintf("%T", p.Value)), slog.String("message", p.Error()),
		slog.String("stack", string(p.Stack))}
}

func protect(ctx context.Context, e tidings.Event, h tidings.Handler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &tidings.PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return h(ctx, e)
}
