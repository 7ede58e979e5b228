package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// async publishes without waiting; told gets the outcome.
func async(ctx context.Context, a adapter.Adapter, m *adapter.Message, told func(error)) error {
	return a.(adapter.AsyncPublisher).PublishAsync(ctx, m, adapter.Durable, told)
}

// Limits of max_payload: one that every event of these tests fits, and one that the
// large ones do not.
const (
	roomy = 64 << 10
	tight = 4000
	large = 10_000
	fits  = 500
)

func namesLimit(err error) bool {
	return err != nil && strings.Contains(err.Error(), "order.placed") && strings.Contains(err.Error(), strconv.Itoa(tight)) && strings.Contains(err.Error(), "max_payload")
}

// Events that fitted when they were accepted, and not any more when the server is
// back, are errors of their callers; the others go on.
func TestMaxPayloadIsLessAfterARestart(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) { o.MaxPayload = roomy })
	a, log := openLogged(t, srv.URL())
	publish(t, a, adapter.Durable, "before", "order.placed")
	srv.Shutdown()
	testkit.Until(t, patience, func() bool { return !a.Stats().Connected })
	const n = 40 // every second is too large
	told := make([]chan error, n)
	for i := range n {
		m := order(strconv.Itoa(i), fits+i%2*large)
		told[i] = make(chan error, 1)
		if i%4 > 1 {
			if err := async(t.Context(), a, m, func(err error) { told[i] <- err }); err != nil {
				t.Fatal(err)
			}
			continue
		}
		run := loop.Go(func(context.Context) { told[i] <- a.Publish(t.Context(), m, adapter.Durable) })
		defer run.StopAndWait()
	}
	if err := a.Publish(t.Context(), order("live", large), adapter.Live); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { return a.Stats().Buffered == n+1 })
	srv.Change(func(o *server.Options) { o.MaxPayload = tight })
	srv.Start()
	for i := range n {
		err := <-told[i]
		if i%2 == 0 && err != nil || i%2 == 1 && (!namesLimit(err) || errors.Is(err, adapter.ErrInDoubt)) {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if s := a.Stats(); s.Dropped != 1 || !log.has("max_payload") {
		t.Errorf("%d live events were dropped; want 1, and that it is said", s.Dropped)
	}
	if err := a.Publish(within(t), order("after", large), adapter.Durable); !namesLimit(err) {
		t.Errorf("after that: %v", err)
	}
	ids, _ := storedIDs(t, srv.URL(), "shop")
	once(t, ids, n/2+1)
}

// An event was stored, its acknowledgement was lost, and when it is sent again it is
// refused: that does not say that it is not stored, and its caller is not told so.
func TestRefusedWhenSentAgain(t *testing.T) {
	for name, change := range map[string]func(*server.Options){
		"too large": func(o *server.Options) { o.MaxPayload = 300 },
		"no permission": func(o *server.Options) {
			o.Users[0].Permissions = &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"order.>"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, all, srv := guarded(t)
			proxy := testkit.Through(t, strings.TrimPrefix(srv.URL(), "nats://"))
			a := open(t, strings.Replace(proxy.URL(), "//", "//narrow:x@", 1), adapter.Config{Durable: []string{"order.>"}})
			proxy.Lose(testkit.ToClient, true)
			told := make(chan error, 1)
			run := loop.Go(func(context.Context) { told <- a.Publish(t.Context(), order("doubted", 500), adapter.Durable) })
			defer run.StopAndWait()
			js := jsClient(t, all)
			testkit.Until(t, patience, func() bool { return streamInfo(t, js, "shop").State.LastSeq == 1 })
			proxy.Cut()
			srv.Shutdown()
			srv.Change(change)
			srv.Start()
			proxy.Mend()
			if err := <-told; !errors.Is(err, adapter.ErrInDoubt) || !strings.Contains(err.Error(), map[string]string{"too large": "max_payload", "no permission": "no permission"}[name]) {
				t.Errorf("told: %v", err)
			}
		})
	}
}

