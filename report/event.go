package report

import (
	"context"
	"encoding/json"
	"time"

	"github.com/tidings-go/tidings"
)

// Event is what was reported, as [Subscribe] gives it. Subscribers of one process
// share what its maps hold: it is not to be changed.
type Event struct {
	Name string
	// Payload is the value reported, filtered; of an event from another process the
	// decoded generic form, so that a struct is a map. Raw.Decode gives the same for
	// both.
	Payload any
	Tags    map[string]any // nil without any
	Context map[string]any // nil without any
	// Timestamp is when it was reported; see [tidings.Event.Time].
	Timestamp time.Time
	// Location is where it was reported; zero for an event that was published by
	// other means.
	Location Location
	// Raw is the event of the bus, with its id and source.
	Raw tidings.Event
}

// Location is a place in the source. The names in JSON are those of Rails.
type Location struct {
	File     string `json:"filepath"`
	Line     int    `json:"lineno"`
	Function string `json:"label"`
}

// Subscribe calls h for each event whose name matches the pattern, whoever
// published it. For all else it is [tidings.Bus.Subscribe]: the default is a queue,
// and one process of the app for each event.
func Subscribe(ctx context.Context, bus *tidings.Bus, pattern string, h func(context.Context, Event) error, o *tidings.SubscribeOptions) (*tidings.Subscription, error) {
	if h == nil {
		return bus.Subscribe(ctx, pattern, nil, o) // says what is wrong
	}
	return bus.Subscribe(ctx, pattern, func(ctx context.Context, e tidings.Event) error { return h(ctx, eventOf(ctx, e)) }, o)
}

func eventOf(ctx context.Context, e tidings.Event) Event {
	all := tidings.Tags(ctx)
	ev := Event{Name: e.Topic(), Payload: e.Payload(), Context: Context(ctx), Timestamp: e.Time(),
		Location: locationOf(all[tagLocation]), Raw: e}
	for key, value := range all {
		if reserved(key) {
			continue
		}
		if ev.Tags == nil {
			ev.Tags = make(map[string]any, len(all))
		}
		ev.Tags[key] = value
	}
	return ev
}

// locationOf reads the tag, which is a map once it has been over the wire.
func locationOf(tag any) (l Location) {
	if l, ok := tag.(Location); ok {
		return l
	}
	if m, ok := tag.(map[string]any); ok {
		if data, err := json.Marshal(m); err != nil || json.Unmarshal(data, &l) != nil {
			return Location{}
		}
	}
	return l
}
