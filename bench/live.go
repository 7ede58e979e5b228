package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
)

// liveEvents is how many events a slice of a live row has: fewer than any queue on
// the way holds, since what is measured is the way and not what its bounds do.
const liveEvents = 10_000

// liveBody is a payload of 128 bytes.
var liveBody = []byte(`{"id":"o-1","sum":4200,"note":"` + strings.Repeat("x", 94) + `"}`)

// A wire carries events from a publisher to a subscriber, each with a connection
// of its own, over a server in a third process.
type wire struct {
	publish func() error
	close   func() error
}

// A wiring opens a wire; handle is called for each event that arrives.
type wiring func(ctx context.Context, url string, handle func()) (*wire, error)

// through makes a candidate of a wiring: an operation is an event from the call
// that publishes it to the return of its handler.
func through(label string, k kind, open wiring) candidate {
	return candidate{label, k, func() (*rig, error) {
		var left atomic.Pointer[countdown]
		w, err := connected(open, func() { left.Load().one() })
		if err != nil {
			return nil, err
		}
		return &rig{close: w.close, op: func(n int) error {
			c := newCountdown(n)
			left.Store(c)
			for range n {
				if err := w.publish(); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
			defer cancel()
			return c.wait(ctx)
		}}, nil
	}}
}

// connected opens a wire over a server of its own.
func connected(open wiring, handle func()) (*wire, error) {
	b, err := startBroker()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	w, err := open(ctx, b.url, handle)
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	inner := w.close
	w.close = func() error { return errors.Join(inner(), b.close()) }
	return w, nil
}

// ourWire is two processes' worth of Tidings: a bus that publishes, and another
// with a subscription to it. The headers are those of each event.
func ourWire(parameters string, headers map[string]string) wiring {
	return func(ctx context.Context, url string, handle func()) (*wire, error) {
		url += parameters
		each := context.Background()
		if headers != nil {
			each = tidings.WithHeaders(each, headers)
		}
		from, err := tidings.Open(ctx, url, tidings.Options{App: "shop", Codec: tidings.JSON})
		if err != nil {
			return nil, err
		}
		to, err := tidings.Open(ctx, url, tidings.Options{App: "billing", Codec: tidings.JSON})
		if err != nil {
			return nil, errors.Join(err, from.Close())
		}
		var payload any = json.RawMessage(liveBody)
		_, err = to.Subscribe(ctx, name, func(context.Context, tidings.Event) error { handle(); return nil }, nil)
		return &wire{
			publish: func() error { return from.Publish(each, name, payload) },
			close:   func() error { return errors.Join(from.Close(), to.Close()) },
		}, err
	}
}

// pair is a connection to publish with and another with a subscription.
func pair(url string, handle func(*nats.Msg)) (from, to *nats.Conn, err error) {
	if from, err = nats.Connect(url); err != nil {
		return nil, nil, err
	}
	if to, err = nats.Connect(url); err != nil {
		from.Close()
		return nil, nil, err
	}
	_, err = to.Subscribe(name, handle)
	return from, to, errors.Join(err, to.Flush())
}

// rawWire is nats.go with a body of that many bytes, 0: of as many as an event of
// ours has; and with those headers.
func rawWire(size int, headers nats.Header) wiring {
	return func(ctx context.Context, url string, handle func()) (*wire, error) {
		var err error
		if size == 0 {
			if size, err = ourSize(ctx, url); err != nil {
				return nil, err
			}
		}
		body := make([]byte, size)
		from, to, err := pair(url, func(*nats.Msg) { handle() })
		return &wire{
			publish: func() error { return from.PublishMsg(&nats.Msg{Subject: name, Header: headers, Data: body}) },
			close:   func() error { from.Close(); to.Close(); return nil },
		}, err
	}
}

// ourSize is how many bytes an event of ours is on the wire, headers included.
func ourSize(ctx context.Context, url string) (int, error) {
	size := make(chan int, 1)
	from, to, err := pair(url, func(m *nats.Msg) { size <- m.Size() - len(m.Subject) })
	if err != nil {
		return 0, err
	}
	defer from.Close()
	defer to.Close()
	bus, err := tidings.Open(ctx, url, tidings.Options{App: "shop", Codec: tidings.JSON})
	if err != nil {
		return 0, err
	}
	if err := errors.Join(bus.Publish(ctx, name, json.RawMessage(liveBody)), bus.Drain(ctx)); err != nil {
		return 0, err
	}
	select {
	case n := <-size:
		return n, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// watermillWire is watermill-nats over core NATS. Its events have an id of their
// own always; with metadata also what an event of ours says of itself.
func watermillWire(metadata message.Metadata) wiring {
	return func(ctx context.Context, url string, handle func()) (*wire, error) {
		core, log := wnats.JetStreamConfig{Disabled: true}, watermill.NopLogger{}
		pub, err := wnats.NewPublisher(wnats.PublisherConfig{URL: url, JetStream: core}, log)
		if err != nil {
			return nil, err
		}
		sub, err := wnats.NewSubscriber(wnats.SubscriberConfig{URL: url, JetStream: core}, log)
		if err != nil {
			return nil, errors.Join(err, pub.Close())
		}
		messages, err := sub.Subscribe(context.Background(), name) // its context ends the subscription
		if err != nil {
			return nil, errors.Join(err, pub.Close(), sub.Close())
		}
		reader := loop.Go(func(context.Context) {
			for m := range messages {
				handle()
				m.Ack()
			}
		})
		return &wire{
			publish: func() error {
				m := message.NewMessage(watermill.NewShortUUID(), liveBody)
				for k, v := range metadata {
					m.Metadata.Set(k, v)
				}
				return pub.Publish(name, m)
			},
			close: func() error {
				err := errors.Join(pub.Close(), sub.Close())
				<-reader.Done()
				return err
			},
		}, nil
	}
}

// saidOfItself is what an event of ours says besides its id and its topic.
var saidOfItself = message.Metadata{"ce-specversion": "1.0", "ce-source": "//shop/host-1", "ce-type": name,
	"ce-time": "2026-01-02T03:04:05.000000006Z", "ce-datacontenttype": "application/json"}

// Latency is measured at a rate that leaves everything idle most of the time.
const liveEvery = 100 * time.Microsecond

// latency makes a candidate whose figure is not the time per operation but a
// quantile of how long events take from the call that publishes them to their
// handler. Events of one publisher come in order, so that the n-th that arrives is
// the n-th that was sent.
func latency(label string, k kind, quantile float64, open wiring) candidate {
	return candidate{label, k, func() (*rig, error) {
		var run atomic.Pointer[flight]
		w, err := connected(open, func() { run.Load().arrived() })
		if err != nil {
			return nil, err
		}
		var last *flight
		return &rig{
			close: w.close,
			op: func(n int) error {
				last = &flight{countdown: newCountdown(n), sent: make([]atomic.Int64, n), took: make([]time.Duration, n), since: time.Now()}
				run.Store(last)
				return last.send(w.publish)
			},
			figure: func() float64 { return last.quantile(quantile) },
			noisy:  true, // what is allocated while it waits is nobody's cost
		}, nil
	}}
}

// A flight is events on their way.
type flight struct {
	*countdown
	since time.Time
	sent  []atomic.Int64
	took  []time.Duration
	n     int // have arrived
}

func (f *flight) send(publish func() error) error {
	runtime.LockOSThread() // a thread that was given away takes its time to come back
	defer runtime.UnlockOSThread()
	for i := range f.sent {
		// By schedule: an event that is late does not push back the others.
		if d := time.Duration(i)*liveEvery - time.Since(f.since); d > 0 {
			time.Sleep(d)
		}
		f.sent[i].Store(int64(time.Since(f.since)))
		if err := publish(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	return f.wait(ctx)
}

func (f *flight) arrived() {
	f.took[f.n] = time.Since(f.since) - time.Duration(f.sent[f.n].Load())
	f.n++
	f.one()
}

func (f *flight) quantile(q float64) float64 {
	slices.Sort(f.took)
	return float64(f.took[int(q*float64(len(f.took)-1))])
}

// liveRows is what is published to a subscriber in another process, at most once.
func liveRows(e effort) []row {
	many := &effort{rounds: e.rounds, fixed: cmp.Or(e.fixed, liveEvents)}
	paced := &effort{rounds: min(e.rounds, 5), fixed: cmp.Or(e.fixed, int(time.Second/liveEvery))}
	named := nats.Header{"Content-Type": {"application/cloudevents+json"}}
	traced := map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	rows := []row{
		{id: "l1", name: "live, publish to remote handler, 128 B", cpu: 2, effort: many, goal: goal{floor: 2, peer: 0.33}, candidates: []candidate{
			through("tidings, CloudEvents", ours, ourWire("", nil)), through("nats.go, equal bytes, no headers", floor, rawWire(0, nil)),
			through("nats.go, equal bytes, one header", beside, rawWire(0, named)), through("nats.go, 128 bytes, no headers", beside, rawWire(len(liveBody), nil)),
			through("tidings, wire=binary", beside, ourWire("?wire=binary", nil)), through("tidings, with trace context", beside, ourWire("", traced)),
			through("watermill-nats", peer, watermillWire(nil)), through("watermill-nats, with metadata", peer, watermillWire(saidOfItself))}},
	}
	for _, q := range []struct {
		id   string
		q    float64
		most float64
	}{{"l2", 0.5, 1.15}, {"l3", 0.99, 1.5}} {
		rows = append(rows, row{id: q.id, name: fmt.Sprintf("live, p%g latency at 10 k/s", 100*q.q), cpu: 2, effort: paced, median: true, goal: goal{floor: q.most},
			candidates: []candidate{latency("tidings, CloudEvents", ours, q.q, ourWire("", nil)), latency("nats.go, equal bytes, no headers", floor, q.q, rawWire(0, nil)),
				latency("tidings, wire=binary", beside, q.q, ourWire("?wire=binary", nil))}})
	}
	return rows
}
