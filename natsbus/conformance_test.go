package natsbus_test

import (
	"testing"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/adapter/adaptertest"
	"github.com/tidings-go/tidings/internal/testkit"
)

func TestConformance(t *testing.T) {
	b := testkit.Server(t)
	adaptertest.Run(t, adaptertest.Harness{
		Open: func(t *testing.T, cfg adapter.Config) adapter.Adapter {
			t.Helper()
			cfg.Prefix = "test"
			// Each rule has a stream, and a server reserves what they may hold.
			return open(t, b.URL()+"?max-bytes=16MiB", cfg)
		},
		Restart: b.Restart,
	})
}
