package tidings_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// With the broker away and the spool full, Publish says that nothing was accepted, where
// the spool is and how it gets larger; what was accepted arrives, in order, and there is
// room again.
func TestAFullSpool(t *testing.T) {
	for name, ack := range map[string]tidings.Ack{"AckBroker": tidings.AckBroker, "AckSpool": tidings.AckSpool} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, dir := testkit.Server(t), t.TempDir()
			o := quiet()
			o.SpoolDir, o.SpoolMax = dir, 32<<10
			o.Routes = []tidings.Route{{Pattern: "order.>", Class: tidings.Durable, Ack: ack}}
			b := process(t, srv.URL(), "shop", o)
			var mu sync.Mutex
			var handled []int
			subscribe(t, process(t, srv.URL(), "billing", quiet()), "order.*", func(_ context.Context, e tidings.Event) error {
				mu.Lock()
				defer mu.Unlock()
				handled = append(handled, planned(e))
				return nil
			}, &tidings.SubscribeOptions{Durable: true})
			srv.Shutdown()
			var accepted []int
			refused := 0
			for i := 0; refused < 10; i++ {
				err := publishEither(t, b, i)
				var own *tidings.Error
				switch {
				case err == nil && refused == 0:
					accepted = append(accepted, i)
				case !errors.As(err, &own) || own.Accepted || !errors.Is(err, tidings.ErrOverflow) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "SpoolMax"):
					t.Fatalf("event %d: %v", i, err)
				default:
					refused++
				}
			}
			if len(accepted) < 10 {
				t.Errorf("only %d were accepted", len(accepted))
			}
			srv.Start()
			more := 1000
			testkit.Until(t, 20*time.Second, func() bool { more++; return publishEither(t, b, more) == nil })
			accepted = append(accepted, more)
			testkit.Until(t, 20*time.Second, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(handled) >= len(accepted)
			})
			drain(t, b)
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(handled, accepted) {
				t.Errorf("handled:  %v\naccepted: %v", handled, accepted)
			}
		})
	}
}

// publishEither publishes every second event without waiting, and returns the outcome.
func publishEither(t *testing.T, b *tidings.Bus, i int) error {
	t.Helper()
	if i%2 == 0 {
		return b.Publish(deadline(t), "order.placed", i)
	}
	told := make(chan error, 1)
	if err := b.PublishAsync(deadline(t), "order.placed", i, func(err error) { told <- err }); err != nil {
		return err
	}
	return <-told
}
