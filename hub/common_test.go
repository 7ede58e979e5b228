package hub_test

import (
	"log/slog"
	"testing"
	"time"
)

// patience is far above what a busy machine needs: it turns a hang into a failure.
const patience = 60 * time.Second

func quietly() *slog.Logger { return slog.New(slog.DiscardHandler) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
