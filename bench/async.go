package main

import (
	"context"
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	wnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings"
)

// window is how many events are on their way at once for one publisher that does not
// wait for each.
const window = 256

// windowed makes a candidate with one publisher and a window of events on their way.
func windowed(name string, k kind, publish func(ctx context.Context, p *publisher, done func(error)) error) candidate {
	return candidate{name, k, func() (*rig, error) {
		p, err := openPublisher(false)
		if err != nil {
			return nil, err
		}
		return &rig{op: func(n int) error {
			ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
			defer cancel()
			return flow(n, func(done func(error)) error { return publish(ctx, p, done) })
		}, close: p.close}, nil
	}}
}

// flow begins n things, a window of them at once, and waits for all.
func flow(n int, begin func(done func(error)) error) error {
	var mu sync.Mutex
	var first error
	room := make(chan struct{}, window)
	done := func(err error) {
		mu.Lock()
		first = errors.Join(first, err)
		mu.Unlock()
		<-room
	}
	for range n {
		room <- struct{}{}
		if err := begin(done); err != nil {
			return err
		}
	}
	for range window {
		room <- struct{}{}
	}
	return first
}

func ourAsync() candidate {
	return windowed("tidings", ours, func(ctx context.Context, p *publisher, done func(error)) error {
		return p.bus.PublishAsync(ctx, name, stored128, done)
	})
}

// rawAsync is nats.go's own window, with the ids that make a repetition safe.
func rawAsync() candidate {
	return asyncOf("nats.go, async", floor, func(data []byte) *nats.Msg {
		return &nats.Msg{Subject: name, Data: data, Header: nats.Header{nats.MsgIdHdr: {nuid.Next()}}}
	})
}

func asyncOf(name string, k kind, message func(data []byte) *nats.Msg) candidate {
	data := []byte(`"` + stored128 + `"`)
	return candidate{name, k, func() (*rig, error) {
		p, err := openPublisher(false)
		if err != nil {
			return nil, err
		}
		js, err := jetstream.New(p.nc, jetstream.WithPublishAsyncMaxPending(window),
			jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) { panic(err) }))
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		return &rig{op: func(n int) error {
			for range n {
				if _, err := js.PublishMsgAsync(message(data)); err != nil {
					return err
				}
			}
			<-js.PublishAsyncComplete()
			return nil
		}, close: p.close}, nil
	}}
}

// ourSpooled is accepted by the spool, which is synced too.
func ourSpooled(callers int) candidate {
	return candidate{"tidings, ack by the spool", ours, func() (*rig, error) {
		p, err := openSpooled()
		if err != nil {
			return nil, err
		}
		return &rig{op: func(n int) error {
			return share(n, callers, func(ctx context.Context) error { return p.bus.Publish(ctx, name, stored128) })
		}, close: p.close}, nil
	}}
}

// watermillStored is watermill-nats over JetStream, with its ids.
func watermillStored(sync bool, callers int) candidate {
	return candidate{"watermill-nats", peer, func() (*rig, error) {
		p, err := openPublisher(sync)
		if err != nil {
			return nil, err
		}
		pub, err := wnats.NewPublisherWithNatsConn(p.nc, wnats.PublisherPublishConfig{Marshaler: &wnats.NATSMarshaler{},
			JetStream: wnats.JetStreamConfig{TrackMsgId: true}, SubjectCalculator: wnats.DefaultSubjectCalculator}, watermill.NopLogger{})
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		data := message.Payload(`"` + stored128 + `"`)
		return &rig{op: func(n int) error {
			return share(n, callers, func(context.Context) error {
				return pub.Publish(name, message.NewMessage(watermill.NewUUID(), data))
			})
		}, close: func() error { return errors.Join(pub.Close(), p.close()) }}, nil
	}}
}

// openSpooled is openPublisher with a spool that acknowledges.
func openSpooled() (*publisher, error) {
	return openBus(true, func(p *publisher) tidings.Options {
		return tidings.Options{App: "bench", SpoolDir: p.dir + "/spool",
			Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable, Ack: tidings.AckSpool}}}
	})
}
