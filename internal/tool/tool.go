// Package tool opens a transport for those who look at what it stores, and where no
// bus is: dead letters and replays. Its errors name the tool and the way out.
package tool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// Open connects to a transport and returns it as what the tool needs of it as well.
// lacks is what is wrong with one that is no such thing or stores nothing.
func Open[T any](ctx context.Context, name, url, prefix string, log *slog.Logger, lacks string) (a adapter.Adapter, t T, err error) {
	if url == "" {
		return nil, t, fmt.Errorf("%s: open: no URL: give that of the applications, their TIDINGS_URL", name)
	}
	if prefix != "" {
		if err := topic.Check(prefix); err != nil {
			return nil, t, fmt.Errorf("%s: open: Options.Prefix: %w", name, err)
		}
	}
	a, err = adapter.Open(ctx, url, adapter.Config{App: name, Instance: "tool", Prefix: prefix, Logger: log})
	if err != nil {
		return nil, t, fmt.Errorf("%s: open: %w", name, err)
	}
	t, ok := a.(T)
	if !ok || !a.Caps().Durable {
		return nil, t, errors.Join(fmt.Errorf("%s: open: this transport %s", name, lacks), a.Close())
	}
	return a, t, nil
}
