package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// patience is far above what anything here needs.
const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// urlOf is what a user's programs are given.
func urlOf(t *testing.T, h *Hub, user string) string {
	t.Helper()
	for _, u := range h.Users() {
		if u.Name == user {
			return u.URL
		}
	}
	t.Fatalf("the hub has no user %s", user)
	return ""
}

// process is an application's; what it was told without having asked is in errs.
type process struct {
	*tidings.Bus
	log  logBuffer
	mu   sync.Mutex
	errs []error
}

func (p *process) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all strings.Builder
	for _, err := range p.errs {
		fmt.Fprintln(&all, err)
	}
	return all.String()
}

func run(t *testing.T, url, app string, o tidings.Options) *process {
	t.Helper()
	p := &process{}
	o.App, o.Logger = app, slog.New(slog.NewTextHandler(&p.log, nil))
	o.OnError = func(_ context.Context, err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.errs = append(p.errs, err)
	}
	b, err := tidings.Open(within(t), url, o)
	if err != nil {
		t.Fatal(err)
	}
	p.Bus = b
	t.Cleanup(func() { _ = b.Close() })
	return p
}

func durable(patterns ...string) (routes []tidings.Route) {
	for _, p := range patterns {
		routes = append(routes, tidings.Route{Pattern: p, Class: tidings.Durable})
	}
	return append(routes, tidings.Route{Pattern: ">", Class: tidings.Live})
}

func received[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatal("nothing arrived")
	}
	return v
}

// What a shop and a billing need of each other is all that they may, and it works:
// live, in a group, by request, durable with retries and dead letters, delayed.
func TestUsersMayWhatIsDeclared(t *testing.T) {
	const text = "shop may publish order.>, cart.>, price.of\nbilling may subscribe order.>, cart.>, price.of\n"
	t.Run("no prefix", func(t *testing.T) { mayWhatIsDeclared(t, "", text, false) })
	t.Run("prefix", func(t *testing.T) { mayWhatIsDeclared(t, "staging", "prefix staging\n"+text, false) })
	t.Run("fixed streams", func(t *testing.T) {
		mayWhatIsDeclared(t, "", text+"shop may not change streams\nbilling may not change streams", true)
	})
}

func mayWhatIsDeclared(t *testing.T, prefix, text string, fixed bool) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, text)})
	if fixed {
		apply(t, h, "[shop]\ndurable = order.>\nfixed = yes", "tidings-dead-all", "tidings-later-shop")
	}
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Prefix: prefix, Routes: durable("order.>")})
	billing := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{Prefix: prefix, Routes: durable("order.>")})
	subscribe := func(pattern string, o *tidings.SubscribeOptions, handle tidings.Handler) {
		t.Helper()
		if _, err := billing.Subscribe(within(t), pattern, handle, o); err != nil {
			t.Fatal(err)
		}
	}
	live, all := make(chan string, 10), make(chan string, 10)
	subscribe("cart.added", nil, func(_ context.Context, e tidings.Event) error { live <- e.Topic(); return nil })
	subscribe("cart.*", &tidings.SubscribeOptions{Broadcast: true}, func(_ context.Context, e tidings.Event) error { all <- e.Topic(); return nil })
	subscribe("price.of", nil, func(ctx context.Context, e tidings.Event) error { return tidings.Reply(ctx, 42) })
	tries, died := make(chan int, 10), make(chan string, 10)
	subscribe("order.>", &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Backoff: time.Millisecond, MaxBackoff: time.Millisecond}},
		func(_ context.Context, e tidings.Event) error {
			switch tries <- e.Attempt(); {
			case e.Topic() == "order.bad":
				return tidings.Permanent(errors.New("never"))
			case e.Attempt() < 3:
				return errors.New("not yet")
			}
			died <- e.Topic()
			return nil
		})
	for topic, payload := range map[string]any{"cart.added": 1, "order.placed": 2, "order.bad": 3} {
		if err := shop.Publish(within(t), topic, payload); err != nil {
			t.Fatal(err)
		}
	}
	received(t, live)
	received(t, all)
	if got := received(t, died); got != "order.placed" {
		t.Errorf("%s was handled", got)
	}
	for range 4 { // three of the one, one of the other
		received(t, tries)
	}
	if e, err := shop.Request(within(t), "price.of", 21); err != nil {
		t.Error(err)
	} else if n := 0; e.Decode(&n) != nil || n != 42 {
		t.Errorf("the reply is %d", n)
	}
	e := tidings.NewEvent(tidings.EventFields{Topic: "order.later", Payload: 1, NotBefore: time.Now().Add(time.Second)})
	if err := shop.PublishEvent(within(t), e); err != nil {
		t.Error("a delayed event:", err)
	}
	for received(t, tries) != 3 { // it came, and was tried as often as others are
	}
	letters(t, h, prefix, 1)
	for name, p := range map[string]*process{"shop": shop, "billing": billing} {
		if all := p.log.String(); strings.Contains(all, "no permission") || strings.Contains(all, "without permission") || strings.Contains(all, "allow publishing") {
			t.Errorf("%s lacks a permission:\n%s", name, all)
		}
	}
}

