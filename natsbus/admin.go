package natsbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
)

// An Admin looks at streams and durable groups, and changes them. The tidings
// command is made of it; applications have no use for it. Its methods may be
// called concurrently.
type Admin struct{ c *conn }

// OpenAdmin connects to the broker of a transport URL. cfg gives prefix and
// logger; its routes are not declared.
func OpenAdmin(ctx context.Context, url string, cfg adapter.Config) (*Admin, error) {
	cfg.Durable = nil
	if cfg.App == "" {
		cfg.App = "tidings"
	}
	a, err := Open(ctx, url, cfg)
	if err != nil {
		return nil, err
	}
	return &Admin{a.(*conn)}, nil
}

// Close ends the connection.
func (a *Admin) Close() error { return a.c.Close() }

// Plan compares a declaration with what is there and changes nothing. It fails
// when another app's stream has a part of what is declared.
func (a *Admin) Plan(ctx context.Context, d Declaration) (*Plan, error) {
	p, err := a.c.plan(ctx, d)
	if err == nil {
		p.Beside, err = a.missingBeside(ctx, d)
	}
	return p, err
}

// Apply makes the streams as declared, and returns what it found before. What
// cannot be changed is an error that puts both side by side; nothing is changed
// then.
func (a *Admin) Apply(ctx context.Context, d Declaration) (*Plan, error) {
	p, err := a.c.ensure(ctx, d, true)
	if err != nil || !d.Fixed {
		return p, err
	}
	if p.Beside, err = a.missingBeside(ctx, d); err != nil {
		return p, err
	}
	for _, name := range p.Beside {
		if name == a.c.deadStream() {
			err = a.c.createDeadStream(ctx, cmp.Or(p.Elsewhere[d.Durable[0]], p.Stream))
		} else {
			err = a.c.createLater(ctx, d)
		}
		if err != nil {
			return p, fmt.Errorf("natsbus: %w", err)
		}
	}
	return p, nil
}

// missingBeside is which streams of a fixed declaration are not there, besides the one
// that it is about.
func (a *Admin) missingBeside(ctx context.Context, d Declaration) (names []string, err error) {
	if !d.Fixed {
		return nil, nil
	}
	beside := []string{a.c.deadStream()}
	if a.c.delays() {
		beside = append(beside, laterName(a.c.cfg.Prefix, d.App))
	}
	for _, name := range beside {
		switch _, err := a.c.streamInfo(ctx, name); {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			names = append(names, name)
		case err != nil:
			return nil, fmt.Errorf("natsbus: stream %s: %w", name, err)
		}
	}
	return names, nil
}

// A StreamState is a stream as it is now, with its durable groups.
type StreamState struct {
	Name     string       `json:"name"`
	App      string       `json:"app,omitempty"` // that it was made for; empty: not by Tidings
	Subjects []string     `json:"subjects"`
	Messages uint64       `json:"messages"`
	Bytes    uint64       `json:"bytes"`
	MaxBytes int64        `json:"max_bytes,omitempty"`
	MaxMsgs  int64        `json:"max_msgs,omitempty"`
	Used     float64      `json:"used"` // of the limit that is nearest, 0 to 1
	First    uint64       `json:"first_sequence"`
	Last     uint64       `json:"last_sequence"`
	Groups   []GroupState `json:"groups"`
}

// A GroupState is a durable group with one pattern, as it is now.
type GroupState struct {
	Stream   string `json:"stream"`
	Consumer string `json:"consumer"`
	App      string `json:"app,omitempty"` // that subscribed first; empty: not by Tidings
	Group    string `json:"group"`
	Pattern  string `json:"pattern"`
	State    string `json:"state"` // GroupPulling, GroupBusy or GroupAway
	// Orphan: no process takes from it, though processes of its app take from
	// others: its pattern was changed, or the process that had it was given up.
	Orphan     bool       `json:"orphan"`
	Pending    uint64     `json:"pending"`          // not delivered yet
	Unsettled  int        `json:"unsettled"`        // delivered and not settled
	Oldest     *time.Time `json:"oldest,omitempty"` // when the oldest of both was stored
	LastActive time.Time  `json:"last_active"`      // took or settled an event, or was made
}

// Waits is how many events the group has not settled.
func (g GroupState) Waits() uint64 { return g.Pending + uint64(g.Unsettled) }

