package natsbus_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

func fateOf(t *testing.T, a *natsbus.Admin, id string) natsbus.EventState {
	t.Helper()
	found, err := a.Event(within(t), id, time.Time{})
	if err != nil || len(found) != 1 {
		t.Fatalf("event %s: %+v, %v", id, found, err)
	}
	return found[0]
}

func TestWhatBecameOfAnEvent(t *testing.T) {
	for _, prefix := range []string{"", "staging"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			url := testkit.Server(t).URL()
			a := open(t, url, adapter.Config{App: "shop", Prefix: prefix, Durable: []string{"order.>"}})
			got := make(chan adapter.Delivery, 3)
			sub := subscribe(t, a, adapter.Spec{Pattern: "order.*", Group: "billing", Durable: true, Deliver: func(d adapter.Delivery) { got <- d }})
			for _, id := range []string{"1", "2 %", "3"} {
				publish(t, a, adapter.Durable, id, "order.placed")
			}
			one, two, _ := receive(t, got), receive(t, got), receive(t, got)
			look := admin(t, url, prefix)
			state := func(id string) string {
				t.Helper()
				e := fateOf(t, look, id)
				if e.Topic != "order.placed" || len(e.Groups) != 1 || e.Groups[0].Group != "billing" || e.Groups[0].Pattern != "order.*" {
					t.Fatalf("event %s: %+v", id, e)
				}
				return e.Groups[0].State
			}
			ack := func(d adapter.Delivery) {
				done := make(chan error, 1)
				d.Settle.Ack(func(err error) { done <- err })
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			check := func(want ...string) {
				t.Helper()
				for i, id := range []string{"1", "2 %", "3"} {
					if got := state(id); got != want[i] {
						t.Errorf("event %s is %s, want %s", id, got, want[i])
					}
				}
			}
			check(natsbus.FateTaken, natsbus.FateOpen, natsbus.FateOpen)
			ack(two)
			check(natsbus.FateTaken, natsbus.FateOpen, natsbus.FateOpen)
			ack(one)
			check(natsbus.FateSettled, natsbus.FateSettled, natsbus.FateTaken)

			m := adapter.Message{ID: "later", Topic: "order.placed", Source: "//shop/1", Time: time.Now(), NotBefore: time.Now().Add(time.Hour)}
			if err := a.Publish(within(t), &m, adapter.Durable); err != nil {
				t.Fatal(err)
			}
			if e := fateOf(t, look, "later"); e.NotBefore == nil || !e.NotBefore.Equal(m.NotBefore) || e.Topic != "order.placed" || len(e.Groups) > 0 {
				t.Errorf("of a delayed event is told %+v", e)
			}
			if _, err := look.Event(within(t), "nothing", time.Time{}); !errors.Is(err, natsbus.ErrNoEvent) {
				t.Errorf("of none is told %v", err)
			}
			if err := sub.Close(within(t)); err == nil {
				t.Error("the third was not handed back")
			}
		})
	}
}
