package natsbus_test

import (
	"flag"
	"net"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/adapter/adaptertest"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// serverPath is given by CI, which builds it in internal/oldserver.
var serverPath = flag.String("server", "", "a nats-server of another version, to test what is published there")

// external starts the server of another version.
func external(t *testing.T) *node {
	t.Helper()
	if *serverPath == "" {
		t.Skip("no server is given (-server PATH)")
	}
	n := &node{t: t, addr: testkit.FreeAddr(t)}
	host, port, err := net.SplitHostPort(n.addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n.make = func() *exec.Cmd {
		return exec.Command(*serverPath, "-a", host, "-p", port, "-js", "-sd", dir, "-l", dir+"/log")
	}
	n.start()
	t.Cleanup(n.kill)
	return n
}

// It keeps every promise that it can keep at all; what it cannot is not offered.
func TestAnotherServerConforms(t *testing.T) {
	n := external(t)
	adaptertest.Run(t, adaptertest.Harness{
		Open: func(t *testing.T, cfg adapter.Config) adapter.Adapter {
			t.Helper()
			cfg.Prefix = "test"
			return open(t, n.url()+"?max-bytes=16MiB", cfg)
		},
		Restart: func() { n.signal(syscall.SIGTERM); n.start() },
	})
}

// Events of many callers, and of those that nobody waits for, are stored one by one,
// each once, and in the order of their caller; also over a kill of the server.
func TestAnotherServerGetsNoBatches(t *testing.T) {
	for name, spooled := range map[string]bool{"no spool": false, "a spool": true} {
		t.Run(name, func(t *testing.T) {
			n, dir := external(t), t.TempDir()
			cfg := adapter.Config{Durable: []string{"order.>"}}
			if spooled {
				cfg = spooling(dir)
			}
			a := open(t, n.url(), cfg)
			natsbus.Batches(a, true) // as if they had been measured to win
			const many = 500
			natsbus.Held(a, many, many, func(i int) { publish(t, a, adapter.Durable, strconv.Itoa(i), "order.placed") })
			n.kill()
			var told atomic.Int64
			for i := many; i < 3*many; i++ {
				err := async(t.Context(), a, order(strconv.Itoa(i), 10), func(err error) {
					if err != nil {
						t.Errorf("event %d: %v", i, err)
					}
					told.Add(1)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if spooled { // whose broker is away
				publishAs(t, a, adapter.Durable, 3*many, 4*many)
				publishAs(t, a, adapter.Spooled, 4*many, 5*many)
			}
			n.start()
			testkit.Until(t, patience, func() bool { return told.Load() == 2*many && a.Stats().Spooled == 0 })
			total := 3 * many
			if spooled {
				total = 5 * many
			}
			natsbus.Batches(a, true)
			natsbus.Held(a, many, many, func(i int) { publish(t, a, adapter.Durable, strconv.Itoa(total+i), "order.placed") })
			headers := headersOf(t, n.url(), "shop")
			var ids []string
			for i, h := range headers {
				for k := range h {
					if len(k) > 10 && k[:10] == "Nats-Batch" {
						t.Fatalf("event %d has the header %s", i, k)
					}
				}
				ids = append(ids, h.Get("Nats-Msg-Id"))
			}
			once(t, ids, total+many)
			for i, id := range ids[many:total] {
				if id != strconv.Itoa(many+i) {
					t.Fatalf("at place %d is %s", many+i, id)
				}
			}
			if s := a.Stats(); s.Possible != 0 {
				t.Errorf("%d possible doubles", s.Possible)
			}
		})
	}
}

// The server says what it is, so that nobody takes a run with the newest one for this.
func TestAnotherServerIsOlder(t *testing.T) {
	n := external(t)
	a := open(t, n.url(), adapter.Config{Durable: []string{"order.>"}})
	js := jsClient(t, n.url())
	t.Log("the server is version", js.Conn().ConnectedServerVersion())
	if a.Caps().Delay && js.Conn().ConnectedServerVersion() < "2.12" {
		t.Error("it is said to delay events")
	}
	if natsbus.TakesBatches(a) {
		t.Error("it is said to take batches")
	}
}
