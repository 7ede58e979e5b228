package natsbus_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// lone starts a nats-server that is a process of its own.
func lone(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, name: "lone", addr: testkit.FreeAddr(t)}
	conf := filepath.Join(dir, "conf")
	text := fmt.Sprintf("server_name: lone\nlisten: %q\njetstream { store_dir: %q }\n", n.addr, filepath.Join(dir, "store"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.make = func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), nodeEnv+"="+conf)
		return cmd
	}
	n.start()
	t.Cleanup(n.kill)
	return n
}

// tell sends a signal that does not end it.
func (n *node) tell(sig syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
}

// silent listens where a server was, and says nothing.
func silent(t *testing.T, addr string) (end func()) {
	t.Helper()
	var l net.Listener
	testkit.Until(t, patience, func() (ok bool) { // the kernel may be busy with those who were there
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	run := loop.Go(func(context.Context) {
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return func() { _ = l.Close(); run.StopAndWait() }
}

// An outage takes the broker away from a process and brings it back.
type outage struct {
	url        string
	begin, end func()
	sudden     bool // what was just acknowledged may be so no more
}

var outages = map[string]func(t *testing.T) outage{
	"restart": func(t *testing.T) outage {
		srv := testkit.Server(t)
		return outage{url: srv.URL(), begin: srv.Shutdown, end: srv.Start}
	},
	"kill -9": func(t *testing.T) outage {
		n := lone(t)
		return outage{url: n.url(), begin: n.kill, end: n.start, sudden: true}
	},
	"stopped": func(t *testing.T) outage {
		n := lone(t)
		return outage{url: n.url(), begin: func() { n.tell(syscall.SIGSTOP) }, end: func() { n.tell(syscall.SIGCONT) }}
	},
	"lame duck": func(t *testing.T) outage {
		srv := testkit.Server(t, func(o *server.Options) {
			o.LameDuckDuration, o.LameDuckGracePeriod = 200*time.Millisecond, 50*time.Millisecond
		})
		return outage{url: srv.URL(), begin: func() { srv.Running().LameDuckShutdown() }, end: srv.Restart}
	},
	"cut": func(t *testing.T) outage {
		p := testkit.Through(t, strings.TrimPrefix(testkit.Server(t).URL(), "nats://"))
		return outage{url: p.URL(), begin: p.Cut, end: p.Mend}
	},
	"half open, nothing gets there": func(t *testing.T) outage {
		p := testkit.Through(t, strings.TrimPrefix(testkit.Server(t).URL(), "nats://"))
		return outage{url: p.URL(), begin: func() { p.Lose(testkit.ToServer, true) }, end: p.Mend}
	},
	"half open, nothing comes": func(t *testing.T) outage {
		p := testkit.Through(t, strings.TrimPrefix(testkit.Server(t).URL(), "nats://"))
		return outage{url: p.URL(), begin: func() { p.Lose(testkit.ToClient, true) }, end: p.Mend}
	},
	"accepts and says nothing": func(t *testing.T) outage {
		srv := testkit.Server(t)
		var end func()
		return outage{url: srv.URL(),
			begin: func() { srv.Shutdown(); end = silent(t, strings.TrimPrefix(srv.URL(), "nats://")) },
			end:   func() { end(); srv.Start() }}
	},
	"another address of the name": func(t *testing.T) outage {
		srv := testkit.Server(t)
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(srv.URL(), "nats://"))
		return outage{url: "nats://localhost:" + port, begin: srv.Shutdown, end: srv.Start} // ::1, where nobody is
	},
	"first of two is away": func(t *testing.T) outage {
		srv := testkit.Server(t)
		return outage{url: "nats://" + testkit.FreeAddr(t) + "," + strings.TrimPrefix(srv.URL(), "nats://"), begin: srv.Shutdown, end: srv.Start}
	},
}

// Whatever takes the broker away: it is noticed, counted and told of. Live events are
// taken and sent when it is back, callers of durable ones wait, and all of it arrives
// then, once, by subscriptions that nobody made anew.
func TestOutages(t *testing.T) {
	for name, begin := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := begin(t)
			var log logged
			cfg := log.config()
			cfg.Durable = []string{"order.>"}
			a, err := natsbus.Open(within(t), o.url, cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = a.Close() })
			l := listen(t, a)
			l.hears(a, "before")

			o.begin()
			testkit.Until(t, patience, func() bool { return !a.Stats().Connected })
			publish(t, a, adapter.Live, "meanwhile", "cart.seen") // at once, without an error
			stored := make(chan error, 1)
			waits := loop.Go(func(context.Context) {
				stored <- a.Publish(within(t), &adapter.Message{ID: "meanwhile", Topic: "order.placed", Source: "//shop/1", Time: time.Now()}, adapter.Durable)
			})
			defer waits.StopAndWait()
			testkit.Until(t, patience, func() bool { return a.Stats().Buffered == 2 })
			o.end()
			if err := <-stored; err != nil {
				t.Errorf("a durable event during the outage: %v", err)
			}
			l.heard("meanwhile")
			l.hears(a, "after")
			if s := a.Stats(); !s.Connected || s.Disconnects == 0 || s.LastError == "" || s.Dropped > 0 {
				t.Errorf("Stats: %+v", s)
			}
			if !log.has("connection lost") || !log.has("cause=") || !log.has("connected again") {
				t.Errorf("the log does not say it: %s", log.String())
			}
		})
	}
}

