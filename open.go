package tidings

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/tidings-go/tidings/adapter"
)

// defaultBus is made at first use: a program without a Default bus reads no
// environment for it.
var defaultBus = sync.OnceValue(func() *Bus {
	b, err := New(Options{})
	if err != nil {
		panic(err) // only the environment can be wrong; the text names the variable
	}
	return b
})

// Default is the bus of the process: the same one for ever, which package-level
// functions and [NewTopic] use. Its options come from TIDINGS_APP,
// TIDINGS_PREFIX and TIDINGS_ROUTES; it panics if they are malformed. Give it a
// transport with [Bus.Attach].
func Default() *Bus { return defaultBus() }

// Publish publishes on the Default bus.
func Publish(ctx context.Context, topic string, payload any) error {
	return Default().Publish(ctx, topic, payload)
}

// Instrument instruments on the Default bus.
func Instrument(ctx context.Context, topic string, payload any, fn func(context.Context) error) error {
	return Default().Instrument(ctx, topic, payload, fn)
}

// Subscribe subscribes on the Default bus.
func Subscribe(ctx context.Context, pattern string, h Handler, o *SubscribeOptions) (*Subscription, error) {
	return Default().Subscribe(ctx, pattern, h, o)
}

// Open makes a bus and attaches the transport of the URL; see [Bus.Attach].
func Open(ctx context.Context, url string, o Options) (*Bus, error) {
	b, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := b.Attach(ctx, url); err != nil {
		_ = b.Close() // nothing was published yet
		return nil, err
	}
	return b, nil
}

// Attach connects the bus to others over the transport that the URL's scheme
// names, and returns once all its subscriptions have joined. The empty URL means
// TIDINGS_URL; if that is empty too, or for "mem:", the bus stays in process. The
// scheme's package must be imported:
//
//	nats://HOST:PORT?token-file=PATH   github.com/tidings-go/tidings/natsbus
//	embed:DIR                          github.com/tidings-go/tidings/hub
//	mem:NAME                           github.com/tidings-go/tidings/adapter/memory
//
// It can succeed once per bus. It fails when the broker does not answer, refuses
// the credentials, or cannot serve the routes; the bus is then as before.
func (b *Bus) Attach(ctx context.Context, url string) error {
	if url == "" {
		url = os.Getenv("TIDINGS_URL")
	}
	if url == "" || url == "mem:" {
		return nil
	}
	if err := b.attach(ctx, url); err != nil {
		return &Error{Op: "attach", Err: err}
	}
	return nil
}

func (b *Bus) attach(ctx context.Context, url string) error {
	b.mu.Lock()
	taken, state := b.attached, b.state.Load()
	if state == stateOpen {
		b.attached = true
	}
	b.mu.Unlock()
	switch {
	case state == stateClosed:
		return ErrClosed
	case state == stateDraining:
		return ErrDraining
	case taken:
		return ErrAttached
	}
	a, err := adapter.Open(ctx, url, b.config())
	if err == nil {
		if err = b.useTransport(ctx, a); err != nil {
			_ = a.Close() // the first error is the one to tell
		}
	}
	if err != nil {
		b.mu.Lock()
		b.attached = false
		b.mu.Unlock()
	}
	return err
}

func (b *Bus) config() adapter.Config {
	c := adapter.Config{App: b.opts.App, Instance: b.opts.Instance, Prefix: b.opts.Prefix, SpoolDir: b.opts.SpoolDir, SpoolMax: b.opts.SpoolMax, Logger: b.opts.Logger,
		OnError: func(err error) { b.report(context.Background(), &Error{Op: "transport", Err: err}) }}
	for _, r := range b.opts.Routes {
		if r.Class == Durable {
			c.Durable = append(c.Durable, r.Pattern)
		}
	}
	return c
}

// useTransport joins the subscriptions first and publishes to it only then, so
// that nothing goes out that this process itself would miss.
func (b *Bus) useTransport(ctx context.Context, a adapter.Adapter) error {
	for _, r := range b.opts.Routes {
		if r.Class == Durable && !a.Caps().Durable {
			return fmt.Errorf("route %s is durable; this transport stores nothing", r.Pattern)
		}
		if r.Ack == AckSpool && !a.Caps().Spool {
			return fmt.Errorf("route %s asks for AckSpool; there is no spool: set Options.SpoolDir, on a transport that can have one (nats://), or use AckBroker", r.Pattern)
		}
	}
	b.mu.Lock()
	b.adapter = a
	var made []*feed
	for s := range b.subs {
		if isOwn(s.pattern) || s.watcher {
			continue
		}
		if f, isNew := b.feedOf(s); isNew {
			made = append(made, f)
		}
	}
	b.mu.Unlock()
	err := errors.Join(each(made, func(f *feed) error {
		if err := f.open(ctx, a); err != nil {
			return fmt.Errorf("subscription %s of group %q: %w", f.key.pattern, f.key.group, err)
		}
		return nil
	})...)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.adapter = nil
		b.feeds = map[feedKey]*feed{}
		for s := range b.subs {
			s.joined = nil
		}
		return err
	}
	b.remote = true
	b.allChanged()
	return nil
}

// Ready returns nil once every subscription is seen to work: confirmed by the
// broker, and for durable ones this process's own pull answered. A process that
// takes over from another says that it is ready only then.
func (b *Bus) Ready(ctx context.Context) error {
	_, feeds, _ := b.members()
	err := errors.Join(each(feeds, func(f *feed) error {
		if err := f.ready(ctx); err != nil {
			return fmt.Errorf("subscription %s of group %q: %w", f.key.pattern, f.key.group, err)
		}
		return nil
	})...)
	if err != nil {
		return &Error{Op: "ready", Err: err}
	}
	return nil
}