// apply declares streams, and expects these to be made besides; once.
func apply(t *testing.T, h *Hub, text string, beside ...string) {
	t.Helper()
	declared, err := natsbus.ReadDeclarations("streams.conf", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	a, err := natsbus.OpenAdmin(within(t), h.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	p, err := a.Apply(within(t), declared[0])
	if err != nil || !slices.Equal(p.Beside, beside) {
		t.Fatalf("besides were made %q: %v", p.Beside, err)
	}
	if p, err := a.Plan(within(t), declared[0]); err != nil || p.Change() {
		t.Fatalf("then there is still to do %+v: %v", p, err)
	}
}

// letters waits until so many events have died.
func letters(t *testing.T, h *Hub, prefix string, want int) {
	t.Helper()
	store, err := deadletter.Open(within(t), h.URL(), deadletter.Options{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	testkit.Until(t, patience, func() bool {
		n := 0
		for _, err := range store.List(within(t), deadletter.Selection{}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n == want
	})
}

// What is not declared is refused, with an error that names the subject.
func TestUsersMayNoMore(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, `
shop may publish order.>
billing may subscribe order.>; may publish billing.>
audit may subscribe order.>, order.*`)})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Routes: durable("order.>")})
	billing := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{Routes: durable("billing.>")})
	forger := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{Routes: durable()})
	audit := run(t, urlOf(t, h, "audit"), "billing", tidings.Options{Routes: durable()}) // it says that it is billing
	nothing := func(context.Context, tidings.Event) error { return nil }
	if _, err := billing.Subscribe(within(t), "order.>", nothing, &tidings.SubscribeOptions{Durable: true}); err != nil {
		t.Fatal(err)
	}
	wantDenied := func(what string, err error, subject string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), subject) || !strings.Contains(err.Error(), "no permission") {
			t.Errorf("%s: %v; want one that names %s", what, err, subject)
		}
	}
	_, err := shop.Subscribe(within(t), "billing.>", nothing, nil)
	wantDenied("shop subscribes to billing.>", err, "billing.>")
	_, err = shop.Subscribe(within(t), "billing.>", nothing, &tidings.SubscribeOptions{Durable: true})
	wantDenied("shop subscribes to billing.>, durable", err, "$JS.API.CONSUMER.CREATE.billing.")
	_, err = audit.Subscribe(within(t), "order.>", nothing, &tidings.SubscribeOptions{Durable: true})
	wantDenied("audit takes from billing's group", err, "$JS.API.CONSUMER.MSG.NEXT.shop.billing-order")
	_, err = audit.Subscribe(within(t), "order.>", nothing, nil)
	wantDenied("audit is a member of billing's live group", err, "order.>")
	_, err = billing.Subscribe(within(t), "order.placed", nothing, &tidings.SubscribeOptions{Durable: true})
	wantDenied("billing has a place that is not declared", err, "$JS.API.CONSUMER.CREATE.shop.billing-order_placed")
	_, err = tidings.Open(within(t), urlOf(t, h, "audit"), tidings.Options{App: "audit", Logger: quiet(), Routes: durable("invoice.>")})
	wantDenied("audit makes a stream", err, "$JS.API.STREAM.CREATE.audit")

	// Live, the answer comes later, and to nobody.
	if err := forger.Publish(within(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { return strings.Contains(forger.told(), `no permission to publish to "order.placed"`) })
	forger2 := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{Routes: durable("order.>")})
	wantDenied("billing publishes order.placed, durable", forger2.Publish(within(t), "order.placed", 1), `"order.placed"`)
	if n := missedBy(t, h, "shop"); n != 0 {
		t.Errorf("the stream has %d events", n)
	}
}

