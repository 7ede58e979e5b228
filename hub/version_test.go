package hub_test

import (
	"bytes"
	"context"
	"flag"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/testkit"
)

// serverPath is given by CI, which builds it in internal/oldserver.
var serverPath = flag.String("server", "", "a nats-server of another version, whose store is opened")

// version is what a hub on dir is started with and leaves there.
func version(t *testing.T, dir string, change ...func(*hub.Options)) (after, log string, err error) {
	t.Helper()
	var out bytes.Buffer
	o := hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(&out, nil))}
	for _, f := range change {
		f(&o)
	}
	h, err := hub.Start(t.Context(), o)
	if err == nil {
		_, stop := h.Stop(context.Background())
		must(t, stop)
	}
	b, read := os.ReadFile(filepath.Join(dir, "version"))
	must(t, read)
	return strings.TrimSpace(string(b)), out.String(), err
}

// A store that a newer minor version has written is refused, untouched, unless somebody
// insists; others are opened, and that they are upgraded is logged.
func TestStoreOfAnotherVersion(t *testing.T) {
	major, _, _ := strings.Cut(server.VERSION, ".")
	for name, c := range map[string]struct {
		last         string
		insist       bool
		refused, log string
	}{
		"new":                  {last: ""},
		"the same":             {last: server.VERSION},
		"a later patch":        {last: server.VERSION[:strings.LastIndexByte(server.VERSION, '.')] + ".99"},
		"a preview of ours":    {last: server.VERSION + "-RC.1"},
		"older":                {last: "2.10.27", log: "the store is upgraded"},
		"a newer minor":        {last: major + ".99.0", refused: "Options.Downgrade"},
		"a newer preview":      {last: major + ".99.0-RC.1", refused: major + ".99.0-RC.1"},
		"a newer major":        {last: "10.0.0", refused: "restore a backup"},
		"a newer one, insists": {last: major + ".99.0", insist: true, log: "opened all the same"},
		"nonsense":             {last: "nonsense", refused: "version"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.last != "" {
				must(t, os.WriteFile(filepath.Join(dir, "version"), []byte(c.last+"\n"), 0o600))
			}
			after, log, err := version(t, dir, func(o *hub.Options) { o.Downgrade = c.insist })
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), dir) {
					t.Errorf("the error is %v, want one that says %q", err, c.refused)
				}
				if after != c.last {
					t.Errorf("version says %s after that, want %s", after, c.last)
				}
				if stored, err := os.ReadDir(filepath.Join(dir, "store")); err != nil || len(stored) > 0 {
					t.Errorf("the store was opened: %v, %v", stored, err)
				}
				if r := runs(t, dir); r != nil {
					t.Errorf("the directory is held: %+v", r)
				}
				return
			}
			must(t, err)
			if after != server.VERSION {
				t.Errorf("version says %s, want %s", after, server.VERSION)
			}
			if !strings.Contains(log, c.log) || c.log == "" && strings.Contains(log, "upgraded") {
				t.Errorf("the log should say %q:\n%s", c.log, log)
			}
		})
	}
}

// What a nats-server of 2.10 has stored is there, with its groups and what they have
// settled.
func TestAnotherServersStoreIsOpened(t *testing.T) {
	if *serverPath == "" {
		t.Skip("no server is given (-server PATH)")
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "store"), 0o700))
	addr := testkit.FreeAddr(t)
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	cmd := exec.Command(*serverPath, "-a", host, "-p", port, "-js", "-sd", filepath.Join(dir, "store"))
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	var nc *nats.Conn
	testkit.Until(t, patience, func() bool { nc, err = nats.Connect("nats://" + addr); return err == nil })
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	s := stored(t, js, "ORDERS")
	publish(t, js, "orders.placed", 0, 200)
	take(t, s, "billing", 50)
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "SEEN"})
	must(t, err)
	_, err = kv.Put(t.Context(), "key", []byte("value"))
	must(t, err)
	old := nc.ConnectedServerVersion()
	nc.Close()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait() // nats-server exits with 1 on TERM

	_, js, _ = at(t, dir)
	s, err = js.Stream(t.Context(), "ORDERS")
	must(t, err)
	if st := s.CachedInfo().State; st.Msgs != 200 || st.FirstSeq != 1 || st.LastSeq != 200 {
		t.Errorf("of 200 events of %s there are %+v", old, st)
	}
	got := take(t, s, "billing", 150)
	if got[0] != "50" || got[149] != "199" {
		t.Errorf("the group goes on with events %s to %s, want 50 to 199", got[0], got[149])
	}
	kv, err = js.KeyValue(t.Context(), "SEEN")
	must(t, err)
	e, err := kv.Get(t.Context(), "key")
	must(t, err)
	if string(e.Value()) != "value" {
		t.Errorf("the bucket has %q", e.Value())
	}
	publish(t, js, "orders.placed", 200, 201)
	b, err := os.ReadFile(filepath.Join(dir, "version"))
	must(t, err)
	if strings.TrimSpace(string(b)) != server.VERSION {
		t.Errorf("version says %s", b)
	}
	t.Logf("opened the store of %s", old)
}
