package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings"
)

// stored128 is what publishers publish: 128 bytes with the quotes of JSON.
var stored128 = strings.Repeat("x", 126)

// A publisher is a broker that syncs each message, or does not, and two clients.
type publisher struct {
	*broker
	nc  *nats.Conn
	js  jetstream.JetStream
	bus *tidings.Bus
}

func openPublisher(sync bool) (*publisher, error) {
	return openBus(sync, func(*publisher) tidings.Options {
		return tidings.Options{App: "bench", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}}
	})
}

func openBus(sync bool, options func(*publisher) tidings.Options) (p *publisher, err error) {
	var args []string
	if sync {
		args = append(args, syncArg)
	}
	b, err := startBroker(args...)
	if err != nil {
		return nil, err
	}
	p = &publisher{broker: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.nc, err = nats.Connect(b.url); err != nil {
		return p, err
	}
	if p.js, err = jetstream.New(p.nc); err != nil {
		return p, err
	}
	p.bus, err = tidings.Open(context.Background(), b.url, options(p))
	return p, err
}

func (p *publisher) close() error {
	var err error
	if p.bus != nil {
		err = p.bus.Close()
	}
	if p.nc != nil {
		p.nc.Close()
	}
	return errors.Join(err, p.broker.close())
}

// waiting makes a candidate of which so many callers wait at once, each for its own
// event.
func waiting(name string, k kind, sync bool, callers int, publish func(ctx context.Context, p *publisher) error) candidate {
	return candidate{name, k, func() (*rig, error) {
		p, err := openPublisher(sync)
		if err != nil {
			return nil, err
		}
		return &rig{op: func(n int) error {
			return share(n, callers, func(ctx context.Context) error { return publish(ctx, p) })
		}, close: p.close}, nil
	}}
}

// share has so many goroutines do n things.
func share(n, callers int, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
	defer cancel()
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	var wg sync.WaitGroup
	errs := make([]error, min(callers, n))
	for i := range errs {
		wg.Go(func() {
			for range todo {
				if errs[i] = do(ctx); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func ourPublish(sync bool, callers int) candidate {
	return waiting("tidings", ours, sync, callers, func(ctx context.Context, p *publisher) error {
		return p.bus.Publish(ctx, name, stored128)
	})
}

// rawEvent is nats.go's with the headers that make it a CloudEvent in binary mode: what is
// left of the difference to ours is not the form.
func rawEvent(sync bool, callers int) candidate {
	data := []byte(`"` + stored128 + `"`)
	return waiting("nats.go, single, as an event", beside, sync, callers, func(ctx context.Context, p *publisher) error {
		m := eventMsg(data)
		_, err := p.js.PublishMsg(ctx, m)
		return err
	})
}

func eventMsg(data []byte) *nats.Msg {
	id := nuid.Next()
	return &nats.Msg{Subject: name, Data: data, Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-source": {"//bench/host-1"}, "ce-type": {name},
		"ce-time": {time.Now().UTC().Format(time.RFC3339Nano)}, "Content-Type": {"application/json"}, nats.MsgIdHdr: {id}}}
}

// rawBatches is nats.go's with atomic batches of so many events, one after the other, by one
// caller who has them all at hand: what callers who share a batch cannot be faster than.
func rawBatches(sync bool, size int) candidate {
	data := []byte(`"` + stored128 + `"`)
	batch := func(ctx context.Context, p *publisher, n int) error {
		id := nuid.Next()
		for i := range n {
			m := eventMsg(data)
			m.Header["Nats-Batch-Id"], m.Header["Nats-Batch-Sequence"] = []string{id}, []string{strconv.Itoa(i + 1)}
			if i == n-1 {
				m.Header["Nats-Batch-Commit"] = []string{"1"}
				a, err := p.nc.RequestMsgWithContext(ctx, m)
				if err != nil {
					return err
				}
				if !strings.Contains(string(a.Data), `"count":`+strconv.Itoa(n)) {
					return fmt.Errorf("the stream answered %s", a.Data)
				}
				return nil
			}
			if err := p.nc.PublishMsg(m); err != nil {
				return err
			}
		}
		return nil
	}
	return candidate{"nats.go, batches, as an event", beside, func() (*rig, error) {
		p, err := openPublisher(sync)
		if err != nil {
			return nil, err
		}
		return &rig{op: func(n int) error {
			ctx, cancel := context.WithTimeout(context.Background(), consumeLimit)
			defer cancel()
			for ; n > 0; n -= size {
				if err := batch(ctx, p, min(n, size)); err != nil {
					return err
				}
			}
			return nil
		}, close: p.close}, nil
	}}
}

// rawPublish is nats.go's, of as many bytes of payload, with the id that makes a
// repetition safe and no other header.
func rawPublish(sync bool, callers int) candidate {
	data := []byte(`"` + stored128 + `"`)
	return waiting("nats.go, single", floor, sync, callers, func(ctx context.Context, p *publisher) error {
		_, err := p.js.Publish(ctx, name, data, jetstream.WithMsgID(nuid.Next()))
		return err
	})
}
