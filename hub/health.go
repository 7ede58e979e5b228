package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// healthServer serves what machines ask a hub: whether it lives, whether it takes
// durable events, and figures.
type healthServer struct {
	url  string
	http *http.Server
	run  *loop.Loop
}

// startHealth listens before it returns.
func (h *Hub) startHealth() error {
	if h.cfg.Health == "" {
		return nil
	}
	l, err := net.Listen("tcp", h.cfg.health.String())
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; stop what listens there or set Options.Health", h.cfg.Health, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.HandleFunc("GET /metrics", h.metrics)
	s := &healthServer{url: "http://" + l.Addr().String(), http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}}
	s.run = loop.Go(func(context.Context) {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.cfg.Logger.Error("hub: health and metrics are no longer served", "err", err)
		}
	})
	h.health = s
	return nil
}

func (s *healthServer) stop() {
	if s == nil {
		return
	}
	_ = s.http.Close() // connections of who asks may break
	s.run.StopAndWait()
}

func (h *Hub) readyz(w http.ResponseWriter, _ *http.Request) {
	why := h.guard.reasons()
	if len(why) == 0 {
		why = h.serverReasons()
	}
	if len(why) == 0 {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintln(w, "not ready")
	for _, s := range why {
		fmt.Fprintln(w, "-", s)
	}
}

// serverReasons are what nats-server's own check says; in a cluster that is whether it
// has caught up with the others.
func (h *Hub) serverReasons() (why []string) {
	st := h.srv.Healthz(nil)
	if st.Error != "" {
		why = append(why, st.Error)
	}
	for _, e := range st.Errors {
		why = append(why, e.Error)
	}
	return why
}
