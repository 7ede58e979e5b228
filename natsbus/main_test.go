package natsbus_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/natsbus"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(memberEnv); url != "" {
		member(url)
		return
	}
	if url := os.Getenv(replayEnv); url != "" {
		replayingMember(url)
		return
	}
	if url := os.Getenv(spoolerEnv); url != "" {
		spooler(url)
		return
	}
	if conf := os.Getenv(nodeEnv); conf != "" {
		runNode(conf)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is far above what anything here needs.
const patience = time.Minute

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// open connects one more "process"; it is closed when the test ends.
func open(t *testing.T, url string, cfg adapter.Config) adapter.Adapter {
	t.Helper()
	if cfg.App == "" {
		cfg.App = "shop"
	}
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	a, err := natsbus.Open(within(t), url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func subscribe(t *testing.T, a adapter.Adapter, s adapter.Spec) adapter.Subscription {
	t.Helper()
	sub, err := a.Subscribe(within(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func publish(t *testing.T, a adapter.Adapter, c adapter.Class, id, topic string) {
	t.Helper()
	m := &adapter.Message{ID: id, Topic: topic, Source: "//shop/1", Time: time.Now(), Data: []byte(id)}
	if err := a.Publish(within(t), m, c); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, ch <-chan adapter.Delivery) adapter.Delivery {
	t.Helper()
	select {
	case d := <-ch:
		return d
	case <-time.After(patience):
		t.Fatal("nothing arrived")
		return adapter.Delivery{}
	}
}
