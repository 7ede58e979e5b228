package natsbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// A Fate is what became of an event in one durable group.
type Fate struct {
	Group   string `json:"group"`
	Pattern string `json:"pattern"`
	State   string `json:"state"`            // one of those below
	Letter  string `json:"letter,omitempty"` // of a dead one, its id
	Reason  string `json:"reason,omitempty"` // and why it was given up
	// Before is how many events of the group up to and with this one are not
	// settled at most, if it waits or is open.
	Before uint64 `json:"before,omitempty"`
}

// What can be known of an event and a group.
const (
	FateSettled = "settled"     // handled; or it had expired, or was given up and its letter is gone
	FateWaiting = "waiting"     // not delivered yet
	FateTaken   = "taken"       // delivered, and not settled: being handled, or to be retried
	FateOpen    = "open"        // delivered; whether it is settled is known once those before it are
	FateDead    = "dead letter" // given up
)

// An EventState is one stored event and what became of it.
type EventState struct {
	ID        string     `json:"id"`
	Topic     string     `json:"topic"`
	Source    string     `json:"source"`
	Time      time.Time  `json:"time"`
	Stream    string     `json:"stream"`
	Sequence  uint64     `json:"sequence"`
	Only      string     `json:"only,omitempty"`       // it was redelivered to this consumer alone
	NotBefore *time.Time `json:"not_before,omitempty"` // it is delayed until then, and in no group yet
	Groups    []Fate     `json:"groups"`
}

// ErrNoEvent: nothing of that id is stored.
var ErrNoEvent = errors.New("no such event is stored")

// Event finds an event by its id in the streams of Tidings, and what became of it in
// each group. It reads the headers of what is stored since then, so that takes a
// while with millions. An event may be there several times: redelivered to a group,
// or published again. The error is ErrNoEvent if there is none.
func (a *Admin) Event(ctx context.Context, id string, since time.Time) ([]EventState, error) {
	all, err := a.c.listStreams(ctx)
	if err != nil {
		return nil, fmt.Errorf("natsbus: list streams: %w", err)
	}
	letters := map[string]*adapter.DeadLetter{}
	for l, err := range a.c.Letters(ctx) {
		if err != nil {
			return nil, err
		}
		letters[l.ID] = l
	}
	var found []EventState
	for _, info := range all {
		if info.Config.Name == a.c.deadStream() {
			continue // letters are told with their events
		}
		here, err := a.find(ctx, info, id, since)
		if err == nil && len(here) > 0 {
			err = a.fates(ctx, info, here, letters)
		}
		if err != nil {
			return nil, fmt.Errorf("natsbus: stream %s: %w", info.Config.Name, err)
		}
		found = append(found, here...)
	}
	if found == nil {
		return nil, fmt.Errorf("natsbus: event %q at %s: %w", id, a.c.addr.public, ErrNoEvent)
	}
	slices.SortStableFunc(found, func(x, y EventState) int { return x.Time.Compare(y.Time) })
	return found, nil
}

// find reads the headers of a stream.
func (a *Admin) find(ctx context.Context, info *jetstream.StreamInfo, id string, since time.Time) (found []EventState, err error) {
	look := func(subject string, seq uint64, h nats.Header) {
		if !mentions(h, id) {
			return // decoding all would take twice as long
		}
		if m, err := decode(a.c.topic(original(subject)), h, nil); err == nil && m.ID == id {
			found = append(found, stateOfEvent(subject, info.Config.Name, seq, &m))
		}
	}
	if info.Config.Retention == jetstream.WorkQueuePolicy { // of delayed events: who looks must not take
		err = a.one(ctx, info, look)
	} else {
		err = a.each(ctx, info, since, look)
	}
	return found, err
}

// one reads a stream message by message.
func (a *Admin) one(ctx context.Context, info *jetstream.StreamInfo, look func(string, uint64, nats.Header)) error {
	st, err := a.c.js.Stream(ctx, info.Config.Name)
	if err != nil {
		return a.c.jsError(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := st.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return a.c.jsError(err)
		}
		look(m.Subject, m.Sequence, m.Header)
		seq = m.Sequence
	}
	return nil
}

