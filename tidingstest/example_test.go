package tidingstest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

type (
	placed  struct{ Order, Total int }
	charged struct{ Order, Sum int }
)

// setup is the code under test: it charges for orders, and refuses empty ones.
func setup(ctx context.Context, bus *tidings.Bus) error {
	_, err := bus.Subscribe(ctx, "order.placed", func(ctx context.Context, e tidings.Event) error {
		var p placed
		if err := e.Decode(&p); err != nil {
			return err
		}
		if p.Total == 0 {
			return bus.Publish(ctx, "payment.refused", p.Order)
		}
		return bus.Publish(ctx, "payment.charged", charged{p.Order, p.Total})
	}, nil)
	return err
}

func Example() {
	TestCharge := func(t *testing.T) {
		bus := tidingstest.New(t)
		rec := bus.Record("payment.>")
		if err := setup(t.Context(), bus.Bus); err != nil {
			t.Fatal(err)
		}
		if err := bus.Publish(t.Context(), "order.placed", placed{7, 30}); err != nil {
			t.Fatal(err)
		}
		rec.Expect(tidingstest.Event("payment.charged", charged{7, 30}))
		rec.ExpectNone("payment.refused")
	}
	runWith(TestCharge)
}

// Handlers that fail on purpose are announced; a Strict bus gives the errors of
// inline ones to the publisher instead.
func ExampleBus_ExpectError() {
	TestUnknownOrder := func(t *testing.T) {
		bus := tidingstest.New(t)
		bus.ExpectError(context.DeadlineExceeded)
		_, err := bus.Subscribe(t.Context(), "order.placed", func(ctx context.Context, _ tidings.Event) error {
			<-ctx.Done() // cut by Timeout
			return ctx.Err()
		}, &tidings.SubscribeOptions{Timeout: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if err := bus.Publish(t.Context(), "order.placed", placed{7, 30}); err != nil {
			t.Fatal(err)
		}
	}
	runWith(TestUnknownOrder)
}

// In a synctest bubble time is virtual: the test takes none.
func ExampleBus_Settle() {
	TestReminder := func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bus := tidingstest.New(t)
			began := time.Now()
			_, err := bus.Subscribe(t.Context(), "reminder.due", func(context.Context, tidings.Event) error {
				time.Sleep(3 * time.Second)
				return nil
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := bus.Publish(t.Context(), "reminder.due", nil); err != nil {
				t.Fatal(err)
			}
			bus.Settle()
			if d := time.Since(began); d != 3*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	runWith(TestReminder)
}

// runWith notes a test that an example shows, since examples have no *testing.T.
func runWith(test func(*testing.T)) { shown = append(shown, test) }

var shown []func(*testing.T)

func TestExamples(t *testing.T) {
	shown = nil
	Example()
	ExampleBus_ExpectError()
	ExampleBus_Settle()
	for _, test := range shown {
		t.Run("", test)
	}
	if len(shown) != 3 {
		t.Errorf("%d examples were run, want 3", len(shown))
	}
}