// With a spool: what the server, as far as is known, will not take is refused at once,
// also while it is away. What it turns out not to take is kept in a file, and named.
func TestMaxPayloadWithASpool(t *testing.T) {
	for name, known := range map[string]bool{"the limit is known": true, "there was no server yet": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, dir, log := testkit.Server(t, func(o *server.Options) { o.MaxPayload = roomy }), t.TempDir(), &logged{}
			if !known {
				srv.Shutdown()
			}
			cfg := log.config()
			cfg.App, cfg.Durable, cfg.SpoolDir = "shop", []string{"order.>"}, dir
			a, err := natsbus.Open(within(t), srv.URL(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.Close() }()
			srv.Shutdown()
			srv.Change(func(o *server.Options) { o.MaxPayload = tight })
			testkit.Until(t, patience, func() bool { return !a.Stats().Connected })
			for i, class := range []adapter.Class{adapter.Spooled, adapter.Durable} {
				err := a.Publish(within(t), order("huge", 2*roomy), class)
				if known != (err != nil) || known && !strings.Contains(err.Error(), strconv.Itoa(roomy)) {
					t.Errorf("above what was known: %v", err)
				}
				for k := range 10 {
					if err := a.Publish(within(t), order(strconv.Itoa(10*i+k), fits+k/9*large), class); err != nil {
						t.Fatal(err)
					}
				}
			}
			srv.Start()
			testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
			want := 2
			if !known {
				want = 4
			}
			refused, err := filepath.Glob(filepath.Join(dir, "refused", "*"))
			if err != nil || len(refused) != want || a.Stats().Dropped != uint64(want) {
				t.Errorf("%d events are kept: %v; %d dropped; want %d", len(refused), err, a.Stats().Dropped, want)
			}
			for _, path := range refused {
				if b, err := os.ReadFile(path); err != nil || len(b) < large || !log.has(path) {
					t.Errorf("%s has %d bytes, %v; it is named: %v", path, len(b), err, log.has(path))
				}
			}
			ids, _ := storedIDs(t, srv.URL(), "shop")
			if got, want := strings.Join(ids, " "), "0 1 2 3 4 5 6 7 8 10 11 12 13 14 15 16 17 18"; got != want {
				t.Errorf("stored: %s\nwant:   %s", got, want)
			}
		})
	}
}

// guarded is a server whose user "narrow" may not publish to some subjects, and the
// addresses of that user and of one who may all.
func guarded(t *testing.T, deny ...string) (narrow, all string, srv *testkit.Broker) {
	t.Helper()
	srv = testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "narrow", Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: deny}}},
			{Username: "all", Password: "x"},
		}
	})
	at := func(user string) string { return strings.Replace(srv.URL(), "//", "//"+user+":x@", 1) }
	return at("narrow"), at("all"), srv
}

// Who may not publish to a subject is told so, and nobody else; also where its events
// share a batch with those of others.
func TestNoPermissionForADurableSubject(t *testing.T) {
	for name, c := range map[string]struct{ batches, async bool }{"singly": {}, "in batches": {batches: true}, "nobody waits": {async: true}, "in batches, nobody waits": {true, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, all, _ := guarded(t, "order.secret")
			a := open(t, url, adapter.Config{Durable: []string{"order.>"}})
			natsbus.Batches(a, c.batches)
			const n = 80
			errs := make([]error, n)
			natsbus.Held(a, n, n, func(i int) {
				m := order(strconv.Itoa(i), 10)
				if i%8 == 3 {
					m.Topic = "order.secret"
				}
				if !c.async {
					errs[i] = a.Publish(within(t), m, adapter.Durable)
					return
				}
				told := make(chan error, 1)
				if err := async(within(t), a, m, func(err error) { told <- err }); err != nil {
					t.Error(err)
				}
				errs[i] = <-told
			})
			for i, err := range errs {
				denied := err != nil && strings.Contains(err.Error(), `no permission to publish to "order.secret"`) && !errors.Is(err, adapter.ErrInDoubt)
				if denied != (i%8 == 3) || !denied && err != nil {
					t.Errorf("event %d: %v", i, err)
				}
			}
			ids, _ := storedIDs(t, all, "shop")
			once(t, ids, n-n/8)
		})
	}
}

