package natsbus_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

func admin(t *testing.T, url, prefix string) *natsbus.Admin {
	t.Helper()
	a, err := natsbus.OpenAdmin(within(t), url, adapter.Config{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// A process tells of groups of its own app that nobody takes from, and of no
// others; none is removed.
func TestOrphansAreReported(t *testing.T) {
	srv := testkit.Server(t)
	shop := open(t, srv.URL(), adapter.Config{App: "shop", Prefix: "dev", Durable: []string{"order.>"}})
	var log logged
	cfg := log.config()
	cfg.App, cfg.Prefix = "billing", "dev"
	old, err := natsbus.Open(within(t), srv.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	in := newLagging(0)
	spec := func(group, pattern string) adapter.Spec {
		return adapter.Spec{Pattern: pattern, Group: group, Durable: true, Deliver: in.deliver}
	}
	subscribe(t, old, spec("billing", "order.placed"))
	subscribe(t, open(t, srv.URL(), adapter.Config{App: "audit", Prefix: "dev"}), spec("audit", "order.audited"))
	gone := subscribe(t, old, spec("billing", "order.old"))
	others := open(t, srv.URL(), adapter.Config{App: "away", Prefix: "dev"})
	away := subscribe(t, others, spec("away", "order.away"))
	if err := errors.Join(gone.Close(within(t)), away.Close(within(t))); err != nil {
		t.Fatal(err)
	}
	publish(t, shop, adapter.Durable, "1", "order.old")
	if err := natsbus.ReportOrphans(within(t), old); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"stream=dev_shop", "group=billing", "pattern=order.old", "waiting=1", "tidings streams forget"} {
		if !log.has(part) {
			t.Errorf("the log does not say %s", part)
		}
	}
	for _, part := range []string{"pattern=order.placed waiting", "pattern=order.audited", "pattern=order.away"} {
		if log.has(part) {
			t.Errorf("the log says %s", part)
		}
	}
	_ = old.Close()
	states, err := admin(t, srv.URL(), "dev").Streams(within(t))
	if err != nil || len(states) != 1 || len(states[0].Groups) != 4 {
		t.Errorf("the groups are now %+v, %v", states, err)
	}
}

// What is applied is what was planned; a conflict or what cannot be changed
// leaves everything as it was.
func TestPlanAndApply(t *testing.T) {
	srv := testkit.Server(t)
	js := jsClient(t, srv.URL())
	a := admin(t, srv.URL(), "")
	d := natsbus.Declaration{App: "shop", Durable: []string{"order.>"}, Settings: natsbus.Settings{MaxMsgs: 10}}
	if p, err := a.Plan(within(t), d); err != nil || !p.Create || !p.Change() {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := js.Stream(within(t), "shop"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("planning has made the stream: %v", err)
	}
	// One made by hand under the app's name becomes what the promises need.
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "shop", Subjects: []string{"order.>"}, Discard: jetstream.DiscardOld, MaxMsgsPerSubject: 1, Retention: jetstream.InterestPolicy}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Apply(within(t), d); err != nil {
		t.Fatal(err)
	}
	cfg := streamInfo(t, js, "shop").Config
	if cfg.Discard != jetstream.DiscardNew || cfg.Retention != jetstream.LimitsPolicy || cfg.MaxMsgsPerSubject > 0 || cfg.MaxMsgs != 10 {
		t.Errorf("%+v", cfg)
	}
	if p, err := a.Plan(within(t), d); err != nil || p.Change() {
		t.Errorf("after Apply: %+v, %v", p, err)
	}
	_, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "fixed", Subjects: []string{"f.>"}, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	d = natsbus.Declaration{App: "fixed", Durable: []string{"f.>", "g.>"}}
	p, err := a.Plan(within(t), d)
	if err != nil || p.Fixed() == nil || !strings.Contains(p.Fixed().Error(), "storage is Memory, should be File") {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := a.Apply(within(t), d); err == nil || len(streamInfo(t, js, "fixed").Config.Subjects) != 1 {
		t.Errorf("Apply: %v", err)
	}
}

func TestReadDeclarations(t *testing.T) {
	got, err := natsbus.ReadDeclarations("f", strings.NewReader("\n[shop] # one\nmax-bytes= 2KiB\n durable = a.> , b\tc\nfixed=yes\nreplicas=3\n[b]\ndurable=x\n"))
	if want := "[{shop [a.> b c] true {2048 0 3 0s}} {b [x] false {0 0 0 0s}}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	for text, want := range map[string]string{
		"":                                  "f: nothing is declared",
		"[shop":                             "f:1: ",
		"[a b]":                             "f:1: ",
		"[shop]\ndurable":                   "f:2: ",
		"[shop]\nreplicas=0":                "f:2: replicas",
		"[shop]\n\nmax-msg=1":               `f:3: unknown key "max-msg"; did you mean "max-msgs"?`,
		"[shop]\nretention=7":               `f:2: unknown key "retention"; known are durable, fixed, max-bytes`,
		"[shop]\ndurable=a\ndurable=b":      "f:3: durable is there already",
		"[shop]\nmax-bytes=9999999999TiB\n": "f:2: max-bytes",
	} {
		if _, err := natsbus.ReadDeclarations("f", strings.NewReader(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}
