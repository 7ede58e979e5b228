package adapter

import (
	"context"
	"errors"
	"time"
)

// ErrNoReplay: the group was given nothing by a replay that could go on.
var ErrNoReplay = errors.New("there is no replay to resume")

// ReplayHeader is the key in [Message.Header] of an event that a replay gives a
// group. What it holds is the transport's own.
const ReplayHeader = "tidings-replay"

// Replay says which stored events a durable group is given once more.
type Replay struct {
	Group, Pattern string // the group, and the pattern that it has subscribed to

	// Topics narrows what is given to what matches it too; empty: all that the
	// group's pattern matches.
	Topics string
	From   uint64    // not those before this sequence
	Since  time.Time // not those stored before; those without a time are old
	Until  time.Time // not those stored then or later; zero: no end
	// Resume goes on with the replay of this group that was begun last, after the
	// last event that it has given, up to where it was to end. The four before are
	// then not set.
	Resume bool
	DryRun bool // finds out what there is and gives nothing
	// Progress, if not nil, is told now and then, by the goroutine of the caller.
	Progress func(Replayed)
}

// Replayed is how far a replay has come.
type Replayed struct {
	Stream string `json:"stream"`
	Events uint64 `json:"events"` // that there were to give when it began
	Given  uint64 `json:"given"`  // of those, stored for the group
	// Gone: purged, or expired, before they could be given. Known at the end.
	Gone  uint64 `json:"gone"`
	First uint64 `json:"first_sequence"` // of the events to give; 0: there are none
	Next  uint64 `json:"next_sequence"`  // all before it is given
	End   uint64 `json:"end_sequence"`   // the last that could be given
	// Waits says what the replay waits for; empty: it goes on.
	Waits string `json:"waits,omitempty"`
}

// Replayer is implemented by adapters whose Caps say Durable. Its methods may be
// called concurrently, by any process of the transport; none needs a subscription.
type Replayer interface {
	// Patterns are those that a durable group has subscribed to, sorted. A group
	// that does not exist is an error that names those that do.
	Patterns(ctx context.Context, group string) ([]string, error)
	// Replay gives a durable group events that it is done with, and returns when
	// all are stored for it.
	//   - Nobody else gets them: no other group, no live subscription, no later group.
	//   - They are new events at new places, in their order among each other:
	//     Attempt begins at 1. Id, topic, time, source, headers and bytes are those
	//     they had; [ReplayHeader] is added.
	//   - It ends before the first event that the group has not settled when it
	//     begins: nothing comes twice that was to come anyway.
	//   - New events come to the group meanwhile. What it has been given and not yet
	//     taken is bounded, by waiting for the group.
	//   - Publishers are not refused because of it: it stops with ErrFull while
	//     there is room for them.
	//   - When ctx ends, or whoever calls is killed, Resume goes on exactly there:
	//     nothing is given twice, nothing left out. ErrNoReplay when there is none.
	//   - What it returns with an error says how far it came.
	Replay(ctx context.Context, r Replay) (Replayed, error)
}
