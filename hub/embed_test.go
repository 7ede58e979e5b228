package hub_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/testkit"
)

func embed(t *testing.T, dir string) *tidings.Bus {
	t.Helper()
	b, err := tidings.Open(t.Context(), "embed:"+dir, tidings.Options{App: "shop", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

func runs(t *testing.T, dir string) *hub.Running {
	t.Helper()
	r, err := hub.Find(dir)
	must(t, err)
	return r
}

// The hub stops when the last bus of its process is closed, and what is stored is
// there when another opens the directory.
func TestEmbedStopsWithItsLastUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "hub")
	first, second := embed(t, dir), embed(t, dir+"/.")
	r := runs(t, dir)
	if r == nil || r.PID != os.Getpid() || !strings.Contains(r.URL, "token-file="+dir) {
		t.Fatalf("the hub of %s is %+v, want that of this process", dir, r)
	}
	must(t, first.Publish(t.Context(), "order.placed", "1"))
	must(t, first.Close())
	must(t, first.Close()) // nothing
	if runs(t, dir) == nil {
		t.Fatal("the hub has stopped though a bus still uses it")
	}
	must(t, second.Publish(t.Context(), "order.placed", "2"))
	must(t, second.Drain(t.Context()))
	if r := runs(t, dir); r != nil {
		t.Fatalf("no bus is left, and the hub runs: %+v", r)
	}

	got := make(chan string, 10)
	third := embed(t, dir)
	_, err := third.Subscribe(t.Context(), "order.>", func(_ context.Context, e tidings.Event) error {
		var s string
		err := e.Decode(&s)
		got <- s
		return err
	}, &tidings.SubscribeOptions{Durable: true})
	must(t, err)
	for _, want := range []string{"1", "2"} {
		select {
		case s := <-got:
			if s != want {
				t.Errorf("event %q is delivered, want %q", s, want)
			}
		case <-time.After(patience):
			t.Fatalf("event %q was not delivered in %v", want, patience)
		}
	}
}

// Opened by several at once, one of them runs the hub; the caller's settings reach the
// stream.
func TestEmbedAtOnce(t *testing.T) {
	dir := t.TempDir()
	buses := make(chan *tidings.Bus)
	for range 5 {
		go func() {
			b, err := tidings.Open(context.Background(), "embed:"+dir+"?max-bytes=1MiB", tidings.Options{App: "shop", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
			if err != nil {
				t.Error(err)
			}
			buses <- b
		}()
	}
	for range 5 {
		b := <-buses
		if b == nil {
			continue
		}
		must(t, b.Publish(t.Context(), "order.placed", 1))
		t.Cleanup(func() { must(t, b.Close()) })
	}
}

func TestEmbedFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	shared := t.TempDir()
	must(t, os.WriteFile(filepath.Join(shared, "token"), []byte("secret\n"), 0o600))
	must(t, os.Chmod(filepath.Join(shared, "token"), 0o644))
	for name, c := range map[string]struct{ url, want string }{
		"no directory":        {"embed:", "names no directory"},
		"a file":              {"embed:" + file, file},
		"not writable":        {"embed:/proc/hub", "/proc/hub"},
		"a token for all":     {"embed:" + shared, "chmod 600"},
		"a token-file":        {"embed:x?token-file=y", "token-file"},
		"credentials":         {"embed:x?creds=y", "creds"},
		"an unknown key":      {"embed:" + t.TempDir() + "?max-byte=1", "max-bytes"},
		"what is not a query": {"embed:x?%zz", "after ?"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := adapter.Open(t.Context(), c.url, adapter.Config{App: "shop"})
			if err == nil {
				_ = a.Close()
				t.Fatal("no error")
			}
			if !strings.HasPrefix(err.Error(), "hub: embed: ") || strings.Contains(err.Error(), "embed: hub:") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("the error is %q, want one that says %q", err, c.want)
			}
		})
	}
	if r := runs(t, shared); r != nil {
		t.Errorf("a hub runs that could not be opened: %+v", r)
	}
}

// A hub that is there but does not get ready is waited for as long as the caller says.
func TestEmbedObeysContext(t *testing.T) {
	dir := t.TempDir()
	held, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	t.Cleanup(func() { _, err := held.Stop(context.Background()); must(t, err) })
	must(t, os.Remove(filepath.Join(dir, "address"))) // as while it starts
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = adapter.Open(ctx, "embed:"+dir, adapter.Config{App: "shop"})
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Fatalf("the error is %v, want one that names %s", err, dir)
	}
}

// Of a directory that a hub of its own has, a bus is a client; when that hub goes, it
// takes over, and when it comes back it finds the directory in use.
func TestEmbedUsesTheHubThatIsThere(t *testing.T) {
	dir := t.TempDir()
	there, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	b := embed(t, dir)
	must(t, b.Publish(t.Context(), "order.placed", 1))
	if r := runs(t, dir); r.URL != there.URL() {
		t.Fatalf("the hub is %+v, want that on %s", r, there.URL())
	}
	s, err := there.Stop(t.Context())
	must(t, err)
	if s.Clients != 1 {
		t.Errorf("the hub that was there had %d clients, want the bus", s.Clients)
	}
	must(t, b.Publish(t.Context(), "order.placed", 2))
	testkit.Until(t, patience, func() bool { r := runs(t, dir); return r != nil && r.URL == there.URL() }) // on the same port
	_, err = hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("another hub on the directory: %v", err)
	}
}

// If the port cannot be had, the others find the hub where it is now.
func TestEmbedFollowsToAnotherPort(t *testing.T) {
	dir := t.TempDir()
	there, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	b := embed(t, dir)
	must(t, b.Publish(t.Context(), "order.placed", 1))
	must(t, os.Remove(filepath.Join(dir, "port"))) // any will do
	_, err = there.Stop(t.Context())
	must(t, err)
	must(t, b.Publish(t.Context(), "order.placed", 2))
	if r := runs(t, dir); r == nil || r.URL == there.URL() {
		t.Errorf("the hub is %+v, want it on another port than %s", r, there.URL())
	}
}
