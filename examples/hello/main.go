// Command hello is the README's first example: it publishes three events and
// prints all it hears. Started twice with only the environment changed, each
// process hears the other.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/natsbus"
)

func main() {
	ctx, bus := context.Background(), tidings.Default()
	if err := bus.Attach(ctx, ""); err != nil { // TIDINGS_URL; without it: in process
		log.Fatal(err)
	}
	_, err := bus.Subscribe(ctx, "order.*", func(_ context.Context, e tidings.Event) error {
		fmt.Println(e.Topic(), e.Payload(), "from", e.Source())
		return nil
	}, nil)
	for i := 1; i <= 3 && err == nil; i++ {
		err = bus.Publish(ctx, "order.placed", i)
		time.Sleep(time.Second)
	}
	if err := errors.Join(err, bus.Drain(ctx)); err != nil {
		log.Fatal(err)
	}
}
