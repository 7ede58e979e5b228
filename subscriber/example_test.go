package subscriber_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/subscriber"
)

type Order struct{ ID string }

type Mails struct{ from string }

func (m *Mails) OrderPlaced(_ context.Context, _ tidings.Event, o Order) error {
	fmt.Println(m.from, "thanks for order", o.ID)
	return nil
}

func (m *Mails) OrderSent(_ context.Context, e tidings.Event) error {
	fmt.Println(m.from, "tells of", e.Topic())
	return nil
}

func ExampleAttach() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	mails, err := subscriber.Attach(ctx, bus, "shop", &Mails{"Ada"}, &subscriber.Options{
		Subscribe: &tidings.SubscribeOptions{Inline: true},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = bus.Publish(ctx, "shop.order_placed", Order{"7"})
	_ = bus.Publish(ctx, "shop.order_sent", Order{"7"})
	mails.Detach()
	_ = bus.Publish(ctx, "shop.order_sent", Order{"8"})
	_ = bus.Drain(ctx)
	// Output:
	// Ada thanks for order 7
	// Ada tells of shop.order_sent
}

type Queries struct{ log *slog.Logger }

func (q Queries) SQL(ctx context.Context, e tidings.Event, statement string) error {
	q.log.DebugContext(ctx, statement)
	return nil
}

func (q Queries) Slow(context.Context, tidings.Event) error { return fmt.Errorf("disk full") }

// A log subscriber: SQL is silent unless the logger is at Debug.
func ExampleAttach_log() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	level := &slog.LevelVar{}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	_, err = subscriber.Attach(ctx, bus, "db", Queries{log}, &subscriber.Options{
		Subscribe: &tidings.SubscribeOptions{Inline: true},
		Logger:    log,
		Level: func(method string) slog.Level {
			if method == "SQL" {
				return slog.LevelDebug
			}
			return slog.LevelInfo
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = bus.Publish(ctx, "db.sql", "SELECT 1")
	level.Set(slog.LevelDebug)
	_ = bus.Publish(ctx, "db.sql", "SELECT 2")
	_ = bus.Publish(ctx, "db.slow", nil)
	_ = bus.Drain(ctx)
	// Output:
	// level=DEBUG msg="SELECT 2"
	// level=ERROR msg="could not log \"db.slow\" event" class=*errors.errorString message="disk full"
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
