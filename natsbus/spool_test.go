package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

func spooling(dir string) adapter.Config {
	return adapter.Config{App: "shop", Instance: "1", Durable: []string{"order.>"}, SpoolDir: dir}
}

func publishAs(t *testing.T, a adapter.Adapter, c adapter.Class, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		publish(t, a, c, strconv.Itoa(i), "order.placed")
	}
}

// spoolAtOnce publishes events that the spool acknowledges, all at once: where
// acknowledgements of the broker are lost, the first would else be looked up, in vain,
// before the last is sent.
func spoolAtOnce(t *testing.T, a adapter.Adapter, from, to int) {
	t.Helper()
	told := make(chan error, to-from)
	for i := from; i < to; i++ {
		if err := a.(adapter.AsyncPublisher).PublishAsync(within(t), order(strconv.Itoa(i), 10), adapter.Spooled, func(err error) { told <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range to - from {
		if err := <-told; err != nil {
			t.Error(err)
		}
	}
}

func inOrder(t *testing.T, ids []string, n int) {
	t.Helper()
	if len(ids) != n {
		t.Errorf("%d events are stored; want %d", len(ids), n)
	}
	for i, id := range ids {
		if id != strconv.Itoa(i) {
			t.Errorf("at place %d is %s", i, id)
			return
		}
	}
}

// empty waits until nothing lies in spools.
func empty(t *testing.T, a adapter.Adapter, dir string) {
	t.Helper()
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	if err := a.Drain(within(t)); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the directory: %q, %v", left, err)
	}
}

// While the broker is away Publish returns nil, and what it accepted comes when the
// broker is back: in order, once, and before what is published then.
func TestOutageIsSpooled(t *testing.T) {
	for _, class := range []adapter.Class{adapter.Durable, adapter.Spooled} {
		t.Run(fmt.Sprint(class), func(t *testing.T) {
			t.Parallel()
			srv, dir := testkit.Server(t), t.TempDir()
			a := open(t, srv.URL(), spooling(dir))
			publishAs(t, a, class, 0, 20)
			srv.Shutdown()
			publishAs(t, a, class, 20, 200)
			if n := a.Stats().Spooled; n < 180 {
				t.Errorf("%d are in the spool", n)
			}
			srv.Start()
			publishAs(t, a, class, 200, 300)
			empty(t, a, dir)
			ids, _ := storedIDs(t, srv.URL(), "shop")
			inOrder(t, ids, 300)
		})
	}
}

// What was written and not acknowledged when the broker went is spooled too, and looked
// up when the outage was long.
func TestWhatWasOnItsWayIsSpooled(t *testing.T) {
	for _, lost := range []testkit.Direction{testkit.ToClient, testkit.ToServer} {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			t.Parallel()
			srv, dir := testkit.Server(t), t.TempDir()
			proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
			a := open(t, proxy.URL()+"?duplicates="+window.String(), spooling(dir))
			publishAs(t, a, adapter.Durable, 0, 1)
			proxy.Lose(lost, true)
			const n = 50
			told := make(chan error, n)
			run := loop.Go(func(context.Context) {
				natsbus.Held(a, n, n, func(i int) { told <- a.Publish(t.Context(), order(strconv.Itoa(i+1), 10), adapter.Durable) })
			})
			defer run.StopAndWait()
			testkit.Until(t, patience, func() bool { return natsbus.Unacked(a) == n })
			if lost == testkit.ToClient {
				js := jsClient(t, srv.URL())
				testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq == n+1 })
			}
			proxy.Cut()
			for range n {
				if err := <-told; err != nil {
					t.Error(err)
				}
			}
			<-time.After(2 * window)
			proxy.Mend()
			publish(t, a, adapter.Durable, "last", "order.placed")
			empty(t, a, dir)
			ids, _ := storedIDs(t, srv.URL(), "shop")
			if once(t, ids, n+2); ids[len(ids)-1] != "last" || a.Stats().Possible != 0 {
				t.Errorf("the last is %s; %d possible doubles", ids[len(ids)-1], a.Stats().Possible)
			}
		})
	}
}

// Nobody waits for what PublishAsync took, so that its time is over some day; not of
// what lies in the spool.
func TestAsyncEventsAreSpooled(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a := open(t, proxy.URL(), spooling(dir))
	const n = 40
	told := make(chan error, n)
	publishAsync := func(from, to int) {
		for i := from; i < to; i++ {
			if err := a.(adapter.AsyncPublisher).PublishAsync(within(t), order(strconv.Itoa(i), 10), adapter.Durable, func(err error) { told <- err }); err != nil {
				t.Fatal(err)
			}
		}
	}
	proxy.Lose(testkit.ToClient, true)
	publishAsync(0, n/2)
	testkit.Until(t, patience, func() bool { return natsbus.Unacked(a) == n/2 })
	proxy.Cut()
	publishAsync(n/2, n)
	for range n {
		if err := <-told; err != nil {
			t.Error(err)
		}
	}
	<-time.After(1500 * time.Millisecond) // it is looked for such events once a second
	proxy.Mend()
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, n)
}

// What is on its way from the spool when the connection breaks keeps its place there.
func TestForwardedEventsStayInTheirPlace(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a := open(t, proxy.URL(), spooling(dir))
	publishAs(t, a, adapter.Spooled, 0, 10)
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	natsbus.BeforeDown(a, proxy.Cut, func() {
		publishAs(t, a, adapter.Spooled, 10, 20)
		testkit.Until(t, patience, func() bool { return natsbus.Queued(a) == 10 })
	})
	publishAs(t, a, adapter.Spooled, 20, 30)
	begun := time.Now()
	publishAs(t, a, adapter.Durable, 30, 32)
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("with the broker away it took %v to accept events", took)
	}
	proxy.Mend()
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, 32)
}

