package natsbus_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

const secret = "s3cretT0ken"

// logged keeps all that is logged and reported, to be searched for secrets.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) config() adapter.Config {
	return adapter.Config{App: "app", Instance: "one", Logger: slog.New(slog.NewTextHandler(l, nil)),
		OnError: func(err error) { _, _ = l.Write([]byte(err.Error())) }}
}

func (l *logged) clean(t *testing.T, errs ...error) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.Contains(l.b.String(), secret) || strings.Contains(errors.Join(errs...).Error(), secret) {
		t.Error("the secret was told")
	}
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestToken(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) { o.Authorization = secret }).URL()
	dir := t.TempDir()
	file, wrong := filepath.Join(dir, "token"), filepath.Join(dir, "wrong")
	if err := errors.Join(os.WriteFile(file, []byte(secret+"\n"), 0o600), os.WriteFile(wrong, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var log logged
	a, err := natsbus.Open(soon(t), url+"?token-file="+file, log.config())
	if err != nil {
		t.Fatal(err)
	}
	if s := a.Stats(); !s.Connected || strings.Contains(s.URL, secret) {
		t.Errorf("Stats: %+v", s)
	}
	_ = a.Close()
	_, err1 := natsbus.Open(soon(t), url+"?token-file="+wrong, log.config())
	_, err2 := natsbus.Open(soon(t), url, log.config())
	_, err3 := natsbus.Open(soon(t), url+"?token-file="+filepath.Join(dir, "none"), log.config())
	if err1 == nil || err2 == nil || err3 == nil || !strings.Contains(err3.Error(), "none") {
		t.Errorf("wrong, no and missing token: %v; %v; %v", err1, err2, err3)
	}
	log.clean(t, err1, err2, err3)
}

func TestNobodyAnswers(t *testing.T) {
	var log logged
	_, err := natsbus.Open(soon(t), "nats://"+secret+"@127.0.0.1:1", log.config())
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("Open: %v", err)
	}
	log.clean(t, err)
}

func TestMissingPermissionIsAnErrorOfSubscribe(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Deny: []string{"secret.>"}}}}}
	}).URL()
	var log logged
	a, err := natsbus.Open(soon(t), strings.Replace(url, "nats://", "nats://u:p@", 1), log.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	_, err = a.Subscribe(soon(t), adapter.Spec{Pattern: "secret.x", Group: "g", Deliver: func(adapter.Delivery) {}})
	if err == nil || !strings.Contains(err.Error(), "secret.x") {
		t.Errorf("Subscribe: %v", err)
	}
	if n := natsbus.Subscriptions(a); n != 1 { // for answers
		t.Errorf("%d subscriptions are left", n)
	}
}

func TestTooLargeNamesSizeAndLimit(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) { o.MaxPayload = 2000 }).URL()
	var log logged
	a, err := natsbus.Open(soon(t), url, log.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	err = a.Publish(soon(t), &adapter.Message{ID: "1", Topic: "big.one", Data: make([]byte, 3000)}, adapter.Live)
	if err == nil || !strings.Contains(err.Error(), "big.one") || !strings.Contains(err.Error(), "2000") {
		t.Errorf("Publish: %v", err)
	}
}

func TestAFullStreamIsAnErrorOfPublish(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 20 << 20 })
	var log logged
	cfg := log.config()
	cfg.Durable = []string{"order.>"}
	a, err := natsbus.Open(soon(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	var full error
	for i := 0; full == nil && i < 64; i++ {
		full = a.Publish(soon(t), &adapter.Message{ID: string(rune('A' + i)), Topic: "order.placed", Data: make([]byte, 512<<10)}, adapter.Durable)
	}
	if !errors.Is(full, adapter.ErrFull) {
		t.Errorf("a full stream: %v", full)
	}
}

func (l *logged) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), part)
}