// An outage that lasts is spoken of now and then, with its cause and the way out, however
// the cause changes.
func TestOutagesAreSpokenOf(t *testing.T) {
	natsbus.SetWatch(t, 0, 10*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond)
	srv := testkit.Server(t, func(o *server.Options) { o.Authorization = secret })
	addr := strings.TrimPrefix(srv.URL(), "nats://")
	var log logged
	a, err := natsbus.Open(within(t), "nats://"+secret+"@"+addr, log.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	said := func(parts ...string) {
		t.Helper()
		testkit.Until(t, patience, func() bool {
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "still no connection") && !missesAny(line, parts) {
					return true
				}
			}
			return false
		})
	}
	srv.Shutdown()
	said("connection refused", "start the broker", "way_out")
	end := silent(t, addr)
	said("timeout", "does not answer")
	end()
	srv.Change(func(o *server.Options) { o.Authorization = "another" })
	srv.Start()
	said("uthorization", "correct those in the URL")
	if n := strings.Count(log.String(), "refused the credentials"); n != 2 { // in the log and to OnError
		t.Errorf("the refusal was reported %d times", n)
	}
	srv.Change(func(o *server.Options) { o.Authorization = secret })
	testkit.Until(t, patience, func() bool { return a.Stats().Connected })
	log.clean(t, errors.New(a.Stats().LastError))
}

func missesAny(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return true
		}
	}
	return false
}

func TestWayOut(t *testing.T) {
	for out, errs := range map[string][]error{
		"correct those in the URL": {nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAccountAuthExpired},
		"ca=PATH":                  {x509.UnknownAuthorityError{}, x509.HostnameError{Certificate: &x509.Certificate{}}, nats.ErrSecureConnRequired},
		"host name":                {&net.DNSError{Err: "no such host", Name: "hub"}},
		"start the broker":         {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}},
		"firewalls":                {nats.ErrTimeout, os.ErrDeadlineExceeded, nats.ErrStaleConnection},
		"broker's log":             {io.EOF, errors.New("what else there is")},
	} {
		for _, err := range errs {
			if got := natsbus.WayOut(fmt.Errorf("natsbus: %w", err)); !strings.Contains(got, out) {
				t.Errorf("%v: %q does not say %q", err, got, out)
			}
		}
	}
}

// A fleet whose broker comes back does so each at its own time, and once.
func TestAFleetComesBack(t *testing.T) {
	const fleet = 200
	srv := testkit.Server(t)
	got := make(chan string, 2*fleet)
	clients := make([]adapter.Adapter, fleet)
	for i := range clients {
		clients[i] = open(t, srv.URL(), adapter.Config{App: fmt.Sprint("app", i)})
		subscribe(t, clients[i], adapter.Spec{Pattern: "cart.*", Deliver: func(d adapter.Delivery) { got <- d.ID }})
	}
	all := func(f func(adapter.Adapter) bool) {
		t.Helper()
		testkit.Until(t, time.Minute, func() bool {
			for _, a := range clients {
				if !f(a) {
					return false
				}
			}
			return true
		})
	}
	subs := srv.Running().NumSubscriptions()
	srv.Shutdown()
	all(func(a adapter.Adapter) bool { return natsbus.Dials(a) >= 3 }) // each has tried in vain
	srv.Start()
	all(func(a adapter.Adapter) bool { return a.Stats().Connected })
	testkit.Until(t, time.Minute, func() bool { return srv.Running().NumSubscriptions() >= subs })
	publish(t, clients[0], adapter.Live, "back", "cart.seen")
	for range fleet {
		select {
		case <-got:
		case <-time.After(time.Minute):
			t.Fatal("not all have got it")
		}
	}
	v, err := srv.Running().Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.TotalConnections != fleet {
		t.Errorf("%d connections were made by %d clients", v.TotalConnections, fleet)
	}
}

// Whoever waits to connect again waits for a time of its own, of at least half of what
// may be, so that a site's processes are spread over the other half.
func TestReconnectDelays(t *testing.T) {
	for _, c := range []struct {
		loopback bool
		n        int
		most     time.Duration
	}{{true, 1, 40 * time.Millisecond}, {true, 1000, 200 * time.Millisecond}, {false, 1, 100 * time.Millisecond}, {false, 3, 400 * time.Millisecond}, {false, 50, 1500 * time.Millisecond}} {
		tenths := map[time.Duration]int{}
		for range 1000 {
			d := natsbus.ReconnectDelay(c.loopback, c.n)
			if d < c.most/2 || d > c.most {
				t.Fatalf("%+v: %v", c, d)
			}
			tenths[(d-c.most/2)*10/(c.most/2)]++
		}
		for i := range time.Duration(10) {
			if tenths[i] < 30 { // of about 100
				t.Errorf("%+v: %d of 1000 in tenth %d", c, tenths[i], i)
			}
		}
	}
}