// The broker goes while the connection is opened, after the streams were found.
func TestTheBrokerGoesDuringOpen(t *testing.T) {
	srv, dir, log := testkit.Server(t), t.TempDir(), &logbook{}
	natsbus.StopAt(func(point string) {
		if point == "placed" {
			srv.Shutdown()
			testkit.Until(t, patience, func() bool { return log.has("connection lost") })
		}
	})
	defer natsbus.StopAt(func(string) {})
	cfg := spooling(dir)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	a, err := natsbus.Open(within(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	publishAs(t, a, adapter.Durable, 0, 10)
	srv.Start()
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, 10)
}

// A broker that accepts and says nothing is away too.
func TestASilentBrokerIsAway(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	a := open(t, srv.URL(), spooling(dir))
	js := jsClient(t, srv.URL())
	cfg := streamInfo(t, js, "shop").Config
	publishAs(t, a, adapter.Durable, 0, 10)
	cfg.Subjects = []string{"elsewhere"} // nobody takes the events
	if _, err := js.UpdateStream(within(t), cfg); err != nil {
		t.Fatal(err)
	}
	publishAs(t, a, adapter.Durable, 10, 30)
	cfg.Subjects = []string{"order.>"}
	if _, err := js.UpdateStream(within(t), cfg); err != nil {
		t.Fatal(err)
	}
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, 30)
}

// A process of which the broker was away for its whole life leaves its events to the
// next, which sends them before its own. Of two that start at once one gets them.
func TestTheNextProcessSendsWhatIsLeft(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	url := srv.URL()
	srv.Shutdown()
	for life := range 3 {
		a := open(t, url, spooling(dir))
		publishAs(t, a, adapter.Durable, life*10, life*10+10)
		if err := a.Drain(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	other := spooling(dir)
	other.App = "another" // whose spool this is not
	open(t, url, other)
	srv.Start()
	a, b := open(t, url, spooling(dir)), open(t, url, spooling(dir))
	publishAs(t, a, adapter.Spooled, 30, 40)
	for _, x := range []adapter.Adapter{a, b} {
		testkit.Until(t, patience, func() bool { return x.Stats().Spooled == 0 })
	}
	ids, _ := storedIDs(t, url, "shop")
	inOrder(t, ids, 40)
}

// A spool has a bound; what does not fit is refused, with the way out, and what fits is
// not lost.
func TestTheSpoolIsBounded(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	cfg := spooling(dir)
	cfg.SpoolMax = 32 << 10
	a := open(t, srv.URL(), cfg)
	srv.Shutdown()
	accepted := 0
	var err error
	for ; err == nil; accepted++ {
		err = a.Publish(within(t), order(strconv.Itoa(accepted), 500), adapter.Durable)
	}
	accepted--
	if !errors.Is(err, adapter.ErrFull) || !strings.Contains(err.Error(), "SpoolMax") || !strings.Contains(err.Error(), dir) || accepted < 10 {
		t.Errorf("after %d: %v", accepted, err)
	}
	srv.Start()
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	publish(t, a, adapter.Durable, strconv.Itoa(accepted), "order.placed")
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, accepted+1)
}

// An event that was accepted and that no stream takes is kept in a file, and said.
func TestWhatIsRefusedAfterAllIsKept(t *testing.T) {
	srv, dir, log := testkit.Server(t), t.TempDir(), &logbook{}
	cfg := spooling(dir)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	a, err := natsbus.Open(within(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	js := jsClient(t, srv.URL())
	sc := streamInfo(t, js, "shop").Config
	sc.MaxMsgSize = 1000
	if _, err := js.UpdateStream(within(t), sc); err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{10, 2000, 10} {
		if err := a.Publish(within(t), order(strconv.Itoa(i), size), adapter.Spooled); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	ids, _ := storedIDs(t, srv.URL(), "shop")
	if strings.Join(ids, " ") != "0 2" {
		t.Errorf("stored: %q", ids)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "refused", "*"))
	if err != nil || len(kept) != 1 || !log.has(kept[0]) {
		t.Fatalf("kept: %q, %v", kept, err)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || !strings.Contains(string(b), strings.Repeat("x", 2000)) {
		t.Errorf("it holds %d bytes, %v", len(b), err)
	}
	if a.Stats().Dropped != 1 {
		t.Errorf("%d dropped", a.Stats().Dropped)
	}
}

// A full stream holds the spool up, and loses nothing.
func TestAFullStreamHoldsTheSpoolUp(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	a := open(t, srv.URL()+"?max-msgs=30", spooling(dir))
	publishAs(t, a, adapter.Spooled, 0, 60)
	js := jsClient(t, srv.URL())
	testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.Msgs == 30 })
	cfg := streamInfo(t, js, "shop").Config
	cfg.MaxMsgs = 1000
	if _, err := js.UpdateStream(within(t), cfg); err != nil {
		t.Fatal(err)
	}
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	once(t, ids, 60)
}

// A caller that gives up has its event on the disk: that is enough.
func TestGivingUpWithASpool(t *testing.T) {
	srv, dir := testkit.Server(t), t.TempDir()
	proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
	a := open(t, proxy.URL(), spooling(dir))
	publishAs(t, a, adapter.Durable, 0, 1)
	proxy.Lose(testkit.ToClient, true)
	if err := a.Publish(within(t), order("1", 10), adapter.Spooled); err != nil { // from now on everything goes there
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.Publish(ctx, order("2", 10), adapter.Durable); err != nil {
		t.Error(err)
	}
	proxy.Cut()
	proxy.Mend()
	empty(t, a, dir)
	ids, _ := storedIDs(t, srv.URL(), "shop")
	inOrder(t, ids, 3)
}
