// Package billing is an example of an application that subscribes, and of one
// that can be deployed at any time without losing an event.
//
// It bills every order and counts the carts that were looked at. Run it under
// `tidings run -n 2 -- billing`: of all its processes one handles each event, and
// on a deploy the old ones finish what they took once the new ones are ready.
//
// Where to connect comes from TIDINGS_URL.
package billing

import (
	"context"
	"flag"
	"os"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/drill/witness"
	_ "github.com/tidings-go/tidings/natsbus" // makes nats:// URLs known
	"github.com/tidings-go/tidings/worker"
)

// Cart is what billing needs to know of cart.viewed.
type Cart struct {
	ID string `json:"id"`
}

// Order is what billing needs to know of order.placed.
type Order struct {
	ID    string `json:"id"`
	Cents int    `json:"cents"`
}

// Options are how billing uses Tidings. Orders are durable for billing to be able
// to start before the first shop does.
var Options = tidings.Options{
	App: "billing",
	Routes: []tidings.Route{
		{Pattern: "order.>", Class: tidings.Durable},
		{Pattern: "cart.>", Class: tidings.Live},
	},
}

type billing struct {
	witness *witness.Witness
	work    time.Duration
	views   atomic.Int64
	cents   atomic.Int64
}

// Run runs one worker until it is told to go.
func Run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("billing", flag.ContinueOnError)
	boot := flags.Duration("boot", 0, "what a real application takes to start")
	work := flags.Duration("work", 2*time.Millisecond, "what a real handler takes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b := &billing{work: *work}
	bus, err := tidings.New(Options)
	if err != nil {
		return err
	}
	err = worker.Run(ctx, worker.Options{Bus: bus, Setup: func(ctx context.Context) error {
		<-time.After(*boot) // load templates, warm caches, …
		if err := bus.Attach(ctx, os.Getenv("TIDINGS_URL")); err != nil {
			return err
		}
		b.witness = witness.FromEnv("subscriber", Options.App)
		return b.subscribe(ctx, bus)
	}})
	b.witness.Close()
	return err
}

func (b *billing) subscribe(ctx context.Context, bus *tidings.Bus) error {
	if err := b.witness.Settlements(ctx, bus, orderID); err != nil {
		return err
	}
	orders := tidings.NewTopic[Order]("order.placed").On(bus)
	if _, err := orders.Subscribe(ctx, b.invoice, &tidings.SubscribeOptions{Durable: true}); err != nil {
		return err
	}
	carts := tidings.NewTopic[Cart]("cart.viewed").On(bus)
	_, err := carts.Subscribe(ctx, b.viewed, nil)
	return err
}

func (b *billing) invoice(_ context.Context, e tidings.Event, o Order) error {
	return b.witness.Handle(e, "order.placed", Options.App, o.ID, func() error {
		<-time.After(b.work)
		b.cents.Add(int64(o.Cents))
		return nil
	})
}

func (b *billing) viewed(_ context.Context, e tidings.Event, c Cart) error {
	return b.witness.Handle(e, "cart.viewed", Options.App, c.ID, func() error {
		<-time.After(b.work)
		b.views.Add(1)
		return nil
	})
}

func orderID(e tidings.Event) string {
	var o Order
	if err := e.Decode(&o); err != nil {
		return ""
	}
	return o.ID
}
