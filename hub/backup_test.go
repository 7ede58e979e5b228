package hub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/natsbus"
)

// at starts a hub on a directory and connects to it.
func at(t *testing.T, dir string) (*nats.Conn, jetstream.JetStream, *hub.Hub) {
	t.Helper()
	h, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	t.Cleanup(func() { _, err := h.Stop(context.Background()); must(t, err) })
	nc, err := natsbus.Connect(t.Context(), h.URL(), "test")
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return nc, js, h
}

func stored(t *testing.T, js jetstream.JetStream, name string, cfg ...func(*jetstream.StreamConfig)) jetstream.Stream {
	t.Helper()
	c := jetstream.StreamConfig{Name: name, Subjects: []string{strings.ToLower(name) + ".>"}}
	for _, f := range cfg {
		f(&c)
	}
	s, err := js.CreateStream(t.Context(), c)
	must(t, err)
	return s
}

func publish(t *testing.T, js jetstream.JetStream, subject string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		_, err := js.Publish(t.Context(), subject, fmt.Append(nil, i))
		must(t, err)
	}
}

// take has a group settle so many events, and returns them.
func take(t *testing.T, s jetstream.Stream, group string, n int) (got []string) {
	t.Helper()
	c, err := s.CreateOrUpdateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: group, AckPolicy: jetstream.AckExplicitPolicy, AckWait: patience})
	must(t, err)
	for len(got) < n {
		b, err := c.Fetch(n-len(got), jetstream.FetchMaxWait(patience))
		must(t, err)
		for m := range b.Messages() {
			got = append(got, string(m.Data()))
			must(t, m.DoubleAck(t.Context()))
		}
		must(t, b.Error())
	}
	return got
}

// What a group has not settled is delivered after a restore, in order, and nothing that
// it has; of what came while the backup was taken, as much as there is goes without a
// hole.
func TestBackupAndRestore(t *testing.T) {
	const half = 300
	nc, js, h := at(t, t.TempDir())
	s := stored(t, js, "ORDERS", func(c *jetstream.StreamConfig) { c.Metadata = map[string]string{"tidings.app": "shop"} })
	publish(t, js, "orders.placed", 0, 2*half)
	first := take(t, s, "billing", half)
	stored(t, js, "EMPTY")
	stored(t, js, "MEMORY", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage })

	var next atomic.Int64
	next.Store(2 * half)
	flow := loop.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			if _, err := js.Publish(ctx, "orders.placed", fmt.Append(nil, next.Load())); err == nil {
				next.Add(1)
			}
		}
	})
	dir := filepath.Join(t.TempDir(), "backup")
	m, err := hub.Backup(t.Context(), nc, dir)
	flow.StopAndWait()
	must(t, err)
	if len(m.Streams) != 2 || m.Streams[1].Name != "ORDERS" || !slices.Equal(m.Streams[1].Groups, []string{"billing"}) || m.Streams[1].Messages < 2*half || m.Server == "" {
		t.Errorf("the manifest says %+v", m)
	}
	if len(m.Skipped) != 1 || m.Skipped[0].Name != "MEMORY" {
		t.Errorf("skipped is %+v, want the stream in memory", m.Skipped)
	}
	modes(t, dir)
	if _, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "streams EMPTY, ORDERS are there already") {
		t.Errorf("a restore over what is there: %v", err)
	}
	_, err = h.Stop(t.Context())
	must(t, err)

	nc, js, _ = at(t, t.TempDir())
	restored, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{})
	must(t, err)
	if len(restored.Streams) != 2 {
		t.Errorf("%d streams were restored, want 2", len(restored.Streams))
	}
	s, err = js.Stream(t.Context(), "ORDERS")
	must(t, err)
	info := s.CachedInfo()
	if info.Config.Metadata["tidings.app"] != "shop" {
		t.Errorf("the stream is restored with the settings %+v", info.Config)
	}
	rest := int(info.State.Msgs) - half
	got := take(t, s, "billing", rest)
	for i, text := range got {
		if text != fmt.Sprint(half+i) {
			t.Fatalf("after %d events of the other half comes %s", i, text)
		}
	}
	if len(got) < half || half+len(got) > int(next.Load()) {
		t.Errorf("%d events are delivered, of %d and up to %d more", len(got), half, int(next.Load())-2*half)
	}
	if slices.Contains(got, first[len(first)-1]) {
		t.Error("what was settled is delivered again")
	}
	t.Logf("%d events came while the backup was taken, %d of them are in it", int(next.Load())-2*half, len(got)-half)
	publish(t, js, "orders.placed", 0, 1) // it is a stream as others
}

// modes checks that nobody else can read a backup.
func modes(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("mode of %s is %04o, want %04o", path, info.Mode().Perm(), want)
		}
		return nil
	}))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("beside the backup there is %q", left)
	}
}

