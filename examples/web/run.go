package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/worker"
	"github.com/tidings-go/tidings/worker/httpworker"
)

// Run serves until it is told to stop: on the sockets of a supervisor, or on addr.
func Run(ctx context.Context, bus *tidings.Bus, addr string) error {
	metrics, err := Measure(ctx, bus)
	if err := errors.Join(err, Log(ctx, bus, slog.Default())); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", Handler(bus, Item{ID: 1, Name: "a lamp"}, Item{ID: 2, Name: "a chair"}))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = metrics.WriteTo(w) })
	srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return httpworker.Run(ctx, srv, httpworker.Options{Options: worker.Options{Bus: bus}})
}
