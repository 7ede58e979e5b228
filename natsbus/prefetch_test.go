package natsbus_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// What a process takes in advance is some 100 ms of its work: of a handler of
// 25 ms four events wait, of one that takes no time many.
func TestPrefetchFollowsTheHandler(t *testing.T) {
	srv := testkit.Server(t)
	const n = 5000
	publishMany(t, bus(t, srv.URL(), "shop"), n)
	js := jsClient(t, srv.URL())
	most := func(o tidings.SubscribeOptions, takes time.Duration, events int64) (unsettled int) {
		b := bus(t, srv.URL(), "billing")
		var handled atomic.Int64
		o.Durable = true
		s, err := b.Subscribe(within(t), "order.*", func(context.Context, tidings.Event) error {
			if takes > 0 {
				<-time.After(takes)
			}
			handled.Add(1)
			return nil
		}, &o)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, patience, func() bool {
			unsettled = max(unsettled, consumerOf(t, js).NumAckPending)
			return handled.Load() >= events
		})
		if err := s.Drain(within(t)); err != nil {
			t.Error(err)
		}
		return unsettled
	}
	if got := most(tidings.SubscribeOptions{}, 25*time.Millisecond, 20); got > 8 {
		t.Errorf("of a handler of 25 ms %d events were taken", got)
	}
	if got := most(tidings.SubscribeOptions{Workers: 4}, 25*time.Millisecond, 80); got > 32 || got < 8 {
		t.Errorf("of 4 workers of 25 ms %d events were taken", got)
	}
	if got := most(tidings.SubscribeOptions{}, 400*time.Millisecond, 3); got > 2 {
		t.Errorf("of a handler of 400 ms %d events were taken", got)
	}
	// Acknowledgements on their way count at the server, so there is no upper bound.
	if got := most(tidings.SubscribeOptions{Queue: 200}, 0, 3000); got < 50 {
		t.Errorf("of a handler that takes no time %d events were taken at once, Queue is 200", got)
	}
}
