// Package subscriber makes one value the subscriber of many topics: each of its
// methods handles the topic that it is named for.
//
//	type Mails struct{ … }
//
//	func (m *Mails) OrderPlaced(ctx context.Context, e tidings.Event, o Order) error { … }
//	func (m *Mails) OrderSent(ctx context.Context, e tidings.Event) error { … }
//
//	mails, err := subscriber.Attach(ctx, bus, "shop", &Mails{}, nil)
//
// subscribes to shop.order_placed and shop.order_sent. It is what
// ActiveSupport::Subscriber is in Rails and, with Options.Logger, what
// ActiveSupport::LogSubscriber is.
//
// # Promises
//
//   - Attach makes all the subscriptions or none.
//   - The methods are those of Go's method set, when Attach is called. Promoted
//     methods of embedded structs are among them, where Rails leaves inherited
//     ones out unless it is told inherit_all: name those in Options.Except.
//     Methods named Start or Finish are ordinary.
//   - Attaching twice makes two subscribers, and both live.
//   - A failing log subscriber is logged, and fails nobody else.
package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/topic"
)

// Options configure [Attach]; nil means the defaults.
type Options struct {
	// Topic makes the topic or pattern of a method, from the namespace and from the
	// method's name in snake case. Default: namespace + "." + event, or the event
	// alone if the namespace is empty. For Rails' order: event + "." + namespace.
	Topic func(namespace, event string) string
	// Except names methods, or keys of Handlers, that handle no events. It is an
	// error to name one that would not.
	Except []string
	// Subscribe are the options of all the subscriptions. Default: the bus's own, so
	// each event is handled once per app, from a queue for each method. Set Inline
	// for handlers that are to run where the event happens, as those of Rails do. The
	// name of each is Name, or else v's type, and the method's: "shop.Mailer.Placed".
	Subscribe *tidings.SubscribeOptions
	// Logger makes v a log subscriber: a method is not called while the logger is
	// not enabled for its Level, which is asked at each event, and what it returns
	// or panics with is logged, and not reported as the error of a handler.
	Logger *slog.Logger
	// Level is the level that a method, or a key of Handlers, logs at. Default:
	// Info. It is called at each event, concurrently. Needs Logger.
	Level func(method string) slog.Level
}

// Attached is a value that is subscribed. Its methods may be called concurrently
// and from inside any handler.
type Attached struct{ subs []*tidings.Subscription }

// Attach subscribes each exported method of v that is a
//
//	func(context.Context, tidings.Event) error
//	func(context.Context, tidings.Event, T) error
//
// to the topic named for it: OrderPlaced handles namespace.order_placed. The
// second form gets the payload decoded into T; one that does not decode is an
// error that no retry can mend. Other methods are left alone.
//
// If v has a method Handlers() map[string]tidings.Handler, what it returns is
// subscribed instead: a table made at run time, with the names of methods as keys.
//
// Attach fails if there is nothing to subscribe, if the methods are those of a
// pointer and v is none, or if a subscription cannot be made; then none is left.
// ctx bounds the wait for the transport. Attach may be called concurrently and
// from inside a handler.
func Attach(ctx context.Context, bus *tidings.Bus, namespace string, v any, o *Options) (*Attached, error) {
	var opts Options
	if o != nil {
		opts = *o
	}
	fail := func(err error) (*Attached, error) {
		return nil, fmt.Errorf("subscriber: attach %T to %q: %w", v, namespace, err)
	}
	if opts.Level != nil && opts.Logger == nil {
		return fail(errors.New("the field Options.Level is for log subscribers: set Logger too"))
	}
	handlers, err := handlersOf(v)
	if err != nil {
		return fail(err)
	}
	for _, name := range opts.Except {
		if _, ok := handlers[name]; !ok {
			return fail(fmt.Errorf("the field Options.Except names %q, which handles nothing; there are %q", name, slices.Sorted(maps.Keys(handlers))))
		}
	}
	for _, name := range opts.Except {
		delete(handlers, name)
	}
	if len(handlers) == 0 {
		return fail(fmt.Errorf("nothing to subscribe: want exported methods %s or %s, or a method %s that returns some", plainForm, typedForm, tableForm))
	}
	a := &Attached{}
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		h, so := handlers[name], opts.named(v, name)
		if opts.Logger != nil && h != nil {
			h, so.Filter = opts.logging(h), opts.silenced(name, so.Filter)
		}
		s, err := bus.Subscribe(ctx, opts.topic(namespace, topic.FromName(name)), h, so)
		if err != nil {
			a.Detach()
			return fail(fmt.Errorf("%s: %w", name, err))
		}
		a.subs = append(a.subs, s)
	}
	return a, nil
}

