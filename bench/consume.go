package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	_ "github.com/tidings-go/tidings/natsbus" // makes nats:// URLs known
)

const (
	consumeLimit = time.Minute
)

// store is a stream that several candidates consume, one after the other and each
// from its beginning.
type store struct {
	*broker
	nc     *nats.Conn
	js     jetstream.JetStream
	bus    *tidings.Bus
	stream string
	groups atomic.Int64
}

// fill makes a stream with n events at least as this project writes them, 128 bytes each.
func fill(n int) (s *store, err error) {
	b, err := startBroker()
	if err != nil {
		return nil, err
	}
	s = &store{broker: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	if s.nc, err = nats.Connect(b.url); err != nil {
		return s, err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		return s, err
	}
	s.bus, err = tidings.Open(ctx, b.url, tidings.Options{App: "bench", Codec: tidings.JSON,
		Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return s, err
	}
	payload := strings.Repeat("x", 126) // with its quotes 128
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		wg.Go(func() {
			for range n/len(errs) + 1 {
				errs[i] = errors.Join(errs[i], s.bus.Publish(ctx, name, payload))
			}
		})
	}
	wg.Wait()
	if err = errors.Join(errs...); err != nil {
		return s, err
	}
	s.stream, err = s.js.StreamNameBySubject(ctx, name)
	return s, err
}

func (s *store) close() error {
	var err error
	if s.bus != nil {
		err = s.bus.Close()
	}
	if s.nc != nil {
		s.nc.Close()
	}
	return errors.Join(err, s.broker.close())
}

// settled waits until the server has the acknowledgements of n events.
func (s *store) settled(ctx context.Context, c jetstream.Consumer, n int) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		info, err := c.Info(ctx)
		if err != nil {
			return err
		}
		if info.AckFloor.Stream >= uint64(n) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d events acknowledged: %w", info.AckFloor.Stream, n, context.Cause(ctx))
		}
	}
}

// countdown is closed once n events were handled.
type countdown struct {
	left atomic.Int64
	done chan struct{}
}

func newCountdown(n int) *countdown {
	c := &countdown{done: make(chan struct{})}
	c.left.Store(int64(n))
	return c
}

func (c *countdown) one() {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}

func (c *countdown) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d events were not handled: %w", c.left.Load(), context.Cause(ctx))
	}
}

// consumer makes a candidate that handles and acknowledges n events of a store.
func consumer(label string, k kind, events int, consume func(ctx context.Context, s *store, group string, each func()) (c jetstream.Consumer, stop func() error, err error)) candidate {
	return candidate{label, k, func() (*rig, error) {
		s, err := fill(events)
		if err != nil {
			return nil, err
		}
		var stops []func() error
		return &rig{
			op: func(n int) error {
				ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
				defer cancel()
				left := newCountdown(n)
				c, stop, err := consume(ctx, s, "g"+strconv.FormatInt(s.groups.Add(1), 10), left.one)
				if err != nil {
					return err
				}
				stops = append(stops, stop)
				return errors.Join(left.wait(ctx), s.settled(ctx, c, n))
			},
			around: func(run func() error) error {
				err := run()
				for _, stop := range stops {
					err = errors.Join(err, stop())
				}
				stops = nil
				return err
			},
			close: s.close,
			noisy: true,
		}, nil
	}}
}

// oursDurable is a durable subscription as users get it: every acknowledgement is
// confirmed by the server.
func oursDurable(events int) candidate {
	c := consumer("tidings, acks confirmed", ours, events, func(ctx context.Context, s *store, group string, each func()) (jetstream.Consumer, func() error, error) {
		sub, err := s.bus.Subscribe(ctx, name, func(_ context.Context, e tidings.Event) error {
			each()
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Group: group})
		if err != nil {
			return nil, nil, err
		}
		c, err := s.consumerOf(ctx, group)
		return c, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
			defer cancel()
			return errors.Join(sub.Drain(ctx), s.js.DeleteConsumer(ctx, s.stream, c.CachedInfo().Name))
		}, err
	})
	build := c.build
	c.build = func() (*rig, error) {
		note, err := inFlight(events)
		if err != nil {
			return nil, err
		}
		r, err := build()
		if err == nil {
			r.notes = append(r.notes, note)
		}
		return r, err
	}
	return c
}

// consumerOf finds what a durable group is called on the server.
func (s *store) consumerOf(ctx context.Context, group string) (jetstream.Consumer, error) {
	stream, err := s.js.Stream(ctx, s.stream)
	if err != nil {
		return nil, err
	}
	names := stream.ConsumerNames(ctx)
	for n := range names.Name() {
		if strings.HasPrefix(n, group+"-") {
			return stream.Consumer(ctx, n)
		}
	}
	return nil, fmt.Errorf("no consumer of group %s: %w", group, names.Err())
}

// rawConsume is nats.go's Consume, with acknowledgements that nobody confirms.
func rawConsume(events int) candidate {
	return consumer("nats.go Consume, plain acks", floor, events, func(ctx context.Context, s *store, group string, each func()) (jetstream.Consumer, func() error, error) {
		c, err := s.js.CreateConsumer(ctx, s.stream, jetstream.ConsumerConfig{Durable: group, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 20_000})
		if err != nil {
			return nil, nil, err
		}
		var failed atomic.Pointer[error]
		cc, err := c.Consume(func(m jetstream.Msg) {
			each()
			if err := m.Ack(); err != nil {
				failed.Store(&err)
			}
		})
		if err != nil {
			return nil, nil, err
		}
		return c, func() error {
			cc.Drain()
			<-cc.Closed()
			err := s.js.DeleteConsumer(context.Background(), s.stream, group)
			if f := failed.Load(); f != nil {
				err = errors.Join(err, *f)
			}
			return err
		}, nil
	})
}

// inFlight is what an event in the hands of a durable subscription costs in memory.
func inFlight(events int) (string, error) {
	s, err := fill(events)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	release, handled := make(chan struct{}), atomic.Int64{}
	sub, err := s.bus.Subscribe(ctx, name, func(context.Context, tidings.Event) error {
		if handled.Add(1) > int64(events)/4 { // fast until then: more is prefetched
			<-release
		}
		return nil
	},
		&tidings.SubscribeOptions{Durable: true, Group: "held", Queue: 4096, Workers: 64})
	if err != nil {
		return "", errors.Join(err, s.close())
	}
	c, err := s.consumerOf(ctx, "held")
	held := 0
	for same := 0; err == nil && same < 5; {
		var info *jetstream.ConsumerInfo
		if info, err = c.Info(ctx); err == nil {
			if info.NumAckPending == held {
				same++
			} else {
				held, same = info.NumAckPending, 0
			}
			<-time.After(50 * time.Millisecond)
		}
	}
	after := heap()
	close(release)
	loop.Go(func(context.Context) { _ = sub.Drain(ctx) }).StopAndWait()
	if err = errors.Join(err, s.close()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d events in flight held %d bytes each, payload of 128 and headers included", held, (int64(after)-int64(before))/int64(max(held, 1))), nil
}
