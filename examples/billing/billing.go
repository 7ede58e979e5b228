// Package billing is an example of an application that subscribes, and of one
// that can be deployed at any time without losing an event.
//
// It bills every order, several at once but those of a customer one after the
// other, enters it into the books, and counts the carts that were looked at. Run
// it under `tidings run -n 2 -- billing`: of all its processes one handles each
// event, and on a deploy the old ones finish what they took once the new ones are
// ready.
//
// Where to connect comes from TIDINGS_URL.
package billing

import (
	"context"
	"errors"
	"flag"
	"log/slog"
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
	ID       string       `json:"id"`
	Customer string       `json:"customer"`
	Cents    int          `json:"cents"`
	Fate     witness.Fate `json:"fate"` // planted by a drill
}

// Books is the group that enters orders into the books: it gets each of them
// besides billing, and has a pace and failures of its own.
const Books = "books"

// Options are how billing uses Tidings. Orders are durable for billing to be able
// to start before the first shop does.
var Options = tidings.Options{
	App: "billing",
	Routes: []tidings.Route{
		{Pattern: "order.>", Class: tidings.Durable},
		{Pattern: "cart.>", Class: tidings.Live},
	},
}

// errRefused is what is wrong with a version that -refuse makes a bad one.
var errRefused = errors.New("this version cannot enter anything")

type billing struct {
	witness *witness.Witness
	work    time.Duration
	workers int
	refuses atomic.Bool
	views   atomic.Int64
	cents   atomic.Int64
	entries atomic.Int64
}

// Run runs one worker until it is told to go.
func Run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("billing", flag.ContinueOnError)
	boot := flags.Duration("boot", 0, "what a real application takes to start")
	linger := flags.Duration("linger", 0, "what a real application takes to shut down what it serves besides")
	work := flags.Duration("work", 2*time.Millisecond, "what a real handler takes")
	workers := flags.Int("workers", 4, "how many orders are billed at once, of different customers")
	refuse := flags.Bool("refuse", false, "enter nothing into the books once it is ready: a version that must not stay")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b := &billing{work: *work, workers: *workers}
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
	}, Serve: func(context.Context) error {
		b.refuses.Store(*refuse)
		return nil
	}, Shutdown: func(context.Context) error {
		<-time.After(*linger) // let HTTP requests end, …
		return nil
	}, Reopen: func() error {
		slog.Info("billing writes to standard error alone: nothing to open again")
		return nil
	}})
	b.witness.Receipt(err, orderID)
	b.witness.Close()
	return err
}

func (b *billing) subscribe(ctx context.Context, bus *tidings.Bus) error {
	if err := b.witness.Settlements(ctx, bus, orderID); err != nil {
		return err
	}
	orders := tidings.NewTopic[Order]("order.placed").On(bus)
	if _, err := orders.Subscribe(ctx, b.invoice, &tidings.SubscribeOptions{
		Durable: true, Workers: b.workers, Key: customer,
		Retry: tidings.Retry{Attempts: 4, Backoff: 50 * time.Millisecond, Deaths: 2},
	}); err != nil {
		return err
	}
	if _, err := orders.Subscribe(ctx, b.enter, &tidings.SubscribeOptions{
		Group: Books, Durable: true, Retry: tidings.Retry{Backoff: 50 * time.Millisecond},
	}); err != nil {
		return err
	}
	carts := tidings.NewTopic[Cart]("cart.viewed").On(bus)
	_, err := carts.Subscribe(ctx, b.viewed, nil)
	return err
}

func (b *billing) invoice(ctx context.Context, e tidings.Event, o Order) error {
	return b.witness.Handle(e, "order.placed", Options.App, o.ID, func() error {
		<-time.After(b.work)
		if err := b.witness.Suffer(ctx, e, o.Fate); err != nil {
			return err
		}
		b.cents.Add(int64(o.Cents))
		return nil
	})
}

// enter fails no order for good.
func (b *billing) enter(ctx context.Context, e tidings.Event, o Order) error {
	return b.witness.Handle(e, "order.placed", Books, o.ID, func() error {
		if b.refuses.Load() {
			return errRefused
		}
		if o.Fate == witness.Flaky {
			if err := b.witness.Suffer(ctx, e, o.Fate); err != nil {
				return err
			}
		}
		b.entries.Add(1)
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

func customer(e tidings.Event) string { return decoded(e).Customer }

func orderID(e tidings.Event) string { return decoded(e).ID }

func decoded(e tidings.Event) (o Order) {
	_ = e.Decode(&o) // what cannot be decoded has no id
	return o
}