// The same with a spool: what was accepted there is kept in a file.
func TestNoPermissionWithASpool(t *testing.T) {
	url, all, _ := guarded(t, "order.secret")
	dir := t.TempDir()
	a := open(t, url, spooling(dir))
	for i := range 20 {
		m := order(strconv.Itoa(i), 10)
		if i%10 == 3 {
			m.Topic = "order.secret"
		}
		if err := a.Publish(within(t), m, adapter.Spooled); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, patience, func() bool { return a.Stats().Spooled == 0 })
	if kept, err := filepath.Glob(filepath.Join(dir, "refused", "*")); err != nil || len(kept) != 2 {
		t.Errorf("kept: %q, %v", kept, err)
	}
	ids, _ := storedIDs(t, all, "shop")
	once(t, ids, 18)
}

// Without a permission of JetStream's API whoever needs it is told, by its name; those
// who publish do not need it, and go on.
func TestNoPermissionForTheAPI(t *testing.T) {
	url, all, _ := guarded(t, "$JS.API.CONSUMER.>", "$JS.API.STREAM.PURGE.>", "$JS.API.STREAM.UPDATE.>")
	a := open(t, url, adapter.Config{Durable: []string{"order.>"}})
	const n = 200
	natsbus.Held(a, n+1, n, func(i int) {
		if i < n {
			publish(t, a, adapter.Durable, strconv.Itoa(i), "order.placed")
			return
		}
		_, err := a.Subscribe(within(t), groupSpec(func(adapter.Delivery) {}))
		if err == nil || !strings.Contains(err.Error(), `no permission to publish to "$JS.API.CONSUMER.`) {
			t.Errorf("Subscribe: %v", err)
		}
	})
	ids, _ := storedIDs(t, all, "shop")
	once(t, ids, n)
}

// The stream was deleted, and this app may not make it again: nothing was accepted, and
// the error says so, for how long it was tried, and the way out. Once the stream is
// there, events are stored as before.
func TestNoStream(t *testing.T) {
	for name, batches := range map[string]bool{"singly": false, "in batches": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, all, _ := guarded(t, "$JS.API.STREAM.CREATE.>")
			js := jsClient(t, all)
			maker := open(t, all, adapter.Config{Durable: []string{"order.>"}})
			cfg := streamInfo(t, js, "shop").Config
			if err := maker.Close(); err != nil {
				t.Fatal(err)
			}
			a := open(t, url, adapter.Config{Durable: []string{"order.>"}})
			publish(t, a, adapter.Durable, "before", "order.placed")
			if err := js.DeleteStream(within(t), "shop"); err != nil {
				t.Fatal(err)
			}
			natsbus.Batches(a, batches)
			const n = 64
			errs, took := make([]error, n), make([]time.Duration, n)
			soon, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			natsbus.Held(a, n, n, func(i int) {
				began := time.Now()
				defer func() { took[i] = time.Since(began) }()
				m := order(strconv.Itoa(i), 10)
				if i%2 == 0 {
					errs[i] = a.Publish(soon, m, adapter.Durable)
					return
				}
				told := make(chan error, 1)
				if err := async(soon, a, m, func(err error) { told <- err }); err != nil {
					t.Error(err)
				}
				errs[i] = <-told
			})
			doubts := 0
			for i, err := range errs {
				if errors.Is(err, adapter.ErrInDoubt) {
					doubts++ // it was being tried again
					continue
				}
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "tidings apply") {
					t.Errorf("event %d: %v", i, err)
					continue
				}
				_, say, _ := strings.Cut(err.Error(), `no stream took "order.placed" for `)
				waited, bad := time.ParseDuration(say[:max(strings.Index(say, ":"), 0)])
				if bad != nil || waited < 900*time.Millisecond || waited > took[i]+time.Millisecond {
					t.Errorf("event %d took %v: %v", i, took[i], err)
				}
			}
			if doubts > 2 {
				t.Errorf("%d are in doubt", doubts)
			}
			if _, err := js.CreateStream(within(t), cfg); err != nil {
				t.Fatal(err)
			}
			publish(t, a, adapter.Durable, "after", "order.placed")
			ids, _ := storedIDs(t, all, "shop")
			for _, id := range ids {
				if i, err := strconv.Atoi(id); err == nil && !errors.Is(errs[i], adapter.ErrInDoubt) {
					t.Errorf("event %s is stored, and was told %v", id, errs[i])
				}
			}
			if len(ids) == 0 || ids[len(ids)-1] != "after" {
				t.Errorf("stored: %q", ids)
			}
		})
	}
}