// backedUp is a backup of two streams.
func backedUp(t *testing.T) (dir string, nc *nats.Conn) {
	t.Helper()
	nc, js, _ := at(t, t.TempDir())
	for _, name := range []string{"BILLS", "ORDERS"} {
		stored(t, js, name)
		publish(t, js, strings.ToLower(name)+".placed", 0, 20)
	}
	dir = filepath.Join(t.TempDir(), "backup")
	_, err := hub.Backup(t.Context(), nc, dir)
	must(t, err)
	return dir, nc
}

// A backup that is not what was written is refused, with the name of the file, and the
// server is left as it is.
func TestRestoreRefuses(t *testing.T) {
	dir, _ := backedUp(t)
	nc, js, _ := at(t, t.TempDir())
	change := func(name string, f func(b []byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, f(b), 0o600))
		}
	}
	const orders = "002-ORDERS.snapshot"
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string
	}{
		"cut off":           {change(orders, func(b []byte) []byte { return b[:len(b)-1] }), orders + " is cut off"},
		"empty":             {change(orders, func(b []byte) []byte { return nil }), orders + " is cut off"},
		"a bit is another":  {change(orders, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), orders + " is not what was written"},
		"longer":            {change(orders, func(b []byte) []byte { return append(b, 0) }), orders + " is not what was written"},
		"a file is missing": {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, orders))) }, orders},
		"manifest cut off":  {change("manifest.json", func(b []byte) []byte { return b[:len(b)/2] }), "manifest.json cannot be read"},
		"no manifest":       {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "manifest.json"))) }, "is no backup"},
		"a later format":    {change("manifest.json", func(b []byte) []byte { return []byte(strings.Replace(string(b), `"format": 1`, `"format": 2`, 1)) }), "format 2"},
		"a file elsewhere":  {change("manifest.json", func(b []byte) []byte { return []byte(strings.Replace(string(b), orders, "../"+orders, 1)) }), "it was changed"},
	} {
		t.Run(name, func(t *testing.T) {
			damaged := filepath.Join(t.TempDir(), "backup")
			must(t, os.CopyFS(damaged, os.DirFS(dir)))
			c.damage(t, damaged)
			_, err := hub.Restore(t.Context(), nc, damaged, hub.RestoreOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "hub: restore: ") {
				t.Errorf("the error is %v, want one that says %q", err, c.want)
			}
			for _, s := range []string{"BILLS", "ORDERS"} {
				if _, err := js.Stream(t.Context(), s); !errors.Is(err, jetstream.ErrStreamNotFound) {
					t.Errorf("stream %s of a backup that was refused: %v", s, err)
				}
			}
		})
	}
}

func TestRestoreOneStream(t *testing.T) {
	dir, _ := backedUp(t)
	nc, js, _ := at(t, t.TempDir())
	if _, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{Streams: []string{"NONE"}}); err == nil || !strings.Contains(err.Error(), "no stream NONE; it has BILLS, ORDERS") {
		t.Errorf("the error is %v", err)
	}
	_, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{Streams: []string{"ORDERS"}})
	must(t, err)
	if _, err := js.Stream(t.Context(), "BILLS"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the stream that was not asked for: %v", err)
	}
	if _, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "stream ORDERS is there already") {
		t.Errorf("the error is %v", err)
	}
	_, err = hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{Streams: []string{"BILLS"}})
	must(t, err)
}

// A stream that a server does not take, since another has its subjects, is named, and
// so is what was restored before.
func TestRestoreSaysHowFarItCame(t *testing.T) {
	dir, _ := backedUp(t)
	nc, js, _ := at(t, t.TempDir())
	stored(t, js, "OTHER", func(c *jetstream.StreamConfig) { c.Subjects = []string{"orders.*"} })
	_, err := hub.Restore(t.Context(), nc, dir, hub.RestoreOptions{})
	if err == nil || !strings.Contains(err.Error(), "stream ORDERS: ") || !strings.Contains(err.Error(), "subjects overlap") || !strings.Contains(err.Error(), "restored before that: BILLS") {
		t.Errorf("the error is %v", err)
	}
}

func TestBackupIsNeverWrittenOver(t *testing.T) {
	dir, nc := backedUp(t)
	before, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	must(t, err)
	if _, err := hub.Backup(t.Context(), nc, dir); err == nil || !strings.Contains(err.Error(), dir+" is there already") {
		t.Errorf("the error is %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	must(t, err)
	if string(before) != string(after) {
		t.Error("the backup has changed")
	}
	modes(t, dir)
	var m hub.Manifest
	must(t, json.Unmarshal(after, &m))
	if time.Since(m.Taken) > time.Hour {
		t.Errorf("it was taken at %v", m.Taken)
	}
}

// A backup whose server goes leaves nothing.
func TestBackupThatFailsLeavesNothing(t *testing.T) {
	nc, js, h := at(t, t.TempDir())
	stored(t, js, "ORDERS")
	_, err := h.Stop(t.Context())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "backup")
	if _, err := hub.Backup(t.Context(), nc, dir); err == nil {
		t.Error("no error")
	}
	left, err := os.ReadDir(filepath.Dir(dir))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
}
