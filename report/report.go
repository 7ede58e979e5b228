// Package report is for events that say what happened, for people and log
// stores to read: a name, a payload without secrets, and where they come from. It
// is Rails' event reporter (Rails.event) over a bus.
//
//	events := report.New(bus, report.Options{})
//
//	ctx = report.WithContext(ctx, map[string]any{"request_id": id})
//	ctx = report.Tagged(ctx, "checkout")
//	err := events.Notify(ctx, "order.placed", map[string]any{"id": 7})
//
// Names are topics, and obey their grammar: tokens joined by dots, without white
// space. What is reported is an ordinary event of the bus: it is routed as its
// topic is, any subscription gets it, and [Subscribe] gets it with all that
// belongs to it, in this process or another.
//
// # Promises
//
//   - Nothing is built for an event that nobody listens to: no filtered payload,
//     no location, nothing by the function given to Debug.
//   - Payloads pass the filter before anybody sees them, structs too, where Rails
//     filters only hashes. Tags and context do not: keep secrets out of them.
//   - Tags, context and location travel as tags of the bus (see
//     [tidings.WithTags]), the last two under the keys "context" and
//     "source_location", which are reserved. What a handler publishes with its own
//     ctx carries them on; what it reports has its own location.
//   - All that is set with a context ends with that context. Rails' set_context
//     outlives the block it is called in; here nothing does.
package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strings"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/topic"
	"github.com/tidings-go/tidings/redact"
)

// Options configure a [Reporter]; the zero value works.
type Options struct {
	// Filter takes the secrets out of payloads. Default: redact.New(). A zero
	// redact.Filter filters only what struct tags mark.
	Filter *redact.Filter
	// NoDebug leaves out what is reported by [Reporter.Debug], but for contexts of
	// [WithDebug]. By default it is reported, as in Rails.
	NoDebug bool
	// Strict makes Notify, NotifyObject and Debug return what went wrong. By default
	// they return nil, and OnError gets it: reporting must not break what it reports
	// on. For the errors of inline subscribers the bus must be strict too.
	Strict bool
	// OnError gets errors unless Strict. It may be called concurrently. Default:
	// slog.Default() logs them.
	OnError func(context.Context, error)
	// CallerDepth is how many callers above the one of Notify an event's location is:
	// 1 in a function that wraps the reporter. Default: 0.
	CallerDepth int
}

// Reporter reports events to a bus. Its methods may be called concurrently and
// from inside any handler.
type Reporter struct {
	bus  *tidings.Bus
	opts Options
}

// New makes a reporter on the bus. There may be several on one.
func New(bus *tidings.Bus, o Options) *Reporter {
	if o.Filter == nil {
		o.Filter = redact.New()
	}
	if o.OnError == nil {
		o.OnError = func(ctx context.Context, err error) { slog.Default().ErrorContext(ctx, err.Error()) }
	}
	return &Reporter{bus, o}
}

// Notify reports an event: payload is a map, a struct, or nil. The error is nil
// unless Options.Strict; then it is that of [tidings.Bus.Publish]. A closed bus has
// no listeners, so reporting to it does nothing.
func (r *Reporter) Notify(ctx context.Context, name string, payload any) error {
	return r.notify(ctx, name, func() any { return payload })
}

// NotifyObject is Notify with the name of obj's type, package and all: a
// shop.OrderPlaced, or a pointer to one, is reported as shop.order_placed. An obj
// whose type has no such name is an error, as those of Notify are.
func (r *Reporter) NotifyObject(ctx context.Context, obj any) error {
	inner, _ := unwrap(obj)
	name, err := typeName(inner)
	if err != nil {
		return r.fail(ctx, err)
	}
	return r.notify(ctx, name, func() any { return obj })
}

// Debug is Notify, of what payload returns, in debug mode only. The function is
// called only then, and only if somebody listens.
func (r *Reporter) Debug(ctx context.Context, name string, payload func() any) error {
	if !r.DebugMode(ctx) {
		return nil
	}
	return r.notify(ctx, name, payload)
}

type debugKey struct{}

// WithDebug returns a context in which debug mode is on.
func WithDebug(ctx context.Context) context.Context { return context.WithValue(ctx, debugKey{}, true) }

// DebugMode reports whether Debug does anything with this context: yes, unless
// Options.NoDebug is set and ctx does not come from [WithDebug].
func (r *Reporter) DebugMode(ctx context.Context) bool {
	return !r.opts.NoDebug || ctx.Value(debugKey{}) != nil
}

// Unfiltered marks the payload of one event as one that holds no secrets,
// whatever its names are: it does not pass the reporter's filter. A filter of the
// bus's own still sees it. It means something to a Reporter only.
func Unfiltered(payload any) any { return unfiltered{payload} }

type unfiltered struct{ payload any }

func unwrap(payload any) (inner any, marked bool) {
	if u, ok := payload.(unfiltered); ok {
		return u.payload, true
	}
	return payload, false
}

// notify is called by exported methods directly, or the location is wrong.
func (r *Reporter) notify(ctx context.Context, name string, payload func() any) error {
	err := r.bus.PublishLazy(ctx, name, func(ctx context.Context) (context.Context, any) {
		payload, marked := unwrap(payload())
		if !marked {
			payload = r.opts.Filter.Value(payload)
		}
		return tidings.WithTags(ctx, map[string]any{tagLocation: caller(r.opts.CallerDepth)}), payload
	})
	if err == nil || closed(err) {
		return nil
	}
	return r.fail(ctx, err)
}

// closed reports whether the bus refused the event because it has ended, not a
// subscriber who said so.
func closed(err error) bool {
	var e *tidings.Error
	return errors.As(err, &e) && !e.Accepted && e.Err == tidings.ErrClosed
}

func (r *Reporter) fail(ctx context.Context, err error) error {
	if r.opts.Strict {
		return err
	}
	r.opts.OnError(ctx, err)
	return nil
}

// caller is where the exported method was called, or depth callers above.
func caller(depth int) Location {
	var pcs [1]uintptr
	if runtime.Callers(6+depth, pcs[:]) == 0 { // Callers, caller, notify's function, PublishLazy, notify, the method
		return Location{}
	}
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	return Location{f.File, f.Line, f.Function}
}

// typeName is shop.order_placed for a shop.OrderPlaced.
func typeName(v any) (string, error) {
	if v == nil {
		return "", errors.New("report: nil has no type to name an event for: use Notify")
	}
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Name() == "" || t.PkgPath() == "" {
		return "", fmt.Errorf("report: %s has no name of its own to name an event for: use Notify", t)
	}
	pkg, _, _ := strings.Cut(t.String(), ".")
	name, _, _ := strings.Cut(t.Name(), "[")
	return pkg + "." + topic.FromName(name), nil
}