// each reads a stream as fast as it comes.
func (a *Admin) each(ctx context.Context, info *jetstream.StreamInfo, since time.Time, look func(string, uint64, nats.Header)) error {
	cfg := jetstream.OrderedConsumerConfig{HeadersOnly: true}
	if !since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	consumer, err := a.c.js.OrderedConsumer(ctx, info.Config.Name, cfg)
	if err != nil {
		return a.c.jsError(err)
	}
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(10_000))
	if err != nil {
		return a.c.jsError(err)
	}
	defer messages.Stop()
	stop := context.AfterFunc(ctx, messages.Stop)
	defer stop()
	for {
		m, err := messages.Next()
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		look(m.Subject(), meta.Sequence.Stream, m.Headers())
		if meta.NumPending == 0 {
			return nil
		}
	}
}

// mentions reports whether a header has the id, in whatever form.
func mentions(h nats.Header, id string) bool {
	encoded := pct(id)
	for _, v := range h {
		if len(v) > 0 && (v[0] == id || v[0] == encoded) {
			return true
		}
	}
	return false
}

func stateOfEvent(subject, stream string, seq uint64, m *adapter.Message) EventState {
	e := EventState{ID: m.ID, Topic: m.Topic, Source: m.Source, Time: m.Time, Stream: stream, Sequence: seq, Groups: []Fate{}}
	switch {
	case strings.HasPrefix(subject, laterRoot):
		e.NotBefore = &m.NotBefore
		if t := m.Header["ce-type"]; t != "" {
			e.Topic = t
		}
	case subject != original(subject):
		e.Only = strings.Split(subject, ".")[3]
	}
	return e
}

// fates asks each group of the stream.
func (a *Admin) fates(ctx context.Context, info *jetstream.StreamInfo, found []EventState, letters map[string]*adapter.DeadLetter) error {
	consumers, err := a.c.consumers(ctx, info.Config.Name)
	if err != nil {
		return err
	}
	for _, i := range consumers {
		if i.Config.Durable == "" {
			continue
		}
		floor, err := a.c.floorOf(ctx, info, i)
		if err != nil {
			return err
		}
		for n := range found {
			if e := &found[n]; e.NotBefore == nil && isFor(e, i) {
				e.Groups = append(e.Groups, fate(e, i, floor, letters))
			}
		}
	}
	for _, e := range found {
		slices.SortFunc(e.Groups, func(x, y Fate) int {
			return cmp.Or(strings.Compare(x.Group, y.Group), strings.Compare(x.Pattern, y.Pattern))
		})
	}
	return nil
}

func isFor(e *EventState, i *jetstream.ConsumerInfo) bool {
	if e.Only != "" {
		return e.Only == i.Name
	}
	return topic.Match(patternOf(i), e.Topic)
}

func fate(e *EventState, i *jetstream.ConsumerInfo, floor holder, letters map[string]*adapter.DeadLetter) Fate {
	f := Fate{Group: groupOf(i), Pattern: patternOf(i)}
	l := letters[fmt.Sprintf("%s:%d:%s", e.Stream, e.Sequence, i.Name)]
	switch {
	case l != nil:
		f.State, f.Letter, f.Reason = FateDead, l.ID, l.Reason
	case e.Sequence <= floor.floor:
		f.State = FateSettled
	case e.Sequence > i.Delivered.Stream:
		f.State, f.Before = FateWaiting, min(i.NumPending+uint64(i.NumAckPending), e.Sequence-floor.floor)
	case i.NumAckPending == 0:
		f.State = FateSettled
	case e.Sequence == floor.floor+1:
		f.State = FateTaken
	default:
		f.State, f.Before = FateOpen, uint64(i.NumAckPending)
	}
	return f
}
