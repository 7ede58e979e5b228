//go:build unix

package worker_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/worker"
)

// What Kubernetes asks is answered through a worker's whole life.
func TestProbes(t *testing.T) {
	bus, err := tidings.New(tidings.Options{App: "probed"})
	if err != nil {
		t.Fatal(err)
	}
	var probes worker.Probes
	asked := func(h http.Handler, code int, says string) {
		t.Helper()
		testkit.Until(t, 20*time.Second, func() bool {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			return w.Code == code && strings.Contains(w.Body.String(), says)
		})
	}
	asked(probes.Ready(), 503, "not running")
	asked(probes.Alive(), 503, "not running")
	asked(probes.Health(), 503, "not running")

	set, handled, sick := make(chan struct{}), make(chan struct{}), atomic.Bool{}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	loop.Go(func(context.Context) {
		ran <- worker.Run(ctx, worker.Options{Bus: bus, Probes: &probes,
			Setup: func(ctx context.Context) error {
				<-set
				_, err := bus.Subscribe(ctx, "x", func(context.Context, tidings.Event) error { <-handled; return nil }, nil)
				return errors.Join(err, bus.Publish(ctx, "x", nil))
			},
			Alive: func(context.Context) error {
				if sick.Load() {
					return errors.New("the loop stands still")
				}
				return nil
			}})
	})
	asked(probes.Ready(), 503, "setting up")
	asked(probes.Alive(), 200, "ok")
	close(set)
	asked(probes.Ready(), 200, "ok")
	asked(probes.Health(), 200, `"OK":true`)
	sick.Store(true)
	asked(probes.Alive(), 503, "the loop stands still")
	sick.Store(false)
	stop()
	asked(probes.Ready(), 503, "draining")
	asked(probes.Alive(), 200, "ok")
	close(handled)
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
