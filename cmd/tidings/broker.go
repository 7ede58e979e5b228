package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/natsbus"
)

// brokerFlags say where the broker is, as an application is told.
type brokerFlags struct {
	URL     string        `env:"TIDINGS_URL" help:"The broker, as applications are given it."`
	Prefix  string        `env:"TIDINGS_PREFIX" help:"What keeps environments apart on one broker."`
	Timeout time.Duration `default:"10s" help:"How long all may take."`
}

var errNoBroker = hinted{errors.New("no broker is named"), "set TIDINGS_URL or --url; tidings hub prints it when it starts"}

// open connects; done must be called in the end.
func (f brokerFlags) open(ctx context.Context) (_ context.Context, a *natsbus.Admin, done func(), err error) {
	if f.URL == "" {
		return ctx, nil, nil, errNoBroker
	}
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	url, stop, err := reach(ctx, f.URL, false)
	if err != nil {
		cancel()
		return ctx, nil, nil, err
	}
	a, err = natsbus.OpenAdmin(ctx, url, adapter.Config{Prefix: f.Prefix, Logger: quietLog()})
	if err != nil {
		cancel()
		return ctx, nil, nil, errors.Join(err, stop())
	}
	return ctx, a, func() {
		cancel()
		_ = a.Close() // nothing was published
		if err := stop(); err != nil {
			quietLog().Warn("hub", "err", err)
		}
	}, nil
}

// quietLog says on standard error what somebody has to know.
func quietLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