// Streams returns the streams that Tidings has made, and others that have a
// group of ours, by name.
func (a *Admin) Streams(ctx context.Context) ([]StreamState, error) {
	all, err := a.c.listStreams(ctx)
	if err != nil {
		return nil, fmt.Errorf("natsbus: list streams: %w", err)
	}
	states := []StreamState{}
	for _, info := range all {
		s, ours, err := a.stream(ctx, info)
		if err != nil {
			return nil, fmt.Errorf("natsbus: stream %s: %w", info.Config.Name, err)
		}
		if ours {
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(x, y StreamState) int { return strings.Compare(x.Name, y.Name) })
	markOrphans(states)
	return states, nil
}

func (a *Admin) stream(ctx context.Context, info *jetstream.StreamInfo) (s StreamState, ours bool, err error) {
	cfg, st := info.Config, info.State
	_, used := nearestLimit(info)
	s = StreamState{Name: cfg.Name, App: cfg.Metadata[metaApp], Subjects: cfg.Subjects, Messages: st.Msgs, Bytes: st.Bytes,
		MaxBytes: max(cfg.MaxBytes, 0), MaxMsgs: max(cfg.MaxMsgs, 0), Used: used, First: st.FirstSeq, Last: st.LastSeq, Groups: []GroupState{}}
	consumers, err := a.c.consumers(ctx, cfg.Name)
	for _, i := range consumers {
		if i.Config.Durable == "" {
			continue
		}
		g, err := a.group(ctx, info, i)
		if err != nil {
			return s, false, err
		}
		ours = ours || g.App != ""
		s.Groups = append(s.Groups, g)
	}
	slices.SortFunc(s.Groups, func(x, y GroupState) int {
		return cmp.Or(strings.Compare(x.Group, y.Group), strings.Compare(x.Pattern, y.Pattern))
	})
	return s, ours || s.App != "", err
}

func (a *Admin) group(ctx context.Context, stream *jetstream.StreamInfo, i *jetstream.ConsumerInfo) (GroupState, error) {
	i, err := a.c.settledInfo(ctx, stream.Config.Name, i)
	if err != nil {
		return GroupState{}, err
	}
	g := GroupState{Stream: stream.Config.Name, Consumer: i.Name, App: i.Config.Metadata[metaApp], Group: groupOf(i), Pattern: patternOf(i),
		State: stateOf(i), Pending: i.NumPending, Unsettled: i.NumAckPending, LastActive: lastActive(i)}
	if g.Waits() > 0 {
		h, err := a.c.floorOf(ctx, stream, i)
		if err != nil {
			return g, err
		}
		if !h.oldest.IsZero() {
			g.Oldest = &h.oldest
		}
	}
	return g, nil
}

// markOrphans tells groups whose whole app is away, as between two deploys, from
// those that it has left behind.
func markOrphans(states []StreamState) {
	up := map[string]bool{}
	for _, s := range states {
		for _, g := range s.Groups {
			if g.State != GroupAway {
				up[g.App] = true
			}
		}
	}
	for _, s := range states {
		for i, g := range s.Groups {
			s.Groups[i].Orphan = g.State == GroupAway && g.App != "" && up[g.App]
		}
	}
}

// Find returns the groups of that name and pattern, over all streams. It fails
// when there is none, and says which there are.
func (a *Admin) Find(ctx context.Context, group, pattern string) ([]GroupState, error) {
	states, err := a.Streams(ctx)
	if err != nil {
		return nil, err
	}
	var found []GroupState
	var known []string
	for _, s := range states {
		for _, g := range s.Groups {
			if g.Group == group && g.Pattern == pattern {
				found = append(found, g)
			}
			known = append(known, fmt.Sprintf("%s (%s)", g.Group, g.Pattern))
		}
	}
	if found == nil {
		slices.Sort(known)
		return nil, fmt.Errorf("natsbus: no group %q with pattern %q at %s; there are: %s", group, pattern, a.c.addr.public, cmp.Or(strings.Join(known, ", "), "none"))
	}
	return found, nil
}

// ErrInUse: a group from which a process takes events is not forgotten.
var ErrInUse = errors.New("a process takes from the group")

// Forget removes a group: what waits for it no longer does, and if it comes back
// it begins with what is stored then. It fails with ErrInUse when a process is
// seen to take from it, unless force is set.
func (a *Admin) Forget(ctx context.Context, g GroupState, force bool) error {
	i, err := a.c.consumerInfo(ctx, g.Stream, g.Consumer)
	if err == nil && !force {
		if i, err = a.c.settledInfo(ctx, g.Stream, i); err == nil && stateOf(i) != GroupAway {
			err = fmt.Errorf("%w, it is %s", ErrInUse, stateOf(i))
		}
	}
	if err == nil {
		err = a.c.api(ctx, "CONSUMER.DELETE."+g.Stream, func(ctx context.Context) error {
			return a.c.js.DeleteConsumer(ctx, g.Stream, g.Consumer)
		})
	}
	if err != nil {
		return fmt.Errorf("natsbus: forget group %q (%s) of stream %s: %w", g.Group, g.Pattern, g.Stream, err)
	}
	return nil
}
