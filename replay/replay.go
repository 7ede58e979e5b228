// Package replay gives a durable group events once more that it has handled long
// ago, as after a mistake in a handler was fixed. It needs a transport, not a bus:
// a tool opens the same URL as the applications do.
//
//	r, err := replay.Open(ctx, os.Getenv("TIDINGS_URL"), replay.Options{})
//	done, err := r.Run(ctx, replay.Request{Group: "billing", Topics: "order.>", Since: yesterday})
//
// What it promises:
//
//   - The group that is named gets the events, by the one subscription that is
//     meant, and nobody else: no other group, no live subscriber.
//   - They come in their order, as new ones: id, topic, time, source and headers
//     are those they had, failures count from nothing, and the header
//     [Header] says that it is a replay.
//   - What the group has not handled yet is not given: it comes anyway. New events
//     come meanwhile, behind a few hundred replayed ones at most.
//   - A replay never fills a stream: it waits for the group, and stops with an
//     error while there is room for publishers.
//   - Cut short, or killed, it is resumed where it was: none twice, none left out.
//
// What is no longer stored cannot be replayed: streams are purged when they fill.
// A handler that does its work once for each event id, as with package idempotent,
// has done it, and will not do it again.
//
// The URL's scheme must be imported, as for the bus: natsbus, or adapter/memory.
package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/tool"
	"github.com/tidings-go/tidings/internal/topic"
)

// Header is the key in Event.Header by which a handler knows a replayed event.
const Header = adapter.ReplayHeader

var (
	// ErrNothingToResume: no replay of the subscription is known.
	ErrNothingToResume = adapter.ErrNoReplay
	// ErrFull: the rest of the stream is left to publishers.
	ErrFull = adapter.ErrFull
)

// Progress is how far a replay has come, and in the end what came of it.
type Progress struct {
	Group        string `json:"group"`
	Subscription string `json:"subscription"` // the pattern of it
	adapter.Replayed
}

// Options are how the transport is opened.
type Options struct {
	Prefix string       // that of the applications, [tidings.Options.Prefix]
	Logger *slog.Logger // gets what has no caller; default: nobody
}

// A Replayer is an open transport. Its methods may be called concurrently, and
// from inside handlers; a handler that waits for a replay to itself waits for ever.
type Replayer struct {
	conn   adapter.Adapter
	stored adapter.Replayer
}

// Open connects to a transport. It fails when nobody answers there, or when the
// transport stores nothing.
func Open(ctx context.Context, url string, o Options) (*Replayer, error) {
	a, stored, err := tool.Open[adapter.Replayer](ctx, "replay", url, o.Prefix, o.Logger, "stores nothing that could be replayed")
	if err != nil {
		return nil, err
	}
	return &Replayer{a, stored}, nil
}

// Close lets go of the connection.
func (r *Replayer) Close() error { return r.conn.Close() }

// A Request says who is given what. Without From, Since and Until it is all that
// is stored.
type Request struct {
	Group string
	// Subscription is the pattern that the group has subscribed to. It may be
	// empty where only one of its patterns has the Topics.
	Subscription string
	Topics       string    // a pattern that narrows what is given
	From         uint64    // a sequence of the stream
	Since, Until time.Time // when events were stored: not before Since, before Until
	// Resume goes on with the last replay of the subscription, to the end that it
	// was to have. Topics, From, Since and Until are then not set.
	Resume   bool
	DryRun   bool           // count, and give nothing
	Progress func(Progress) // told now and then; default: nobody
}

func (q Request) check() error {
	narrow := q.Topics != "" || q.From != 0 || !q.Since.IsZero() || !q.Until.IsZero()
	switch {
	case q.Group == "":
		return errors.New("Request.Group is empty: a replay is for one group")
	case q.Resume && narrow:
		return errors.New("Request.Resume goes on as the replay was begun: leave out Topics, From, Since and Until")
	case q.From != 0 && !q.Since.IsZero():
		return errors.New("Request.From and Since both say where to begin: leave out one")
	}
	for _, p := range []string{q.Subscription, q.Topics} {
		if p == "" {
			continue
		}
		if err := topic.CheckPattern(p); err != nil {
			return err
		}
	}
	return nil
}

// Run gives the group what is asked for, and returns once all is stored for it;
// the group may still have some hundreds of them to handle. It waits for a group
// that is away, when there is more than that. With an error the Progress says how
// far it came, and a Request with Resume goes on there. When ctx ends it finishes
// the event that it is at.
func (r *Replayer) Run(ctx context.Context, q Request) (Progress, error) {
	p := Progress{Group: q.Group, Subscription: q.Subscription}
	err := q.check()
	if err == nil {
		p.Subscription, err = r.subscription(ctx, q)
	}
	if err != nil {
		return p, fmt.Errorf("replay: %w", err)
	}
	req := adapter.Replay{Group: q.Group, Pattern: p.Subscription, Topics: q.Topics, From: q.From,
		Since: q.Since, Until: q.Until, Resume: q.Resume, DryRun: q.DryRun}
	if q.Progress != nil {
		req.Progress = func(now adapter.Replayed) { q.Progress(Progress{q.Group, p.Subscription, now}) }
	}
	if p.Replayed, err = r.stored.Replay(ctx, req); err != nil {
		err = fmt.Errorf("replay: %w", err)
	}
	return p, err
}

// subscription is the one pattern of the group that is meant.
func (r *Replayer) subscription(ctx context.Context, q Request) (string, error) {
	all, err := r.stored.Patterns(ctx, q.Group)
	if err != nil {
		return "", err
	}
	fit := slices.DeleteFunc(slices.Clone(all), func(p string) bool {
		return q.Subscription != "" && p != q.Subscription || q.Topics != "" && !topic.Overlap(p, q.Topics)
	})
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) == 0:
		return "", fmt.Errorf("group %q has subscribed to %s, and none is or has what is asked for", q.Group, strings.Join(all, ", "))
	}
	return "", fmt.Errorf("group %q has several subscriptions that are meant: %s: name one as Subscription, since each keeps its own place", q.Group, strings.Join(fit, ", "))
}
