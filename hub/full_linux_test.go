package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// envFull is the directory on which the test process mounts a small disk.
const envFull = "TEST_HUB_FULL"

func init() { processes[envFull] = fullProcess }

// The disk is real, 24 MiB large and in namespaces of its own, which the test needs.
func TestFullDisk(t *testing.T) {
	testkit.InNamespaces(t, envFull)
}

// fullProcess fills the disk below a hub, makes room again, and counts.
func fullProcess(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=24m"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	users := dir + "/users.conf"
	if err := os.WriteFile(users, []byte("shop may publish order.>; may subscribe order.>"), 0o600); err != nil {
		return err
	}
	var log logBuffer
	h, err := Start(ctx, Options{Dir: dir + "/hub", Users: users, Addr: "127.0.0.1:0", Health: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(&log, os.Stderr), nil))})
	if err != nil {
		return err
	}
	f := &fullDisk{ctx: ctx, h: h, log: &log, accepted: map[string]bool{}, ballast: dir + "/ballast"}
	if err := f.run(); err != nil {
		return err
	}
	if _, err := h.Stop(ctx); err != nil {
		return err
	}
	fmt.Println(testkit.Alone)
	return nil
}

type fullDisk struct {
	ctx      context.Context
	h        *Hub
	log      *logBuffer
	ballast  string
	bus      *tidings.Bus
	n        int
	accepted map[string]bool
}

func (f *fullDisk) run() (err error) {
	if err := os.WriteFile(f.ballast, make([]byte, 12<<20), 0o600); err != nil {
		return err
	}
	f.bus, err = tidings.Open(f.ctx, f.h.Users()[0].URL, tidings.Options{App: "shop", Logger: slog.New(slog.DiscardHandler), Routes: durable("order.>")})
	if err != nil {
		return err
	}
	defer func() { _ = f.bus.Close() }()

	// Until the disk is full: nats-server does not even answer then, but the hub says why.
	for f.h.log.fault() == "" {
		_ = f.publish() // it counts what is accepted
		if f.ctx.Err() != nil {
			return fmt.Errorf("no fault was noticed after %d events:\n%s", len(f.accepted), f.log)
		}
	}
	if f.publish() == nil {
		return errors.New("an event was accepted when the disk was full")
	}
	if len(f.accepted) < 20 {
		return fmt.Errorf("only %d events were accepted", len(f.accepted))
	}
	if err := f.until(http.StatusServiceUnavailable, "not ready"); err != nil {
		return err
	}
	for !strings.Contains(f.log.String(), "make room on the disk, or let") { // it looks once a second
		if err := f.pause(); err != nil {
			return fmt.Errorf("the log says no way out: %w:\n%s", err, f.log)
		}
	}

	// With space again it goes on by itself, and nothing that was accepted is lost.
	if err := os.Remove(f.ballast); err != nil {
		return err
	}
	if err := f.until(http.StatusOK, "ready"); err != nil {
		return err
	}
	for i := range 20 {
		if err := f.publish(); err != nil {
			return fmt.Errorf("publish %d with space again: %w", i, err)
		}
	}
	return f.count()
}

func (f *fullDisk) publish() error {
	f.n++
	id := fmt.Sprint(f.n)
	ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
	defer cancel()
	err := f.bus.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "order.placed", ID: id, Payload: strings.Repeat("x", 100<<10)}))
	if err == nil {
		f.accepted[id] = true
	}
	return err
}

// until waits for what /readyz says.
func (f *fullDisk) until(status int, text string) error {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		res, err := c.Get(f.h.HealthURL() + "/readyz")
		if err != nil {
			return err
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return err
		}
		if res.StatusCode == status && strings.Contains(string(b), text) {
			return nil
		}
		if err := f.pause(); err != nil {
			return fmt.Errorf("readyz is never %d; it says %d %s: %w; the log:\n%s", status, res.StatusCode, b, err, f.log)
		}
	}
}

func (f *fullDisk) pause() error {
	select {
	case <-time.After(20 * time.Millisecond):
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

// count has a group get all that is stored.
func (f *fullDisk) count() error {
	got := make(chan string, 10_000)
	_, err := f.bus.Subscribe(f.ctx, "order.>", func(_ context.Context, e tidings.Event) error { got <- e.ID(); return nil }, &tidings.SubscribeOptions{Durable: true})
	if err != nil {
		return err
	}
	for len(f.accepted) > 0 {
		select {
		case id := <-got:
			delete(f.accepted, id)
		case <-f.ctx.Done():
			return errors.New("events that were accepted are not there: " + fmt.Sprint(len(f.accepted)))
		}
	}
	return nil
}
