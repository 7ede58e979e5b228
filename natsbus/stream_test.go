package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
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

// Two apps that declare topics in common share a stream when one has all that
// the other declares; else the conflict names both.
func TestTwoAppsClaimingOneSubject(t *testing.T) {
	for _, c := range []struct {
		name, first, second string
		want                []string // parts of the error; none: they share
	}{
		{"equal", "order.>", "order.>", nil},
		{"narrower", "order.>", "order.placed", nil},
		{"narrower with a wildcard", "order.>", "order.*", nil},
		{"apart", "order.>", "invoice.>", nil},
		{"wider", "order.placed", "order.>", []string{`durable route "order.>"`, "stream one of app one", "(order.placed)", "stream two"}},
		{"wider by a wildcard", "order.placed", "*.placed", []string{"stream one of app one", "stream two"}},
		{"partly", "order.*", "*.placed", []string{`durable route "*.placed"`, "stream one of app one", "(order.*)", "stream two"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := testkit.Server(t)
			one := open(t, srv.URL(), adapter.Config{App: "one", Durable: []string{c.first}})
			two, err := natsbus.Open(within(t), srv.URL(), adapter.Config{App: "two", Durable: []string{c.second}})
			if err == nil {
				defer func() { _ = two.Close() }()
			}
			if (err == nil) != (c.want == nil) {
				t.Fatalf("Open: %v", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %s: %v", part, err)
				}
			}
			if c.want == nil && c.second == "order.placed" {
				publish(t, two, adapter.Durable, "1", "order.placed")
				publish(t, one, adapter.Durable, "2", "order.placed")
				if n := streamInfo(t, jsClient(t, srv.URL()), "one").State.Msgs; n != 2 {
					t.Errorf("the stream of the first has %d events", n)
				}
			}
		})
	}
}

// A version that declares more makes its stream wider; one that declares less
// changes nothing, for the other may still run.
func TestRoutesChangeBetweenVersions(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	subjects := func() []string { return streamInfo(t, js, "shop").Config.Subjects }
	old := open(t, srv.URL(), adapter.Config{Durable: []string{"order.placed"}})
	publish(t, old, adapter.Durable, "1", "order.placed")
	open(t, srv.URL(), adapter.Config{Durable: []string{"order.>", "invoice.*"}})
	if s := subjects(); !slices.Equal(s, []string{"order.>", "invoice.*"}) {
		t.Errorf("a wider version left %v", s)
	}
	open(t, srv.URL(), adapter.Config{Durable: []string{"order.placed"}})
	if s := subjects(); !slices.Equal(s, []string{"order.>", "invoice.*"}) {
		t.Errorf("a narrower version left %v", s)
	}
	if n := streamInfo(t, js, "shop").State.Msgs; n != 1 {
		t.Errorf("%d events are left of 1", n)
	}
}