// missedBy is how many events a stream has.
func missedBy(t *testing.T, h *Hub, stream string) uint64 {
	t.Helper()
	a, err := natsbus.OpenAdmin(within(t), h.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	all, err := a.Streams(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Name == stream {
			return s.Messages
		}
	}
	t.Fatalf("there is no stream %s", stream)
	return 0
}

// raw is a connection of a user that does not keep to what natsbus does.
func raw(t *testing.T, h *Hub, user string) (nc *nats.Conn, refused func(subject string) bool) {
	t.Helper()
	var mu sync.Mutex
	var said strings.Builder
	name, secret, _ := strings.Cut(strings.TrimSpace(mustRead(t, h.dir.userFile(user))), ":")
	nc, err := nats.Connect("nats://"+h.addr, nats.UserInfo(name, secret), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(&said, err)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, func(subject string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(said.String(), fmt.Sprintf("%q", subject))
	}
}

// Who speaks NATS by hand gets no further.
func TestUsersMayNoMoreByHand(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, `
shop may publish order.>; may subscribe order.one.*
billing may subscribe order.>
fixed may publish item.>; may not change streams`)})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Routes: durable("order.>")})
	billing := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{})
	if _, err := billing.Subscribe(within(t), "order.>", func(context.Context, tidings.Event) error { return nil }, &tidings.SubscribeOptions{Durable: true}); err != nil {
		t.Fatal(err)
	}
	_ = shop
	consumer := ""
	for _, s := range streams(t, h) {
		for _, g := range s.Groups {
			consumer = g.Consumer
		}
	}
	for user, subjects := range map[string][]string{
		"shop": {"$JS.API.CONSUMER.MSG.NEXT.shop." + consumer, "$JS.API.CONSUMER.DELETE.shop." + consumer, "$JS.API.CONSUMER.CREATE.shop." + consumer,
			"$JS.API.CONSUMER.CREATE.shop." + consumer + ".order.>", "$JS.ACK.shop." + consumer + ".1.1.1.1.0", "$JS.API.STREAM.DELETE.shop",
			"$JS.API.STREAM.CREATE.other", "_INBOX.billing.x", "$TIDINGS.dead.all.shop.1.1." + consumer, "$JS.API.STREAM.MSG.GET.tidings-dead-all"},
		"billing": {"$JS.API.CONSUMER.CREATE.shop." + consumer, "$JS.API.CONSUMER.CREATE.shop.mine.order.>", "$JS.API.STREAM.CREATE.billing", "$JS.API.STREAM.PURGE.shop",
			"$JS.API.STREAM.MSG.GET.shop", "$JS.API.DIRECT.GET.shop", "order.placed", "_INBOX.shop.x", "$TIDINGS.to.shop." + consumer + ".order.placed"},
		"fixed": {"$JS.API.STREAM.CREATE.fixed", "$JS.API.STREAM.UPDATE.fixed", "$JS.API.STREAM.CREATE.tidings-later-fixed"},
	} {
		nc, refused := raw(t, h, user)
		for _, s := range subjects {
			if err := nc.Publish(s, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, patience, func() bool { return refused(s) })
		}
		for _, s := range []string{"_INBOX.>", "_INBOX.other.>", ">", "$JS.>", "*.*", "order"} {
			if _, err := nc.SubscribeSync(s); err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, patience, func() bool { return refused(s) })
		}
	}
	nc, refused := raw(t, h, "shop")
	for _, s := range []string{"order.>", "order.*.*", "*.one.*"} {
		if _, err := nc.SubscribeSync(s); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, patience, func() bool { return refused(s) })
	}
}

// nats-server lets who may have order.one.* subscribe to order.one.>, too; what is
// deeper does not come all the same.
func TestAStarIsOneToken(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, `
shop may subscribe order.one.*
both may subscribe order.*, order.two.three`)})
	admin, _ := raw(t, h, "admin")
	for user, c := range map[string]struct{ pattern, deep, plain string }{
		"shop": {"order.one.>", "order.one.a.b", "order.one.a"},
		"both": {"order.two.three", "order.one", "order.two.three"},
	} {
		nc, _ := raw(t, h, user)
		sub, err := nc.SubscribeSync(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(nc.Flush(), admin.Publish(c.deep, nil), admin.Publish(c.plain, nil)); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.NextMsg(patience); err != nil || m.Subject != c.plain {
			t.Errorf("%s got %v, %v; want %s", user, m, err, c.plain)
		}
	}
}

func streams(t *testing.T, h *Hub) []natsbus.StreamState {
	t.Helper()
	a, err := natsbus.OpenAdmin(within(t), h.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	all, err := a.Streams(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
