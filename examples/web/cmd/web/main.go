// Command web runs the example of docs/instrumenting.md:
//
//	go run ./examples/web/cmd/web
//	curl http://127.0.0.1:8090/items/1
//	curl http://127.0.0.1:8090/metrics
package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/web"
)

func main() {
	if err := run(); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

func run() error {
	ctx, bus := context.Background(), tidings.Default()
	metrics, err := web.Measure(ctx, bus)
	if err := errors.Join(err, web.Log(ctx, bus, slog.Default())); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", web.Handler(bus, web.Item{ID: 1, Name: "a lamp"}, web.Item{ID: 2, Name: "a chair"}))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = metrics.WriteTo(w) })
	srv := &http.Server{Addr: "127.0.0.1:8090", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return serve(ctx, srv, bus)
}

// serve ends in order: no new requests, those under way, then the events they have
// published. The signal's own context has ended by then, so it cannot be the limit.
func serve(ctx context.Context, srv *http.Server, bus *tidings.Bus) error {
	asked, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := make(chan error, 1)
	forget := context.AfterFunc(asked, func() {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		ended <- errors.Join(srv.Shutdown(limit), bus.Drain(limit))
	})
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		forget()
		return err
	}
	return <-ended
}