func TestWhatAStreamIsMadeWith(t *testing.T) {
	srv := testkit.Server(t)
	open(t, srv.URL()+"?max-bytes=32MiB&max-msgs=1000&duplicates=5m", adapter.Config{App: "Shop", Prefix: "staging.eu", Durable: []string{"order.>"}})
	cfg := streamInfo(t, jsClient(t, srv.URL()), "staging_eu_Shop").Config
	if cfg.Storage != jetstream.FileStorage || cfg.Retention != jetstream.LimitsPolicy || cfg.Discard != jetstream.DiscardNew || cfg.Replicas != 1 ||
		cfg.MaxBytes != 32<<20 || cfg.MaxMsgs != 1000 || cfg.MaxAge != 0 || cfg.Duplicates != 5*time.Minute || !slices.Equal(cfg.Subjects, []string{"staging.eu.order.>"}) {
		t.Errorf("%+v", cfg)
	}
	for _, bad := range []string{"max-bytes=lots", "max-msgs=-1", "replicas=9", "duplicates=1", "manage=perhaps", "ack-wait=1s", "max-byte=1GiB"} {
		_, err := natsbus.Open(within(t), srv.URL()+"?"+bad, adapter.Config{App: "shop"})
		if key, _, _ := strings.Cut(bad, "="); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	_, err := natsbus.Open(within(t), srv.URL()+"?max-byte=1GiB", adapter.Config{App: "shop"})
	if err == nil || !strings.Contains(err.Error(), `did you mean "max-bytes"?`) {
		t.Error(err)
	}
	empty := testkit.Server(t).URL()
	_, err = natsbus.Open(within(t), empty, adapter.Config{App: "all", Durable: []string{">"}})
	if err == nil || !strings.Contains(err.Error(), "Options.Prefix") {
		t.Errorf("a route that takes all: %v", err)
	}
	all := open(t, empty, adapter.Config{App: "all", Prefix: "dev", Durable: []string{">"}})
	publish(t, all, adapter.Durable, "1", "any.thing")
}

// count counts what is said on subjects, also after a restart of the broker.
func count(t *testing.T, url string, subjects ...string) *atomic.Int64 {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var n atomic.Int64
	for _, subject := range subjects {
		if _, err := nc.Subscribe(subject, func(*nats.Msg) { n.Add(1) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return &n
}

// Settings that can be changed are changed by who says manage=true, once, at its
// start; versions that disagree do not undo each other's. Others only say what
// differs.
func TestSettingsChangeBetweenVersions(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	var log logged
	version := func(params string) adapter.Adapter {
		cfg := log.config()
		cfg.App, cfg.Durable = "shop", []string{"order.>"}
		a, err := natsbus.Open(within(t), srv.URL()+params, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Close() })
		return a
	}
	limit := func() int64 { return streamInfo(t, js, "shop").Config.MaxBytes }
	version("?max-bytes=32MiB&manage=true")
	version("?max-bytes=64MiB")
	if limit() != 32<<20 {
		t.Errorf("the limit was changed to %d without manage", limit())
	}
	for _, part := range []string{"max_bytes is 32MiB, should be 64MiB", "tidings apply", "manage=true"} {
		if !log.has(part) {
			t.Errorf("the log does not say %s", part)
		}
	}
	changes := count(t, srv.URL(), "$JS.API.STREAM.UPDATE.>")
	version("?max-bytes=64MiB&manage=true")
	version("") // no opinion
	if limit() != 64<<20 {
		t.Errorf("the limit is %d", limit())
	}
	// Versions of both opinions run on, look after the stream, lose the broker.
	for range 3 {
		srv.Restart()
		a := version("")
		publish(t, a, adapter.Durable, "1", "order.placed")
	}
	if limit() != 64<<20 {
		t.Errorf("a version that runs on has set the limit back to %d", limit())
	}
	if n := changes.Load(); n != 1 {
		t.Errorf("%d changes", n)
	}
}

// What cannot be changed is an error that puts both side by side.
func TestImmutableDifferences(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "shop", Subjects: []string{"order.>"}, Storage: jetstream.MemoryStorage, Retention: jetstream.WorkQueuePolicy}); err != nil {
		t.Fatal(err)
	}
	for _, params := range []string{"", "?manage=true"} {
		_, err := natsbus.Open(within(t), srv.URL()+params, adapter.Config{App: "shop", Durable: []string{"order.>"}})
		if err == nil {
			t.Fatal("opened")
		}
		for _, part := range []string{"stream shop", "storage is Memory, should be File", "retention is WorkQueue, should be Limits", "nats stream rm shop"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error does not say %s: %v", part, err)
			}
		}
	}
	// One that somebody made for the same subjects may lose events: that is said.
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "HAND", Subjects: []string{"hand.>"}, MaxAge: time.Hour}); err != nil {
		t.Fatal(err)
	}
	var log logged
	cfg := log.config()
	cfg.Durable = []string{"hand.>"}
	a, err := natsbus.Open(within(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	for _, part := range []string{"HAND", "max_age is 1h0m0s, should be unlimited", "discard is DiscardOld, should be DiscardNew"} {
		if !log.has(part) {
			t.Errorf("the log does not say %s", part)
		}
	}
}

// A subscriber that declares the route may come first; one that does not is told
// how.
func TestSubscriberBeforePublisher(t *testing.T) {
	srv := testkit.Server(t)
	lone := open(t, srv.URL(), adapter.Config{App: "lone"})
	in := newLagging(0)
	spec := adapter.Spec{Pattern: "order.placed", Group: "billing", Durable: true, Deliver: in.deliver}
	_, err := lone.Subscribe(within(t), spec)
	if !errors.Is(err, adapter.ErrNotDurable) || !strings.Contains(err.Error(), "TIDINGS_ROUTES='order.placed=durable'") {
		t.Errorf("nobody has declared it: %v", err)
	}
	billing := open(t, srv.URL(), adapter.Config{App: "billing", Durable: []string{"order.>"}})
	sub := subscribe(t, billing, spec)
	shop := open(t, srv.URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	for n := range 10 {
		publish(t, shop, adapter.Durable, fmt.Sprint(n), "order.placed")
	}
	in.until(t, 10)
	// Now that it is there, whoever comes needs no route.
	late := newLagging(0)
	spec.Group, spec.Deliver = "late", late.deliver
	subscribe(t, lone, spec)
	late.until(t, 10)
	// And if it is deleted, who declares it makes it again, for subscribers too.
	js := jsClient(t, srv.URL())
	if err := errors.Join(sub.Close(within(t)), js.DeleteStream(within(t), "billing")); err != nil {
		t.Fatal(err)
	}
	spec.Group = "again"
	subscribe(t, billing, spec)
}

// Processes of two versions with different settings of the consumer run side by
// side: the one that subscribed last has its way, nothing is undone at any later
// look, and no event is handed to both though one takes long.
func TestConsumerSettingsInARollingDeploy(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	created := count(t, srv.URL(), "$JS.API.CONSUMER.CREATE.>")
	shop := open(t, srv.URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	both := newLagging(20) // twenty events take as long as the test does
	version := func(wait string, inFlight int) (adapter.Adapter, adapter.Subscription) {
		a := open(t, srv.URL()+"?ack-wait="+wait, adapter.Config{App: "billing"})
		s := subscribe(t, a, adapter.Spec{Pattern: "order.>", Group: "billing", Durable: true, MaxInFlight: inFlight, Deliver: both.deliver})
		if err := s.Ready(within(t)); err != nil {
			t.Fatal(err)
		}
		return a, s
	}
	ackWait := func() time.Duration {
		s, err := js.Stream(within(t), "shop")
		if err != nil {
			t.Fatal(err)
		}
		names := s.ConsumerNames(within(t))
		name := <-names.Name()
		c, err := s.Consumer(within(t), name)
		if err != nil {
			t.Fatal(err)
		}
		return c.CachedInfo().Config.AckWait
	}
	_, s1 := version("30s", 10)
	n := 0
	send := func() {
		for range 50 {
			publish(t, shop, adapter.Durable, fmt.Sprint(n), "order.placed")
			n++
		}
	}
	send()
	_, s2 := version("4s", 300)
	if d := ackWait(); d != 4*time.Second {
		t.Errorf("the new version's ack wait is %v", d)
	}
	for range 3 {
		srv.Restart()
		send()
		both.until(t, n)
	}
	if d := ackWait(); d != 4*time.Second {
		t.Errorf("the old version has set the ack wait back to %v", d)
	}
	if k := created.Load(); k != 2 { // one created it, one changed it
		t.Errorf("the consumer was created or changed %d times", k)
	}
	// Longer than the shorter wait: the older version must not let it pass.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	<-ctx.Done()
	both.setLag(0)
	for _, s := range []adapter.Subscription{s1, s2} {
		if err := s.Close(within(t)); err != nil {
			t.Error(err)
		}
	}
	both.once(t, "billing", n)
}

// denied is the URL of a broker for a user who may not publish to a subject.
func denied(t *testing.T, subject string) string {
	t.Helper()
	url := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{subject}}}}}
	}).URL()
	return strings.Replace(url, "nats://", "nats://u:p@", 1)
}

