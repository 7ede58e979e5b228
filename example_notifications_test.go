package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
)

// Time a block, and hear of it: with ActiveSupport::Notifications this is
// instrument and subscribe.
func ExampleBus_Instrument() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	_, err = bus.Subscribe(ctx, "sql.query", func(_ context.Context, e tidings.Event) error {
		fmt.Printf("%s %v, error %v, slow %v\n", e.Topic(), e.Payload(), e.Err(), e.Duration() > time.Minute)
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		log.Fatal(err)
	}

	err = bus.Instrument(ctx, "sql.query", "SELECT 1", func(ctx context.Context) error {
		return errors.New("no such table")
	})
	fmt.Println("returned:", err)
	// Output:
	// sql.query SELECT 1, error no such table, slow false
	// returned: no such table
}

// A regular expression is a Filter on all topics.
func ExampleBus_Subscribe_regexp() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	_, err = bus.Subscribe(ctx, ">", func(_ context.Context, e tidings.Event) error {
		fmt.Println(e.Topic())
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Filter: regexp.MustCompile(`\.(select|insert)$`).MatchString})
	if err != nil {
		log.Fatal(err)
	}

	for _, topic := range []string{"sql.select", "sql.commit", "audit.sql.insert"} {
		if err := bus.Publish(ctx, topic, nil); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// sql.select
	// audit.sql.insert
}

// A subscription for the length of a call ends with defer, also when the call
// panics. It hears what anybody publishes meanwhile, not this goroutine alone.
func ExampleSubscription_Stop_temporary() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	countQueries := func(do func()) (n int, err error) {
		s, err := bus.Subscribe(ctx, "sql.*", func(context.Context, tidings.Event) error {
			n++
			return nil
		}, &tidings.SubscribeOptions{Inline: true})
		if err != nil {
			return 0, err
		}
		defer s.Stop()
		do()
		return n, nil
	}

	n, err := countQueries(func() {
		_ = bus.Publish(ctx, "sql.select", nil)
		_ = bus.Publish(ctx, "sql.insert", nil)
	})
	fmt.Println(n, err, bus.Listening("sql.select"))
	// Output: 2 <nil> false
}

// A tracer opens a span when a block begins and ends it in the handler. What
// Start puts into the context is there in the block and in the handler.
func ExampleBus_Instrument_tracer() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	type depth struct{}
	_, err = bus.Subscribe(ctx, ">", func(ctx context.Context, e tidings.Event) error {
		fmt.Printf("%*send %s: %v\n", 2*ctx.Value(depth{}).(int), "", e.Topic(), e.Err())
		return nil
	}, &tidings.SubscribeOptions{
		Inline: true,
		Start: func(ctx context.Context, e tidings.Event) context.Context {
			n, _ := ctx.Value(depth{}).(int)
			n++
			fmt.Printf("%*sbegin %s\n", 2*n, "", e.Topic())
			return context.WithValue(ctx, depth{}, n)
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	err = bus.Instrument(ctx, "http.request", nil, func(ctx context.Context) error {
		return bus.Instrument(ctx, "sql.query", nil, func(context.Context) error {
			return errors.New("timeout")
		})
	})
	fmt.Println("returned:", err)
	// Output:
	//   begin http.request
	//     begin sql.query
	//     end sql.query: timeout
	//   end http.request: timeout
	// returned: timeout
}

// Nested events know the event around them, also when a queued handler or another
// process gets them.
func ExampleParent() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	// Start makes blocks known as parents.
	topics := map[string]string{} // by id
	_, err = bus.Subscribe(ctx, "http.*", func(context.Context, tidings.Event) error {
		return nil
	}, &tidings.SubscribeOptions{
		Inline: true,
		Start: func(ctx context.Context, e tidings.Event) context.Context {
			topics[e.ID()] = e.Topic()
			return ctx
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = bus.Subscribe(ctx, "sql.*", func(ctx context.Context, e tidings.Event) error {
		fmt.Println(e.Topic(), "in", topics[tidings.Parent(ctx, e)])
		return nil
	}, nil)
	if err != nil {
		log.Fatal(err)
	}

	_ = bus.Instrument(ctx, "http.request", nil, func(ctx context.Context) error {
		return bus.Publish(ctx, "sql.query", nil)
	})
	if err := bus.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: sql.query in http.request
}

// A Filter is asked at each event, so it can silence a subscription for a while.
// While nobody wants a topic, an expensive payload need not be built.
func ExampleBus_Subscribe_silence() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	var verbose atomic.Bool
	_, err = bus.Subscribe(ctx, "debug.>", func(_ context.Context, e tidings.Event) error {
		fmt.Println(e.Payload())
		return nil
	}, &tidings.SubscribeOptions{Inline: true, Filter: func(string) bool { return verbose.Load() }})
	if err != nil {
		log.Fatal(err)
	}

	for _, on := range []bool{false, true} {
		verbose.Store(on)
		if bus.Listening("debug.state") {
			_ = bus.Publish(ctx, "debug.state", fmt.Sprintf("expensive, verbose %v", on))
		}
	}
	// Output: expensive, verbose true
}

// An event that happened elsewhere or long ago is published as it was.
func ExampleBus_PublishEvent() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	_, err = bus.Subscribe(ctx, "job.*", func(_ context.Context, e tidings.Event) error {
		fmt.Println(e.ID(), e.Topic(), e.Time().Format(time.DateOnly), e.Duration(), e.Payload())
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		log.Fatal(err)
	}

	err = bus.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{
		ID:       "42",
		Topic:    "job.done",
		Time:     time.Date(2004, 7, 25, 0, 0, 0, 0, time.UTC),
		Duration: 90 * time.Second,
		Payload:  "imported",
	}))
	if err != nil {
		log.Fatal(err)
	}
	// Output: 42 job.done 2004-07-25 1m30s imported
}

// Tags are set once, where a request begins, and are with every event that comes
// of it, also those that its handlers publish.
func ExampleWithTags() {
	ctx := context.Background()
	bus, err := tidings.New(tidings.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	show := func(ctx context.Context, e tidings.Event) error {
		fmt.Println(e.Topic(), tidings.Tags(ctx))
		return nil
	}
	for pattern, h := range map[string]tidings.Handler{
		"order.placed": func(ctx context.Context, _ tidings.Event) error { return bus.Publish(ctx, "mail.sent", nil) },
		"mail.sent":    show,
	} {
		if _, err := bus.Subscribe(ctx, pattern, h, nil); err != nil {
			log.Fatal(err)
		}
	}

	ctx = tidings.WithTags(ctx, map[string]any{"request": "r1", "user": "ann"})
	if err := bus.Publish(ctx, "order.placed", nil); err != nil {
		log.Fatal(err)
	}
	if err := bus.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: mail.sent map[request:r1 user:ann]
}
