package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
)

// outageLasts is how long the broker is away: longer than it takes to notice.
const outageLasts = 300 * time.Millisecond

// outageRows measure how long it takes from the broker's return, when it listens and has
// its streams, to the end of the first handler of a durable event that was published
// meanwhile: what a client of that broker does, and its defaults.
func outageRows(e effort) []row {
	once := &effort{rounds: min(e.rounds, 5), fixed: 1}
	return []row{{id: "r1", name: "broker away and back, to the first durable event", cpu: 2, effort: once, goal: goal{ns: 100e6}, candidates: []candidate{
		returning("tidings", ours, ourReturn),
		returning("nats.go, tuned", floor, rawReturn(nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 0))),
		returning("nats.go, its defaults", peer, rawReturn()),
	}}}
}

// A traveller publishes and handles durable events over one connection.
type traveller struct {
	publish func(ctx context.Context) error // until it is stored
	close   func() error
}

// returning makes a candidate whose figure is the time from the return to the event.
func returning(label string, k kind, open func(ctx context.Context, url string, handled func()) (*traveller, error)) candidate {
	return candidate{label, k, func() (*rig, error) {
		b, err := startBroker()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
		defer cancel()
		handled := make(chan time.Time, 1)
		v, err := open(ctx, b.url, func() {
			select {
			case handled <- time.Now():
			default: // once more, since its acknowledgement was lost
			}
		})
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		var took time.Duration
		return &rig{
			op: func(n int) error {
				took = 0
				for range n {
					d, err := b.leave(v, handled)
					if err != nil {
						return err
					}
					took += d / time.Duration(n)
				}
				return nil
			},
			figure: func() float64 { return float64(took) },
			close:  func() error { return errors.Join(v.close(), b.close()) },
			noisy:  true, // what is allocated while it waits is nobody's cost
		}, nil
	}}
}

// leave has the broker be away while an event is published, and returns how long after its
// return that was handled.
func (b *broker) leave(v *traveller, handled <-chan time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	at, err := url.Parse(b.url)
	if err != nil {
		return 0, err
	}
	if err := b.stop(); err != nil {
		return 0, err
	}
	select {
	case <-handled:
	default:
	}
	stored := make(chan error, 1)
	run := loop.Go(func(context.Context) { stored <- v.publish(ctx) })
	defer run.StopAndWait()
	<-time.After(outageLasts)
	if err := b.start(portArg + at.Port()); err != nil {
		return 0, err
	}
	back := time.Now()
	select {
	case t := <-handled:
		return t.Sub(back), <-stored
	case <-ctx.Done():
		return 0, fmt.Errorf("nothing was handled: %w", context.Cause(ctx))
	}
}

func ourReturn(ctx context.Context, url string, handled func()) (*traveller, error) {
	bus, err := tidings.Open(ctx, url, tidings.Options{App: "bench", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return nil, err
	}
	_, err = bus.Subscribe(ctx, name, func(context.Context, tidings.Event) error { handled(); return nil }, &tidings.SubscribeOptions{Durable: true})
	if err == nil {
		err = bus.Ready(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, bus.Close())
	}
	return &traveller{func(ctx context.Context) error { return bus.Publish(ctx, name, stored128) }, bus.Close}, nil
}

// rawReturn publishes as one has to with nats.go: again until it is acknowledged.
func rawReturn(o ...nats.Option) func(context.Context, string, func()) (*traveller, error) {
	return func(ctx context.Context, url string, handled func()) (*traveller, error) {
		nc, err := nats.Connect(url, append(o, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
		if err != nil {
			return nil, err
		}
		js, err := jetstream.New(nc)
		var c jetstream.Consumer
		if err == nil {
			_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "bench", Subjects: []string{name}})
		}
		if err == nil {
			c, err = js.CreateConsumer(ctx, "bench", jetstream.ConsumerConfig{Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy})
		}
		var consuming jetstream.ConsumeContext
		if err == nil {
			consuming, err = c.Consume(func(m jetstream.Msg) {
				_ = m.Ack() // a connection that goes again has it be delivered again
				handled()
			}, jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) {}))
		}
		if err != nil {
			nc.Close()
			return nil, err
		}
		return &traveller{publish: func(ctx context.Context) error { return stored(ctx, js) }, close: func() error { consuming.Stop(); nc.Close(); return nil }}, nil
	}
}

func stored(ctx context.Context, js jetstream.JetStream) error {
	id := fmt.Sprint(time.Now().UnixNano())
	for {
		try, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err := js.Publish(try, name, []byte(stored128), jetstream.WithMsgID(id))
		<-try.Done() // not sooner
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}