// Missing permissions are errors at once, and name the subject.
func TestMissingPermissionOfJetStream(t *testing.T) {
	for _, c := range []struct{ deny, want string }{
		{"$JS.API.STREAM.LIST", "$JS.API.STREAM.LIST"},
		{"$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.CREATE.shop"},
		{"$JS.API.STREAM.INFO.>", "$JS.API.STREAM.INFO.shop"},
		{"$JS.API.CONSUMER.INFO.>", "$JS.API.CONSUMER.INFO.shop."},
		{"$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.CREATE.shop."},
		{"$JS.API.CONSUMER.MSG.NEXT.>", "$JS.API.CONSUMER.MSG.NEXT.shop."},
	} {
		url := denied(t, c.deny)
		began := time.Now()
		a, err := natsbus.Open(within(t), url, adapter.Config{App: "shop", Durable: []string{"order.>"}})
		if err == nil {
			_, err = a.Subscribe(within(t), adapter.Spec{Pattern: "order.>", Group: "g", Durable: true, Deliver: func(adapter.Delivery) {}})
			_ = a.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "no permission") {
			t.Errorf("%s is denied: %v", c.deny, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%s is denied: it took %v", c.deny, d)
		}
	}
}

// Processes of one app that start at the same moment with different routes
// overwrite each other's change of the stream; that heals by itself.
func TestManyStartAtOnce(t *testing.T) {
	srv := testkit.Server(t)
	const n = 8
	opened := make(chan adapter.Adapter, n)
	for i := range n {
		loop.Go(func(ctx context.Context) {
			a, err := natsbus.Open(ctx, srv.URL(), adapter.Config{App: "shop", Durable: []string{fmt.Sprintf("topic%d.>", i)}})
			if err != nil {
				t.Error(err)
			}
			opened <- a
		})
	}
	for range n {
		if a := <-opened; a != nil {
			t.Cleanup(func() { _ = a.Close() })
		}
	}
	p := open(t, srv.URL(), adapter.Config{App: "other"})
	for i := range n {
		publish(t, p, adapter.Durable, fmt.Sprint(i), fmt.Sprintf("topic%d.x", i))
	}
}

// The permissions that docs/streams.md lists are enough.
func TestPermissionsThatSuffice(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) {
		allow := []string{"order.>", "$JS.ACK.>"}
		for _, op := range []string{"STREAM.LIST", "STREAM.INFO.>", "STREAM.CREATE.>", "STREAM.UPDATE.>", "STREAM.PURGE.>", "STREAM.MSG.GET.>",
			"CONSUMER.INFO.>", "CONSUMER.NAMES.>", "CONSUMER.CREATE.>", "CONSUMER.MSG.NEXT.>"} {
			allow = append(allow, "$JS.API."+op)
		}
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: allow}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}}}}
	}).URL()
	var log logged
	cfg := log.config()
	cfg.Durable = []string{"order.placed"}
	user := strings.Replace(url, "nats://", "nats://u:p@", 1) + "?max-msgs=20"
	first, err := natsbus.Open(within(t), user, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	cfg.Durable = []string{"order.>"}
	a, err := natsbus.Open(within(t), user, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	in := newLagging(0)
	subscribe(t, a, adapter.Spec{Pattern: "order.refunded", Group: "few", Durable: true, Deliver: in.deliver})
	sub := subscribe(t, a, adapter.Spec{Pattern: "order.placed", Group: "g", Durable: true, Deliver: in.deliver})
	for n := range 50 {
		publish(t, a, adapter.Durable, fmt.Sprint(n), "order.placed")
		in.until(t, n+1)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	if log.has("permission") {
		t.Error("a permission was missing")
	}
}
