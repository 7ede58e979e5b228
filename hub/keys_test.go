package hub

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/natsbus"
)

func seedFile(t *testing.T) (file, public string) {
	t.Helper()
	kp, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = kp.PublicKey(); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "seed")
	write(t, file, string(seed))
	return file, public
}

// Users with keys need no secret of the hub's; two keys allow to change them without a
// gap.
func TestUsersWithKeys(t *testing.T) {
	one, public1 := seedFile(t)
	two, public2 := seedFile(t)
	dir := t.TempDir()
	h := mustStart(t, Options{Dir: dir, Users: usersFile(t, "shop nkey "+public1+", "+public2+"; may publish order.>; may subscribe order.>")})
	if _, err := filepath.Glob(filepath.Join(dir, "users", "shop")); err != nil || !strings.Contains(urlOf(t, h, "shop"), "nkey=") {
		t.Error("the URL is", urlOf(t, h, "shop"))
	}
	for _, query := range []string{"?nkey=" + one, "?nkey=" + two + "&inbox=_INBOX.shop"} {
		p := run(t, h.bareURL()+query, "shop", tidings.Options{Routes: durable("order.>")})
		got := make(chan string, 10)
		s, err := p.Subscribe(within(t), "order.>", func(_ context.Context, e tidings.Event) error { got <- e.ID(); return nil }, &tidings.SubscribeOptions{Durable: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(within(t), "order.placed", 1); err != nil {
			t.Fatal(err)
		}
		received(t, got)
		if err := s.Drain(within(t)); err != nil {
			t.Error(err)
		}
	}
	three, _ := seedFile(t)
	_, err := tidings.Open(within(t), h.bareURL()+"?nkey="+three, tidings.Options{App: "shop", Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "users file") {
		t.Errorf("a key that is not allowed: %v", err)
	}
}

// Who owns a stream may read it, to look up what is in doubt.
func TestOwnersReadTheirStream(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, "shop may publish order.>")})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Routes: durable("order.>")})
	if err := shop.Publish(within(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	name, secret, _ := strings.Cut(strings.TrimSpace(mustRead(t, h.dir.userFile("shop"))), ":")
	nc, err := nats.Connect("nats://"+h.addr, nats.UserInfo(name, secret), nats.CustomInboxPrefix("_INBOX.shop"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.CreateConsumer(within(t), "shop", jetstream.ConsumerConfig{Name: "tidings-read-x", FilterSubject: ">", AckPolicy: jetstream.AckNonePolicy})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Next(jetstream.FetchMaxWait(patience)); err != nil || m.Subject() != "order.placed" {
		t.Errorf("it reads %v, %v", m, err)
	}
	if err := js.DeleteConsumer(within(t), "shop", "tidings-read-x"); err != nil {
		t.Error(err)
	}
}

// What a tool redrives reaches a group that may not change its consumer, and the group
// comes up again when that is gone.
func TestRedrivingToARestrictedGroup(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, "shop may publish order.>\nbilling may subscribe order.>")})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Routes: durable("order.>")})
	got := make(chan string, 10)
	billing := func(fails bool) *process {
		p := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{})
		_, err := p.Subscribe(within(t), "order.>", func(_ context.Context, e tidings.Event) error {
			if fails {
				return tidings.Permanent(errors.New("never"))
			}
			got <- e.Topic()
			return nil
		}, &tidings.SubscribeOptions{Durable: true})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := billing(true)
	if err := shop.Publish(within(t), "order.bad", 1); err != nil {
		t.Fatal(err)
	}
	letters(t, h, "", 1)
	if err := first.Drain(within(t)); err != nil {
		t.Error(err)
	}
	store, err := deadletter.Open(within(t), h.URL(), deadletter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if n, err := store.Redrive(within(t), deadletter.Selection{Group: "billing"}, deadletter.Action{}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	second := billing(false)
	if topic := received(t, got); topic != "order.bad" {
		t.Errorf("%s came", topic)
	}
	if err := second.Drain(within(t)); err != nil {
		t.Error(err)
	}

	a, err := natsbus.OpenAdmin(within(t), h.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	groups, err := a.Find(within(t), "billing", "order.>")
	if err == nil {
		err = a.Forget(within(t), groups[0], true)
	}
	if err != nil {
		t.Fatal(err)
	}
	billing(false)
	if err := shop.Publish(within(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	for received(t, got) != "order.placed" {
	}
}
