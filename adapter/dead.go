package adapter

import (
	"context"
	"errors"
	"iter"
	"time"
)

// ErrNoLetter: there is no dead letter with this id; it was redriven or dropped.
var ErrNoLetter = errors.New("no such dead letter")

// DeadLetter is an event that a durable group has given up, with all that is
// needed to understand why, and to hand it over once more.
type DeadLetter struct {
	// ID is stream:sequence:group, where group names the durable group and its
	// pattern as the transport does. The adapter makes it.
	ID string
	// Event is what could not be handled: the bytes as they came, and the headers.
	Event    Message
	Stream   string // where it is stored, and its place there
	Sequence uint64

	Group, Pattern string
	Reason         string    // the text of the last error
	Stack          string    // where the handler panicked; empty if it did not
	Attempts       int       // failures of the handler that the process has seen which gave it up
	Deliveries     int       // how often it was handed to a process of the group
	First, Last    time.Time // of those failures
	Instance       string    // //app/instance of the process that gave it up
}

// DeadLetters is implemented by adapters whose Caps say Durable. All methods may
// be called concurrently and by any process of the same transport and prefix;
// none of them needs a subscription.
type DeadLetters interface {
	// Letters yields the dead letters, oldest first, those that are there when it
	// begins and perhaps later ones. An error is yielded once, last.
	Letters(ctx context.Context) iter.Seq2[*DeadLetter, error]
	// Letter returns one; ErrNoLetter when it is not there.
	Letter(ctx context.Context, id string) (*DeadLetter, error)
	// Redeliver gives the event of a letter to the group that gave it up, and to
	// nobody else, and then removes the letter.
	//   - It is a new event at a new place: nothing is known of failures, and
	//     Attempt begins at 1. Id, topic, time, source, headers and bytes are those
	//     it had.
	//   - The letter is removed only after the store has acknowledged the event. Who
	//     dies in between leaves both: a second delivery at most, never a loss.
	//   - When the group is gone, that is an error, and the letter stays.
	Redeliver(ctx context.Context, id string) error
	// Drop removes a letter for good; ErrNoLetter when it is not there.
	Drop(ctx context.Context, id string) error
}

// Giver is implemented by adapters whose Caps say Durable.
type Giver interface {
	// Give stores a message for one durable group and nobody else: no other group,
	// no live subscription, no later group. It returns nil once the store has
	// acknowledged it. Of calls with one key only the first counts, within the
	// store's deduplication window. A group that does not exist is an error.
	Give(ctx context.Context, m *Message, group, pattern, key string) error
}
