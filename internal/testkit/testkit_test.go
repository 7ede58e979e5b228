package testkit_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRestartKeepsPortAndStore(t *testing.T) {
	b := testkit.Server(t)
	url := b.URL()
	publish(t, url, 1)
	b.Restart()
	if b.URL() != url {
		t.Errorf("URL after a restart is %s, was %s", b.URL(), url)
	}
	publish(t, url, 2)

	b.Shutdown()
	b.Shutdown() // nothing
	if nc, err := nats.Connect(url); err == nil {
		nc.Close()
		t.Error("a broker that was shut down answers")
	}
	b.Start()
	b.Start() // nothing
	publish(t, url, 3)
}

// publish stores one message and checks which one of the stream it is.
func publish(t *testing.T, url string, want uint64) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	ack, err := js.Publish(t.Context(), "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	if ack.Sequence != want {
		t.Errorf("message is number %d, want %d", ack.Sequence, want)
	}
}

func TestOptionsCanBeChanged(t *testing.T) {
	b := testkit.Server(t, func(o *server.Options) { o.SyncAlways = true })
	if !b.Running().JetStreamConfig().SyncAlways {
		t.Error("SyncAlways was asked for and is off")
	}
}

func TestUntil(t *testing.T) {
	var n atomic.Int32
	testkit.Until(t, time.Minute, func() bool { return n.Add(1) == 3 })
	if n.Load() != 3 {
		t.Errorf("asked %d times, want 3", n.Load())
	}
}

// A reporter notes that a test would have failed.
type reporter struct {
	testing.TB
	failed bool
}

func (*reporter) Helper()                 {}
func (r *reporter) Fatalf(string, ...any) { r.failed = true }

func TestUntilFails(t *testing.T) {
	r := &reporter{TB: t}
	testkit.Until(r, time.Millisecond, func() bool { return false })
	if !r.failed {
		t.Error("Until does not fail when its time is over")
	}
}
