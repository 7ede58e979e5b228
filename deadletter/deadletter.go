// Package deadletter looks at the durable events that were given up, gives them
// to their group again, and drops them. It needs a transport, not a bus: a tool
// opens the same URL as the applications do.
//
//	store, err := deadletter.Open(ctx, os.Getenv("TIDINGS_URL"), deadletter.Options{})
//	for l, err := range store.List(ctx, deadletter.Selection{Group: "billing"}) { … }
//	n, err := store.Redrive(ctx, deadletter.Selection{Topic: "order.>"}, deadletter.Action{})
//
// What it promises:
//
//   - An event that its handler gave up, that cannot be decoded, or that was
//     delivered too often, is one dead letter for each group: with its bytes and
//     headers as they came, the error, the stack of a panic, and how often it was
//     tried. The letter is stored before the original is let go of.
//   - Redriving gives the event to the group that gave it up and to nobody else,
//     as a new one: its failures count from nothing; id, topic, time, source and
//     headers are those it had. The letter is removed once the event is stored; who
//     dies in between leaves both, so that the event may come a second time.
//   - Letters are kept until they are redriven or dropped.
//
// The URL's scheme must be imported, as for the bus: natsbus, or adapter/memory.
package deadletter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/tool"
	"github.com/tidings-go/tidings/internal/topic"
)

// Letter is an event that was given up, and why.
type Letter = adapter.DeadLetter

// ErrNoLetter: there is no letter with this id; it was redriven or dropped.
var ErrNoLetter = adapter.ErrNoLetter

// Options are how a store is opened.
type Options struct {
	Prefix string       // that of the applications, [tidings.Options.Prefix]
	Logger *slog.Logger // gets what has no caller; default: nobody
}

// Store is where the dead letters of a transport are. Its methods may be called
// concurrently, and from inside handlers.
type Store struct {
	conn    adapter.Adapter
	letters adapter.DeadLetters
}

// Open connects to a transport. It fails when nobody answers there, or when the
// transport keeps no dead letters.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	a, letters, err := tool.Open[adapter.DeadLetters](ctx, "deadletter", url, o.Prefix, o.Logger, "stores nothing, so it has no dead letters")
	if err != nil {
		return nil, err
	}
	return &Store{a, letters}, nil
}

// Close lets go of the connection.
func (s *Store) Close() error { return s.conn.Close() }

// Selection says which letters are meant: those of which everything holds that is
// set. The zero Selection is all of them for List, and an error for Redrive and
// Drop, which want All said.
type Selection struct {
	All    bool
	IDs    []string
	Group  string
	Topic  string    // a pattern, order.> or order.placed
	Reason string    // a part of the text of the error, whatever its case
	Since  time.Time // given up then or later
}

func (s Selection) check(acting bool) error {
	narrow := len(s.IDs) > 0 || s.Group != "" || s.Topic != "" || s.Reason != "" || !s.Since.IsZero()
	switch {
	case s.All && narrow:
		return errors.New("Selection.All means every letter: leave it out, or the rest")
	case acting && !s.All && !narrow:
		return errors.New("the Selection is empty: set All if every letter is meant")
	case s.Topic == "":
		return nil
	}
	return topic.CheckPattern(s.Topic)
}

func (s Selection) has(l *Letter) bool {
	return (len(s.IDs) == 0 || slices.Contains(s.IDs, l.ID)) &&
		(s.Group == "" || s.Group == l.Group) &&
		(s.Topic == "" || topic.Match(s.Topic, l.Event.Topic)) &&
		strings.Contains(strings.ToLower(l.Reason), strings.ToLower(s.Reason)) &&
		!l.Last.Before(s.Since)
}

// List yields the selected letters, oldest first. An error is yielded once, last.
func (s *Store) List(ctx context.Context, sel Selection) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		if err := sel.check(false); err != nil {
			yield(nil, fmt.Errorf("deadletter: list: %w", err))
			return
		}
		for l, err := range s.letters.Letters(ctx) {
			if err != nil {
				yield(nil, fmt.Errorf("deadletter: list: %w", err))
				return
			}
			if sel.has(l) && !yield(l, nil) {
				return
			}
		}
	}
}

// Get returns one letter, or [ErrNoLetter].
func (s *Store) Get(ctx context.Context, id string) (*Letter, error) {
	l, err := s.letters.Letter(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("deadletter: get: %w", err)
	}
	return l, nil
}

// Action is how Redrive and Drop go about it.
type Action struct {
	DryRun bool                 // do nothing but tell
	Tell   func(*Letter, error) // called for each letter when it is done; may be nil
}

// Redrive gives the selected events to their groups again, in the order in which
// they were published to their stream, and removes their letters. What is given up again meanwhile is not selected. It goes
// on when one fails; n is how many succeeded, and the error names the others.
func (s *Store) Redrive(ctx context.Context, sel Selection, a Action) (n int, err error) {
	return s.each(ctx, "redrive", sel, a, s.letters.Redeliver)
}

// Drop removes the selected letters for good. It goes on when one fails; n is how
// many succeeded, and the error names the others.
func (s *Store) Drop(ctx context.Context, sel Selection, a Action) (n int, err error) {
	return s.each(ctx, "drop", sel, a, s.letters.Drop)
}

func (s *Store) each(ctx context.Context, op string, sel Selection, a Action, do func(context.Context, string) error) (n int, err error) {
	if err := sel.check(true); err != nil {
		return 0, fmt.Errorf("deadletter: %s: %w", op, err)
	}
	letters, err := s.selected(ctx, sel)
	if err != nil {
		return 0, fmt.Errorf("deadletter: %s: %w", op, err)
	}
	var errs []error
	for _, l := range letters {
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("deadletter: %s: after %d of %d: %w", op, n, len(letters), context.Cause(ctx)))
			break
		}
		var err error
		if !a.DryRun {
			err = do(ctx, l.ID)
		}
		if err != nil {
			errs = append(errs, err)
		} else {
			n++
		}
		if a.Tell != nil {
			a.Tell(l, err)
		}
	}
	return n, errors.Join(errs...)
}

// selected are the letters there are before anything is done: an event that is
// given up again must not come round.
func (s *Store) selected(ctx context.Context, sel Selection) (out []*Letter, err error) {
	for l, err := range s.letters.Letters(ctx) {
		if err != nil {
			return nil, err
		}
		if sel.has(l) {
			l.Event.Data, l.Stack = nil, "" // there may be many
			out = append(out, l)
		}
	}
	// They died in another order than they came.
	slices.SortStableFunc(out, func(a, b *Letter) int {
		return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Sequence, b.Sequence))
	})
	for _, id := range sel.IDs {
		if _, err := s.letters.Letter(ctx, id); err != nil {
			return nil, err
		}
	}
	return out, nil
}
