package tidings_test

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory" // mem:NAME; in production natsbus and nats://HOST:PORT
)

// A handler replies to whoever has asked, in whichever process that is.
func ExampleBus_Request() {
	ctx := context.Background()
	live := []tidings.Route{{Pattern: ">", Class: tidings.Live}}
	pricing, err := tidings.Open(ctx, "mem:example-request", tidings.Options{App: "pricing", Routes: live})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pricing.Close()
	_, err = pricing.Subscribe(ctx, "price.of", func(ctx context.Context, e tidings.Event) error {
		var item string
		if err := e.Decode(&item); err != nil {
			return err
		}
		return tidings.Reply(ctx, len(item)*100)
	}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	shop, err := tidings.Open(ctx, "mem:example-request", tidings.Options{App: "shop", Routes: live})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer shop.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	reply, err := shop.Request(ctx, "price.of", "book")
	var price int
	if err == nil {
		err = reply.Decode(&price)
	}
	fmt.Println(price, err)

	_, err = shop.Request(ctx, "weight.of", "book")
	fmt.Println(err)
	// Output:
	// 400 <nil>
	// tidings: request weight.of: no responder
}
