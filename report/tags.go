package report

import (
	"context"
	"maps"
	"reflect"

	"github.com/tidings-go/tidings"
)

// Keys of the bus's tags that are no tags of ours.
const (
	tagContext  = "context"
	tagLocation = "source_location"
)

func reserved(key string) bool { return key == tagContext || key == tagLocation }

// Tagged returns a context whose events carry these tags besides those of ctx; on
// equal keys the new ones win. A string is a tag that is true; a map with string
// keys is merged; any other value is a tag under the name of its type, as
// [Reporter.NotifyObject] makes it. Left out are nil, what has no such name, and
// the reserved keys. Tags that leave the process must be fit for JSON.
func Tagged(ctx context.Context, args ...any) context.Context {
	tags := map[string]any{}
	for _, arg := range args {
		switch arg := arg.(type) {
		case string:
			tags[arg] = true
		case map[string]any:
			maps.Copy(tags, arg)
		default:
			tagOther(tags, arg)
		}
	}
	maps.DeleteFunc(tags, func(key string, _ any) bool { return reserved(key) })
	return tidings.WithTags(ctx, tags)
}

func tagOther(tags map[string]any, arg any) {
	if v := reflect.ValueOf(arg); v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String {
		for it := v.MapRange(); it.Next(); {
			tags[it.Key().String()] = it.Value().Interface()
		}
		return
	}
	if name, err := typeName(arg); err == nil {
		tags[name] = arg
	}
}

// WithContext returns a context whose events have these values as their context,
// besides those that ctx has already; on equal keys the new ones win. values is
// copied, and must be fit for JSON if the events leave the process.
func WithContext(ctx context.Context, values map[string]any) context.Context {
	all := make(map[string]any, len(values)+4)
	maps.Copy(all, Context(ctx))
	maps.Copy(all, values)
	return tidings.WithTags(ctx, map[string]any{tagContext: all})
}

// ClearContext returns a context without what [WithContext] has set.
func ClearContext(ctx context.Context) context.Context {
	if Context(ctx) == nil {
		return ctx
	}
	return tidings.WithTags(ctx, map[string]any{tagContext: nil}) // tags cannot be taken back
}

// Context returns what [WithContext] has set: inside a handler, in the process
// that reported. It is nil without anything, and not to be changed.
func Context(ctx context.Context) map[string]any {
	values, _ := tidings.Tags(ctx)[tagContext].(map[string]any)
	return values
}
