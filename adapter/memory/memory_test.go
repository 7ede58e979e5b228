package memory_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/adapter/adaptertest"
	_ "github.com/tidings-go/tidings/adapter/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var runs atomic.Int32 // each has brokers of its own, also with -count

func TestConformance(t *testing.T) {
	run := runs.Add(1)
	adaptertest.Run(t, adaptertest.Harness{Open: func(t *testing.T, cfg adapter.Config) adapter.Adapter {
		t.Helper()
		cfg.Prefix = "test"
		a, err := adapter.Open(t.Context(), fmt.Sprintf("mem:%s-%d", t.Name(), run), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}})
}

func TestNamesAreNeeded(t *testing.T) {
	if _, err := adapter.Open(t.Context(), "mem:", adapter.Config{}); err == nil {
		t.Error("mem: without a name was opened")
	}
}
