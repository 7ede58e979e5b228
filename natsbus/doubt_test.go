package natsbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// window is how long the streams of these tests remember ids. The server asks for as
// much at least.
const window = 100 * time.Millisecond

// A doubted publisher has written events of which it heard no acknowledgement, and the
// outage lasts longer than the stream remembers ids.
type doubted struct {
	proxy *testkit.Proxy
	srv   *testkit.Broker
	a     adapter.Adapter
	log   *logbook
	done  chan error
	run   *loop.Loop
}

// doubt publishes n events, of which what the connection loses in one direction; while
// it is away it calls meanwhile.
func doubt(t *testing.T, n int, lost testkit.Direction, meanwhile func(d *doubted)) *doubted {
	t.Helper()
	d := &doubted{srv: testkit.Server(t), log: &logbook{}, done: make(chan error, n)}
	d.proxy = testkit.Through(t, strings.TrimPrefix(d.srv.URL(), "nats://"))
	var err error
	d.a, err = natsbus.Open(within(t), d.proxy.URL()+"?duplicates="+window.String(), adapter.Config{App: "shop", Instance: "1", Durable: []string{"order.>"},
		Logger: slog.New(slog.NewTextHandler(d.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.a.Close() })
	publish(t, d.a, adapter.Durable, "before", "order.placed")
	natsbus.Batches(d.a, n >= 32)
	d.proxy.Lose(lost, true)
	d.run = loop.Go(func(context.Context) {
		natsbus.Held(d.a, n, n, func(i int) { d.done <- d.a.Publish(t.Context(), order(fmt.Sprint("doubted-", i), 10), adapter.Durable) })
	})
	if lost == testkit.ToClient {
		js := jsClient(t, d.srv.URL())
		testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq >= uint64(n)+1 })
	} else {
		testkit.Until(t, patience, func() bool { return natsbus.Unacked(d.a) == n })
	}
	forgotten := time.After(2 * window)
	d.proxy.Cut()
	meanwhile(d)
	<-forgotten
	d.proxy.Mend()
	return d
}

// accepted waits until every caller was told that its event is stored.
func (d *doubted) accepted(t *testing.T) {
	t.Helper()
	<-d.run.Done()
	for range cap(d.done) {
		if err := <-d.done; err != nil {
			t.Error(err)
		}
	}
}

func nothingMeanwhile(*doubted) {}

// The acknowledgement was lost, and the outage outlasts the deduplication window: what
// is stored is found, and not stored again. That of others does not mislead.
func TestLostAcknowledgementsAreLookedUp(t *testing.T) {
	for name, n := range map[string]int{"one": 1, "several": 20, "a batch": 200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := doubt(t, n, testkit.ToClient, func(d *doubted) {
				other := open(t, d.srv.URL(), adapter.Config{App: "other"})
				for i := range 30 {
					publish(t, other, adapter.Durable, fmt.Sprint("other-", i), "order.placed")
				}
			})
			d.accepted(t)
			ids, _ := storedIDs(t, d.srv.URL(), "shop")
			once(t, ids, n+31)
			if s := d.a.Stats(); s.Possible != 0 {
				t.Errorf("%d possible doubles are reported", s.Possible)
			}
		})
	}
}

// What never arrived is found to be missing, and stored.
func TestLostEventsAreLookedUp(t *testing.T) {
	for name, n := range map[string]int{"one": 1, "a batch": 200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := doubt(t, n, testkit.ToServer, nothingMeanwhile)
			d.accepted(t)
			ids, _ := storedIDs(t, d.srv.URL(), "shop")
			once(t, ids, n+1)
			if s := d.a.Stats(); s.Possible != 0 {
				t.Errorf("%d possible doubles are reported", s.Possible)
			}
		})
	}
}

