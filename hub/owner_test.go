package hub_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/tidings-go/tidings/hub"
)

// Find says what the lock says, and gives away no address of a hub before.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	if r := runs(t, filepath.Join(dir, "missing")); r != nil {
		t.Errorf("in a directory that is missing runs %+v", r)
	}
	h, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	stop := func() { _, err := h.Stop(context.Background()); must(t, err) }
	t.Cleanup(stop)
	want := hub.Running{PID: os.Getpid(), URL: h.URL()}
	if r := runs(t, dir); r == nil || *r != want {
		t.Errorf("the hub is %+v, want %+v", r, want)
	}
	address, lock := filepath.Join(dir, "address"), filepath.Join(dir, "lock")
	before := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(address, before, before)) // as of a hub that was killed
	if r := runs(t, dir); r == nil || *r != (hub.Running{PID: os.Getpid()}) {
		t.Errorf("with the address of a hub before it is %+v", r)
	}
	must(t, os.Chtimes(address, time.Time{}, time.Now().Add(time.Minute)))
	must(t, os.WriteFile(lock, []byte(strconv.Itoa(1<<30)), 0o600)) // as of a process that is no more
	if r := runs(t, dir); r == nil || *r != (hub.Running{}) {
		t.Errorf("with the pid of a hub before it is %+v", r)
	}
	stop()
	if r := runs(t, dir); r != nil {
		t.Errorf("after its stop runs %+v", r)
	}
}

// Who may write to the directory may be another user: he leads nobody to what only that
// one may read.
func TestFindFollowsNoLink(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	dir := t.TempDir()
	h, err := hub.Start(t.Context(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	must(t, err)
	t.Cleanup(func() { _, err := h.Stop(context.Background()); must(t, err) })
	address := filepath.Join(dir, "address")
	must(t, os.Remove(address))
	must(t, os.Symlink(secret, address))
	if r, err := hub.Find(dir); err == nil {
		t.Errorf("it is %+v", r)
	}
	other := t.TempDir()
	must(t, os.Symlink(secret, filepath.Join(other, "lock")))
	if r, err := hub.Find(other); err == nil {
		t.Errorf("behind a link for a lock it is %+v", r)
	}
	if r, err := hub.Find(secret); err == nil {
		t.Errorf("of a file it is %+v", r)
	}
}
