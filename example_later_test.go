package tidings_test

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory" // mem:NAME; in production natsbus and nats://HOST:PORT
)

// An event is published now and delivered later; it may be taken back until then,
// by its topic and id.
func ExampleBus_PublishEvent_later() {
	ctx := context.Background()
	bus, err := tidings.Open(ctx, "mem:example-later", tidings.Options{
		App: "shop", Routes: []tidings.Route{{Pattern: "basket.>", Class: tidings.Durable}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()

	reminded := make(chan string)
	_, err = bus.Subscribe(ctx, "basket.abandoned", func(_ context.Context, e tidings.Event) error {
		reminded <- e.ID()
		return nil
	}, &tidings.SubscribeOptions{Durable: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, id := range []string{"basket-7", "basket-8"} {
		err = bus.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{
			ID: id, Topic: "basket.abandoned",
			NotBefore: time.Now().Add(100 * time.Millisecond), // remind in a day
			Expires:   time.Now().Add(time.Hour),              // and not in a year
		}))
		if err != nil {
			fmt.Println(err)
		}
	}
	taken, err := bus.CancelEvent(ctx, "basket.abandoned", "basket-7") // it was bought
	fmt.Println(taken, err)
	fmt.Println("remind", <-reminded)
	// Output:
	// true <nil>
	// remind basket-8
}