// What a dead process has left in its spool comes in parts: those that come while others
// are looked up are looked up too, and do not hide behind them.
func TestDoubtsThatComeLaterAreLookedUp(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	first, err := natsbus.Open(within(t), proxy.URL()+"?duplicates="+window.String(), spooling(dir))
	if err != nil {
		t.Fatal(err)
	}
	const n, early = 60, 20
	proxy.Lose(testkit.ToClient, true)
	spoolAtOnce(t, first, 0, n)
	js := jsClient(t, srv.URL())
	testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq == n })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t)
	looking, all := make(chan struct{}), make(chan struct{})
	var begun sync.Once
	sent := 0
	natsbus.StopAt(func(point string) {
		switch point {
		case "looking":
			begun.Do(func() { close(looking) })
			<-all
		case "sent":
			if sent++; sent == early {
				<-looking
			} else if sent == n {
				close(all)
			}
		}
	})
	defer natsbus.StopAt(func(string) {})
	a := open(t, srv.URL(), spooling(dir))
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, n)
}

// What can not be looked up any more is stored, perhaps again, and reported by its id.
func TestPossibleDoublesAreReported(t *testing.T) {
	purge := func(t *testing.T) func(*doubted) {
		return func(d *doubted) {
			s, err := jsClient(t, d.srv.URL()).Stream(within(t), "shop")
			if err == nil {
				err = s.Purge(within(t))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	anew := func(t *testing.T) func(*doubted) {
		return func(d *doubted) {
			js := jsClient(t, d.srv.URL())
			cfg := streamInfo(t, js, "shop").Config
			err := js.DeleteStream(within(t), "shop")
			if err == nil {
				_, err = js.CreateStream(within(t), cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, meanwhile := range map[string]func(*testing.T) func(*doubted){"purged": purge, "another stream": anew} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := doubt(t, 3, testkit.ToClient, meanwhile(t))
			d.accepted(t)
			ids, _ := storedIDs(t, d.srv.URL(), "shop")
			once(t, ids, 3)
			if s := d.a.Stats(); s.Possible != 3 {
				t.Errorf("%d possible doubles are reported; want 3", s.Possible)
			}
			for i := range 3 {
				if !d.log.has(fmt.Sprint("doubted-", i)) {
					t.Errorf("the report does not name doubted-%d", i)
				}
			}
		})
	}
}

// A publisher that may not read what is stored cannot look it up.
func TestNoPermissionToLookUp(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "all", Password: "x"},
			{Username: "narrow", Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.>"}}}},
		}
	})
	all := strings.Replace(srv.URL(), "//", "//all:x@", 1)
	js := jsClient(t, all)
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "shop", Subjects: []string{"order.>"}, Duplicates: window}); err != nil {
		t.Fatal(err)
	}
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a, log := openLogged(t, strings.Replace(proxy.URL(), "//", "//narrow:x@", 1))
	proxy.Lose(testkit.ToClient, true)
	told := make(chan error, 1)
	run := loop.Go(func(context.Context) { told <- a.Publish(t.Context(), order("doubted", 10), adapter.Durable) })
	defer run.StopAndWait()
	testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq == 1 })
	forgotten := time.After(2 * window)
	proxy.Cut()
	<-forgotten
	proxy.Mend()
	if err := <-told; err != nil {
		t.Error(err)
	}
	if s := a.Stats(); s.Possible != 1 || !log.has("doubted") || !log.has("no permission") {
		t.Errorf("%d possible doubles are reported, with their cause: %v", s.Possible, log.has("no permission"))
	}
}

// What was written may lie in the server still, before a stream that is slow: so before
// anything is looked up, or sent again, a fence goes through the stream, which is not
// stored. Without it, on a slow disk, events were looked for in vain, and stored twice.
func TestAFenceGoesBeforeALookup(t *testing.T) {
	const n = 3
	var seen *nats.Subscription
	d := doubt(t, n, testkit.ToClient, func(d *doubted) {
		nc, err := nats.Connect(d.srv.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		if seen, err = nc.SubscribeSync("order.placed"); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	})
	d.accepted(t)
	m, err := seen.NextMsg(patience)
	if err != nil || m.Header.Get(nats.ExpectedLastMsgIdHdr) == "" {
		t.Fatalf("the first that comes after the outage is %+v, %v", m, err)
	}
	if last := streamInfo(t, jsClient(t, d.srv.URL()), "shop").State.LastSeq; last != n+1 {
		t.Errorf("%d events are stored, want %d", last, n+1)
	}
}
