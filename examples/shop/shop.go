// Package shop is an example of an application that publishes: customers look at
// carts and place orders.
//
// A look at a cart is worth telling whoever listens now, so cart.viewed is live.
// An order must reach billing even if billing is being deployed, so order.placed
// is durable: that one line in [Options] is all there is to it.
//
// Where to connect comes from TIDINGS_URL; without it the shop talks to itself.
package shop

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/drill/witness"
	_ "github.com/tidings-go/tidings/natsbus" // makes nats:// URLs known
)

// Cart is the payload of cart.viewed.
type Cart struct {
	ID    string `json:"id"`
	Items int    `json:"items"`
}

// Order is the payload of order.placed.
type Order struct {
	ID       string       `json:"id"`
	Customer string       `json:"customer"`
	Cents    int          `json:"cents"`
	Fate     witness.Fate `json:"fate,omitempty"` // planted by a drill
}

// customers is few enough for one to order again while an order of theirs fails.
const customers = 32

// Options are how the shop uses Tidings.
var Options = tidings.Options{
	App: "shop",
	Routes: []tidings.Route{
		{Pattern: "order.>", Class: tidings.Durable},
		{Pattern: "cart.>", Class: tidings.Live},
	},
}

// Run runs the shop until ctx ends or it gets TERM, INT or QUIT.
func Run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	name := flags.String("name", "shop", "names the customers of this process; unique among processes")
	rate := flags.Int("rate", 100, "events per second, half of them orders")
	var planted plants
	flags.Var(&planted, "plant", "what a drill plants in orders: FATE/N in every N-th, FATE@N in the N-th, joined by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()

	bus, err := tidings.Open(ctx, os.Getenv("TIDINGS_URL"), Options)
	if err != nil {
		return err
	}
	w := witness.FromEnv("publisher", "shop")
	defer w.Close()

	carts := tidings.NewTopic[Cart]("cart.viewed").On(bus)
	orders := tidings.NewTopic[Order]("order.placed").On(bus)

	// What was begun is finished: stopping ends the schedule, not a Publish.
	life := context.WithoutCancel(ctx)
	var views sync.WaitGroup
	views.Go(func() {
		every(ctx, *rate/2, func(n int, due time.Duration) {
			cart := Cart{ID: witness.ID(*name, n), Items: n % 7}
			w.Intent(carts.Name(), cart.ID, due)
			w.Published(carts.Name(), cart.ID, carts.Publish(life, cart))
		})
	})
	every(ctx, *rate-*rate/2, func(n int, due time.Duration) {
		order := Order{ID: witness.ID(*name, n), Customer: fmt.Sprintf("customer-%d", n%customers), Cents: 100 + n%900, Fate: planted.of(n)}
		w.Plan(orders.Name(), order.ID, order.Customer, order.Fate)
		w.Intent(orders.Name(), order.ID, due)
		told := func(err error) { w.Published(orders.Name(), order.ID, err) }
		if order.Fate == witness.Twice {
			e := tidings.NewEvent(tidings.EventFields{Topic: orders.Name(), ID: order.ID, Payload: order})
			err := bus.PublishEvent(life, e)
			if told(err); err == nil {
				views.Go(func() { _ = bus.PublishEvent(life, e) }) // it is accepted already
			}
			return
		}
		// Nobody waits for the broker: the next customer is there.
		if err := orders.PublishAsync(life, order, told); err != nil {
			told(err)
		}
	})
	views.Wait()

	drain, cancel := context.WithTimeout(life, 20*time.Second)
	defer cancel()
	if err := errors.Join(bus.Flush(drain), bus.Drain(drain)); err != nil {
		return errors.Join(errors.New("the shop could not say all it had to say"), err)
	}
	fmt.Fprintln(os.Stderr, "shop: closed")
	return nil
}
