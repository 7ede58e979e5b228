package natsbus_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

var orders = adapter.Config{App: "shop", Durable: []string{"order.>"}}

func durableSpec(deliver func(adapter.Delivery)) adapter.Spec {
	return adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: deliver}
}

// bury makes one event a dead letter.
func bury(t *testing.T, a adapter.Adapter, id string) *adapter.DeadLetter {
	t.Helper()
	l, done := &adapter.DeadLetter{Group: "g", Pattern: "order.*", Reason: "no"}, make(chan error, 1)
	sub := subscribe(t, a, durableSpec(func(d adapter.Delivery) { d.Settle.Dead(l, func(err error) { done <- err }) }))
	publish(t, a, adapter.Durable, id, "order.placed")
	if err := errors.Join(<-done, sub.Close(within(t))); err != nil {
		t.Fatal(err)
	}
	return l
}

func letters(t *testing.T, a adapter.Adapter) (out []*adapter.DeadLetter) {
	t.Helper()
	for l, err := range a.(adapter.DeadLetters).Letters(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// In a stream that was made anew the sequences mean other events: a letter of the
// old one is not taken for one of the new.
func TestALetterOfAStreamThatIsGone(t *testing.T) {
	url := testkit.Server(t).URL()
	first := bury(t, open(t, url, orders), "old")
	if err := jsClient(t, url).DeleteStream(within(t), "shop"); err != nil {
		t.Fatal(err)
	}
	a := open(t, url, orders)
	second := bury(t, a, "new")
	if first.ID != second.ID {
		t.Fatalf("not the same place: %s and %s", first.ID, second.ID)
	}
	all := letters(t, a)
	if len(all) != 2 || all[0].Event.ID != "old" || all[1].Event.ID != "new" {
		t.Errorf("%d letters", len(all))
	}
}

// Who dies after the event was stored and before its letter is removed leaves both;
// redriven again, the event is not delivered again as long as the stream knows.
func TestRedriveCutBeforeTheLetterIsRemoved(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "cut", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE.>"}}}},
			{Username: "all", Password: "p"},
		}
	}).URL()
	as := func(user string) adapter.Adapter {
		return open(t, strings.Replace(url, "nats://", "nats://"+user+":p@", 1), orders)
	}
	a, cut := as("all"), as("cut")
	l := bury(t, a, "1")
	soon, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := cut.(adapter.DeadLetters).Redeliver(soon, l.ID); err == nil || !strings.Contains(err.Error(), "still there") {
		t.Fatalf("Redeliver: %v", err)
	}
	if n := len(letters(t, a)); n != 1 {
		t.Fatalf("%d letters", n)
	}
	if err := a.(adapter.DeadLetters).Redeliver(within(t), l.ID); err != nil {
		t.Fatal(err)
	}
	got := make(chan adapter.Delivery, 4)
	sub := subscribe(t, a, durableSpec(func(d adapter.Delivery) { d.Settle.Ack(func(error) {}); got <- d }))
	publish(t, a, adapter.Durable, "last", "order.placed")
	if x, y := receive(t, got), receive(t, got); x.ID != "1" || y.ID != "last" {
		t.Errorf("delivered %s and %s", x.ID, y.ID)
	}
	if n := len(letters(t, a)); n != 0 {
		t.Errorf("%d letters are left", n)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// A group that is gone cannot be given anything: the letter stays. Started again,
// its consumer made anew, it gets what was given to it before.
func TestRedriveToAGroupThatIsGone(t *testing.T) {
	url := testkit.Server(t).URL()
	js, a := jsClient(t, url), open(t, url, orders)
	one, two := bury(t, a, "1"), bury(t, a, "2")
	d := a.(adapter.DeadLetters)
	if err := d.Redeliver(within(t), one.ID); err != nil {
		t.Fatal(err)
	}
	_, consumer, _ := strings.Cut(strings.TrimPrefix(two.ID, "shop:"), ":")
	if err := js.DeleteConsumer(within(t), "shop", consumer); err != nil {
		t.Fatal(err)
	}
	if err := d.Redeliver(within(t), two.ID); err == nil || !strings.Contains(err.Error(), consumer) || !strings.Contains(err.Error(), "start it once") {
		t.Errorf("Redeliver: %v", err)
	}
	if n := len(letters(t, a)); n != 1 {
		t.Errorf("%d letters", n)
	}
	got := make(chan adapter.Delivery, 4)
	sub := subscribe(t, open(t, url, orders), durableSpec(func(d adapter.Delivery) { d.Settle.Ack(func(error) {}); got <- d }))
	for _, want := range []string{"1", "2", "1"} { // from the start, and what was given
		if x := receive(t, got); x.ID != want || x.Topic != "order.placed" {
			t.Errorf("delivered %s of %s, want %s", x.ID, x.Topic, want)
		}
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	if err := js.DeleteStream(within(t), "shop"); err != nil {
		t.Fatal(err)
	}
	if err := d.Redeliver(within(t), two.ID); err == nil || !strings.Contains(err.Error(), "stream shop is gone") {
		t.Errorf("Redeliver: %v", err)
	}
}

// A group that was never given anything has one filter: two cost.
func TestPrivateSubjectsAreMadeWhenNeeded(t *testing.T) {
	url := testkit.Server(t).URL()
	js, a := jsClient(t, url), open(t, url, orders)
	l := bury(t, a, "1")
	_, name, _ := strings.Cut(strings.TrimPrefix(l.ID, "shop:"), ":")
	look := func() (jetstream.ConsumerConfig, jetstream.StreamConfig) {
		c, err := js.Consumer(within(t), "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := js.Stream(within(t), "shop")
		if err != nil {
			t.Fatal(err)
		}
		return c.CachedInfo().Config, s.CachedInfo().Config
	}
	if c, s := look(); c.FilterSubject != "order.*" || len(s.Subjects) != 1 {
		t.Errorf("before: %+v, %v", c, s.Subjects)
	}
	if err := a.(adapter.DeadLetters).Redeliver(within(t), l.ID); err != nil {
		t.Fatal(err)
	}
	c, s := look()
	if len(c.FilterSubjects) != 2 || c.FilterSubjects[1] != "$TIDINGS.to.shop."+name+".>" || len(s.Subjects) != 2 {
		t.Errorf("after: %+v, %v", c, s.Subjects)
	}
	// Subscribing again leaves it.
	if err := subscribe(t, a, durableSpec(func(d adapter.Delivery) { d.Settle.Ack(func(error) {}) })).Close(within(t)); err != nil {
		t.Error(err)
	}
	if c, _ := look(); len(c.FilterSubjects) != 2 {
		t.Errorf("later: %+v", c)
	}
}

// After its start the server answers the first change of a consumer with what it
// had read from disk: that is no refusal.
func TestTheFirstRedriveAfterARestart(t *testing.T) {
	srv := testkit.Server(t)
	l := bury(t, open(t, srv.URL(), orders), "1")
	srv.Restart()
	a := open(t, srv.URL(), orders)
	if err := a.(adapter.DeadLetters).Redeliver(within(t), l.ID); err != nil {
		t.Fatal(err)
	}
	got := make(chan adapter.Delivery, 4)
	sub := subscribe(t, a, durableSpec(func(d adapter.Delivery) { d.Settle.Ack(func(error) {}); got <- d }))
	if x := receive(t, got); x.ID != "1" {
		t.Errorf("delivered %s", x.ID)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// A letter that the server could never take is an error that says so, and the event
// stays.
func TestALetterThatIsTooLarge(t *testing.T) {
	url := testkit.Server(t, func(o *server.Options) { o.MaxPayload = 4000 }).URL()
	a := open(t, url, orders)
	done := make(chan error, 1)
	sub := subscribe(t, a, durableSpec(func(d adapter.Delivery) {
		d.Settle.Dead(&adapter.DeadLetter{Reason: strings.Repeat("x", 900)}, func(err error) { done <- err })
	}))
	m := &adapter.Message{ID: "1", Topic: "order.placed", Source: "//shop/1", Data: make([]byte, 3500)}
	if err := a.Publish(within(t), m, adapter.Durable); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "max_payload") || !strings.Contains(err.Error(), "4000") {
		t.Errorf("Dead: %v", err)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}