// Of events that nobody waits for, those are told that the stream is full that it has
// no room for.
func TestAFullStreamTellsThoseThatDoNotFit(t *testing.T) {
	for name, batches := range map[string]bool{"singly": false, "in batches": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n, room = 64, 40
			srv := testkit.Server(t)
			a := open(t, srv.URL()+fmt.Sprint("?max-msgs=", room), adapter.Config{Durable: []string{"order.>"}})
			natsbus.Batches(a, batches)
			told := make([]chan error, n)
			natsbus.Held(a, n, n, func(i int) {
				told[i] = make(chan error, 1)
				if err := async(within(t), a, order(strconv.Itoa(i), 10), func(err error) { told[i] <- err }); err != nil {
					t.Error(err)
				}
			})
			refused := map[string]bool{}
			for i := range n {
				if err := <-told[i]; err != nil {
					refused[strconv.Itoa(i)] = true
					if !errors.Is(err, adapter.ErrFull) || !strings.Contains(err.Error(), "tidings apply") {
						t.Errorf("event %d: %v", i, err)
					}
				}
			}
			ids, _ := storedIDs(t, srv.URL(), "shop")
			if once(t, ids, room); len(refused) != n-room {
				t.Errorf("%d were refused", len(refused))
			}
			for _, id := range ids {
				if refused[id] {
					t.Errorf("event %s is stored, and was refused", id)
				}
			}
		})
	}
}

// Events that a full stream has refused, and for which it is found out whether there can
// be room, count among those that wait: their number is bounded, and each is told.
func TestRefusedEventsKeepTheirPlaces(t *testing.T) {
	srv := testkit.Server(t)
	a := open(t, srv.URL()+"?max-msgs=1", adapter.Config{Durable: []string{"order.>"}})
	publish(t, a, adapter.Durable, "first", "order.placed")
	natsbus.HoldKeeper(a)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, taken := make(chan error, 2*natsbus.MaxItems), 0
	var last error
	run := loop.Go(func(context.Context) {
		for ; last == nil && taken < 2*natsbus.MaxItems; taken++ {
			last = async(ctx, a, order(strconv.Itoa(taken), 10), func(err error) { told <- err })
		}
		taken--
	})
	testkit.Until(t, 3*patience, func() bool { return natsbus.Waiting(a) >= natsbus.MaxItems-1 })
	cancel()
	<-run.Done()
	if s := a.Stats(); taken != natsbus.MaxItems || s.Buffered != natsbus.MaxItems || !errors.Is(last, adapter.ErrFull) {
		t.Errorf("%d are taken, %d of them wait, and then: %v", taken, s.Buffered, last)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for range taken {
		select {
		case err := <-told:
			if err == nil {
				t.Fatal("one was accepted")
			}
		case <-time.After(patience):
			t.Fatal("not all were told")
		}
	}
}
