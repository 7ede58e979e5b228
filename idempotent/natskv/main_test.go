package natskv_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/idempotent/natskv"
	"github.com/tidings-go/tidings/internal/testkit"
)

// patience turns a hang into a failure.
const patience = 30 * time.Second

// A process that is killed is this test again, told by the environment what to
// do.
const (
	envURL  = "TEST_NATSKV_URL"
	envStop = "TEST_NATSKV_STOP" // where to stand still
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envURL); url != "" {
		if err := handlerProcess(url); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var lease = &natskv.Options{Lease: time.Second}

func openStore(ctx context.Context, url string, o *natskv.Options) (*natskv.Store, *nats.Conn, error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	s, err := natskv.Open(ctx, js, o)
	return s, nc, err
}

func store(t *testing.T, url string, o *natskv.Options) *natskv.Store {
	t.Helper()
	v := natskv.Options{}
	if o != nil {
		v = *o
	}
	v.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, nc, err := openStore(t.Context(), url, &v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return s
}

func event(id string) tidings.Event {
	return tidings.NewEvent(tidings.EventFields{ID: id, Topic: "order.placed"})
}

// handlerProcess handles one event and says each step on its standard output.
func handlerProcess(url string) error {
	say := func(what string) {
		fmt.Println(what)
		if what == os.Getenv(envStop) {
			select {}
		}
	}
	s, _, err := openStore(context.Background(), url, lease)
	if err != nil {
		return err
	}
	h := s.Handler("mail", func(context.Context, tidings.Event) error { say("effect"); return nil })
	if err := h(context.Background(), event("1")); err != nil {
		return err
	}
	say("handled")
	return nil
}

// start runs a handlerProcess.
func start(t *testing.T, url, stop string) *testkit.Process {
	t.Helper()
	return testkit.Spawn(t, envURL+"="+url, envStop+"="+stop)
}