// named are the options of one method, with a name that tells it from the others:
// they are all subscribed in one line.
func (o *Options) named(v any, method string) *tidings.SubscribeOptions {
	var so tidings.SubscribeOptions
	if o.Subscribe != nil {
		so = *o.Subscribe
	}
	if so.Name == "" {
		so.Name = strings.TrimLeft(fmt.Sprintf("%T", v), "*")
		if so.Name, _, _ = strings.Cut(so.Name, "["); len(so.Name)+len(method) > 150 {
			so.Name = "" // an anonymous struct, say
		}
	}
	so.Name = strings.TrimLeft(so.Name+"."+method, ".")
	return &so
}

func (o *Options) topic(namespace, event string) string {
	switch {
	case o.Topic != nil:
		return o.Topic(namespace, event)
	case namespace == "":
		return event
	}
	return namespace + "." + event
}

// Detach ends all the subscriptions at once, as [tidings.Subscription.Stop] does:
// what waits in queues is dropped. Calling it again does nothing.
func (a *Attached) Detach() {
	for _, s := range a.subs {
		s.Stop()
	}
}

// Drain ends all the subscriptions and loses nothing, as
// [tidings.Subscription.Drain] does, one after the other; its error is that of all
// that were not done when ctx ended.
func (a *Attached) Drain(ctx context.Context) error {
	errs := make([]error, 0, len(a.subs))
	for _, s := range a.subs {
		errs = append(errs, s.Drain(ctx))
	}
	return errors.Join(errs...)
}

// Subscriptions returns the subscriptions, by the names of their methods.
func (a *Attached) Subscriptions() []*tidings.Subscription { return slices.Clone(a.subs) }

const (
	plainForm = "func(context.Context, tidings.Event) error"
	typedForm = "func(context.Context, tidings.Event, T) error"
	tableForm = "Handlers() map[string]tidings.Handler"
)

// handlersOf finds the handlers of v by their names. The map is the caller's.
func handlersOf(v any) (map[string]tidings.Handler, error) {
	if v == nil {
		return nil, errors.New("there is no value")
	}
	if table, ok := v.(interface {
		Handlers() map[string]tidings.Handler
	}); ok {
		return maps.Clone(table.Handlers()), nil
	}
	value := reflect.ValueOf(v)
	found := map[string]tidings.Handler{}
	for m, method := range value.Methods() {
		if h := handlerOf(method); h != nil {
			found[m.Name] = h
		}
	}
	if t := value.Type(); t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface {
		for m, method := range reflect.New(t).Methods() {
			if found[m.Name] == nil && handlerOf(method) != nil {
				return nil, fmt.Errorf("its method %s has a pointer receiver: pass a pointer", m.Name)
			}
		}
	}
	return found, nil
}

var (
	contextType = reflect.TypeFor[context.Context]()
	eventType   = reflect.TypeFor[tidings.Event]()
	errorType   = reflect.TypeFor[error]()
)

// handlerOf returns nil for a method that is no handler.
func handlerOf(method reflect.Value) tidings.Handler {
	t := method.Type()
	if t.IsVariadic() || t.NumOut() != 1 || t.Out(0) != errorType ||
		t.NumIn() < 2 || t.In(0) != contextType || t.In(1) != eventType {
		return nil
	}
	switch t.NumIn() {
	case 2:
		return method.Interface().(func(context.Context, tidings.Event) error)
	case 3:
		return decoding(method, t.In(2))
	}
	return nil
}

// decoding is what [tidings.Topic.Subscribe] does for a type known to the
// compiler.
func decoding(method reflect.Value, payload reflect.Type) tidings.Handler {
	return func(ctx context.Context, e tidings.Event) error {
		p := reflect.New(payload)
		if err := e.Decode(p.Interface()); err != nil {
			return tidings.Permanent(fmt.Errorf("cannot decode %s from %s into %s: %w", e.Topic(), e.Source(), payload, err))
		}
		// A context is never nil here, so that each argument has a type.
		out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(e), p.Elem()})
		err, _ := out[0].Interface().(error)
		return err
	}
}
