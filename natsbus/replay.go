package natsbus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// A replay gives a group copies of events, on the group's private subject. They
// are stored one after the other, so that the last copy there is says how far the
// replay came, whoever was killed. docs/decisions/018-replay.md has the alternatives.

// Bounds of a replay.
const (
	replayAhead = 256     // copies that the group has not taken yet: what a new event waits for
	replayKept  = 4096    // copies in the stream that the group is not known to be done with
	replaySweep = 1024    // copies after which those that the group is done with are removed
	replayBytes = 4 << 20 // read at once, about
	replayFull  = 0.9     // of a stream's limit: the rest is for publishers
)

// replayPatience is how long one request, or a copy that cannot be stored because
// the connection is lost, is tried.
const replayPatience = 30 * time.Second

// hReplay is the header of a copy, a replayMark as JSON.
const hReplay = adapter.ReplayHeader

// replayMark is what a copy tells who resumes.
type replayMark struct {
	Run      string `json:"run"`
	Sequence uint64 `json:"sequence"` // of the original
	End      uint64 `json:"end"`
	Topics   string `json:"topics,omitempty"`
}

// A replay is one that runs.
type replay struct {
	c      *conn
	to     recipient
	req    adapter.Replay
	filter string // subjects of the originals
	mark   replayMark
	state  adapter.Replayed

	copies []uint64 // places of those that the group is not known to be done with
	last   uint64   // place of the last one
	kept   int      // copies that are in the stream
	most   int      // to read at once
}

// Patterns implements [adapter.Replayer].
func (c *conn) Patterns(ctx context.Context, group string) ([]string, error) {
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	fail := func(err error) error { return fmt.Errorf("natsbus: patterns of group %q: %w", group, err) }
	streams, err := c.listStreams(ctx)
	if err != nil {
		return nil, fail(err)
	}
	var patterns, known []string
	for _, s := range streams {
		all, err := c.consumers(ctx, s.Config.Name)
		if err != nil {
			return nil, fail(err)
		}
		for _, i := range all {
			g, p := groupOf(i), patternOf(i)
			switch {
			case i.Name != consumerName(g, c.subject(p)): // of another prefix, or not ours
			case g == group:
				patterns = append(patterns, p)
			default:
				known = append(known, g)
			}
		}
	}
	if patterns == nil {
		slices.Sort(known)
		return nil, fail(fmt.Errorf("%w: there is no such group; there are: %s", adapter.ErrNotDurable, cmp.Or(strings.Join(slices.Compact(known), ", "), "none")))
	}
	slices.Sort(patterns)
	return patterns, nil
}

// Replay implements [adapter.Replayer].
func (c *conn) Replay(ctx context.Context, req adapter.Replay) (adapter.Replayed, error) {
	r := &replay{c: c, req: req}
	err := r.plan(ctx)
	if err == nil && !req.DryRun {
		err = r.run(ctx)
	}
	r.state.Waits = ""
	if err != nil {
		err = fmt.Errorf("natsbus: replay to group %q of %q: %w", req.Group, req.Pattern, err)
	}
	return r.state, err
}

// plan finds out what is to be given.
func (r *replay) plan(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replayPatience)
	defer cancel()
	subject := r.c.subject(r.req.Pattern)
	near, err := r.c.streamsNear(ctx, subject)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(near, func(info *jetstream.StreamInfo) bool { return covers(info, subject) })
	if i < 0 {
		return fmt.Errorf("%w: no stream has the pattern", adapter.ErrNotDurable)
	}
	r.to = recipient{near[i].Config.Name, consumerName(r.req.Group, subject)}
	r.state.Stream = r.to.stream
	st := near[i].State
	r.most = int(min(max(replayBytes*st.Msgs/max(st.Bytes, 1), 1), replayAhead))
	info, err := r.consumer(ctx)
	if err != nil {
		return err
	}
	// What is above has not been settled, or not all of it.
	r.mark = replayMark{Run: nuid.Next(), End: info.AckFloor.Stream, Topics: r.req.Topics}
	from := max(r.req.From, 1)
	if r.req.Resume {
		from, err = r.resume(ctx)
	}
	if err != nil {
		return err
	}
	both, ok := topic.Intersect(r.req.Pattern, cmp.Or(r.mark.Topics, ">"))
	if !ok {
		return fmt.Errorf("no topic matches %q and the group's pattern both", r.mark.Topics)
	}
	r.filter = r.c.subject(both)
	return r.measure(ctx, from)
}

func (r *replay) consumer(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	info, err := r.c.consumerInfo(ctx, r.to.stream, r.to.consumer)
	return info, r.c.sayGone(r.to, err)
}

// resume finds the last copy and takes over what its replay was to do.
func (r *replay) resume(ctx context.Context) (from uint64, err error) {
	var last string
	for seq := uint64(1); ; {
		batch, err := r.c.read(ctx, r.to.stream, reading{subject: r.to.private(">"), from: seq, n: replayKept, headers: true})
		if err != nil {
			return 0, err
		}
		for i, m := range batch.msgs {
			if h := m.Headers().Get(hReplay); h != "" {
				last, r.last = h, batch.seqs[i]
				r.kept++
			}
		}
		if batch.left == 0 {
			break
		}
		seq = batch.next
	}
	if last == "" {
		return 0, adapter.ErrNoReplay
	}
	var m replayMark
	if err := json.Unmarshal([]byte(last), &m); err != nil {
		return 0, fmt.Errorf("the header %s of the last copy cannot be read: begin anew, from a sequence: %w", hReplay, err)
	}
	m.End = min(m.End, r.mark.End)
	r.mark = m
	return m.Sequence + 1, nil
}

// measure turns times into sequences and counts.
func (r *replay) measure(ctx context.Context, from uint64) error {
	at := func(t time.Time, none uint64) (uint64, error) {
		b, err := r.c.read(ctx, r.to.stream, reading{subject: r.filter, since: t, n: 1, headers: true})
		if err != nil || len(b.msgs) == 0 {
			return none, err
		}
		return b.first, nil
	}
	if t := r.req.Since; !t.IsZero() && !r.req.Resume {
		seq, err := at(t, r.mark.End+1)
		if err != nil {
			return err
		}
		from = max(from, seq)
	}
	if t := r.req.Until; !t.IsZero() && !r.req.Resume {
		seq, err := at(t, r.mark.End+1)
		if err != nil {
			return err
		}
		r.mark.End = min(r.mark.End, seq-1)
	}
	r.state.Next, r.state.End = from, r.mark.End
	if from > r.mark.End {
		return nil
	}
	first, err := r.c.read(ctx, r.to.stream, reading{subject: r.filter, from: from, n: 1, headers: true})
	if err != nil || len(first.msgs) == 0 || first.first > r.mark.End {
		return err
	}
	rest, err := r.c.read(ctx, r.to.stream, reading{subject: r.filter, from: r.mark.End + 1, headers: true})
	if err != nil {
		return err
	}
	r.state.First = first.first
	r.state.Events = first.left + 1 - min(rest.left, first.left) // new ones come meanwhile
	return nil
}

// run gives them.
func (r *replay) run(ctx context.Context) error {
	for r.state.Events > 0 && r.state.Next <= r.mark.End {
		room, err := r.wait(ctx)
		if err != nil {
			return err
		}
		batch, err := r.next(ctx, room)
		if err != nil {
			return err
		}
		batch.upTo(r.mark.End)
		if len(batch.msgs) == 0 {
			break
		}
		if err := r.give(ctx, batch); err != nil {
			return err
		}
	}
	r.state.Next = max(r.state.Next, r.mark.End+1)
	r.state.Gone = r.state.Events - min(r.state.Given, r.state.Events)
	r.tell("")
	return nil
}

// next reads what comes next, also when the connection is lost meanwhile.
func (r *replay) next(ctx context.Context, n int) (*originals, error) {
	end, p := time.Now().Add(replayPatience), pause{}
	for {
		try, cancel := context.WithTimeout(ctx, subscribeTimeout)
		batch, err := r.c.read(try, r.to.stream, reading{subject: r.filter, from: r.state.Next, n: n})
		cancel()
		if err == nil || errCode(err) != 0 && !errors.Is(err, jetstream.ErrConsumerNotFound) || time.Now().After(end) {
			return batch, err
		}
		if err := p.wait(ctx); err != nil {
			return nil, err
		}
	}
}

func (r *replay) tell(waits string) {
	if r.state.Waits = waits; r.req.Progress != nil {
		r.req.Progress(r.state)
	}
}

// wait returns how many copies may be given now. It waits until the group has
// taken enough of those before.
func (r *replay) wait(ctx context.Context) (room int, err error) {
	for p := (pause{}); ; {
		info, ahead, err := r.look(ctx)
		if err == nil && r.kept-len(r.copies) >= replaySweep {
			err = r.sweep(ctx, info.AckFloor.Stream)
		}
		if err != nil {
			return 0, err
		}
		if ahead <= replayAhead/2 && len(r.copies) < replayKept {
			return min(replayAhead-ahead, replayKept-len(r.copies), r.most), nil
		}
		r.tell(whyWait(info, ahead))
		if err := p.wait(ctx); err != nil {
			return 0, err
		}
	}
}

// look forgets the copies that the group is done with, and counts those that it
// has not taken.
func (r *replay) look(ctx context.Context) (info *jetstream.ConsumerInfo, ahead int, err error) {
	if info, err = r.consumer(ctx); err != nil {
		return nil, 0, err
	}
	r.copies = slices.DeleteFunc(r.copies, func(seq uint64) bool { return seq <= info.AckFloor.Stream })
	for _, seq := range r.copies {
		if seq > info.Delivered.Stream {
			ahead++
		}
	}
	return info, ahead, nil
}

func whyWait(info *jetstream.ConsumerInfo, ahead int) string {
	switch {
	case info.Paused:
		return "the group is paused"
	case stateOf(info) == GroupAway:
		return "no process of the group takes events"
	case ahead > replayAhead/2:
		return "the group has not taken what it was given"
	}
	return "the group has not finished what it was given: an event that was given takes long, or keeps failing"
}

// A pause is longer each time.
type pause struct{ last time.Duration }

func (p *pause) wait(ctx context.Context) error {
	p.last = min(max(2*p.last, 5*time.Millisecond), 250*time.Millisecond)
	select {
	case <-time.After(p.last):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sweep removes the copies that the group is done with, so that a long replay
// does not fill the stream. The last one stays: it says how far the replay came.
func (r *replay) sweep(ctx context.Context, floor uint64) error {
	req := map[string]any{"filter": r.to.private(">"), "seq": min(floor+1, r.last)}
	if err := r.c.request(ctx, "STREAM.PURGE."+r.to.stream, req, &struct{}{}); err != nil {
		return fmt.Errorf("remove the copies that the group is done with: %w", err)
	}
	r.kept = len(r.copies)
	return nil
}

// give stores copies, one after the other.
func (r *replay) give(ctx context.Context, batch *originals) error {
	if err := r.makeRoom(ctx, batch); err != nil {
		return err
	}
	if err := r.c.openPrivate(ctx, r.to); err != nil {
		return err
	}
	if err := r.store(ctx, batch); err != nil {
		return err
	}
	r.tell("")
	if err := r.c.stillPrivate(ctx, r.to); err != nil {
		r.state.Next = batch.seqs[0]
		return fmt.Errorf("the last %d events may not have reached the group; go on from sequence %d, and do not resume: %w", len(batch.msgs), r.state.Next, err)
	}
	return nil
}

// store stores the copies of a batch: all at once where the server can, which is
// ten times as fast where each acknowledgement costs a write to a disk. What that
// leaves in doubt is not stored a second time, since copies have ids.
func (r *replay) store(ctx context.Context, batch *originals) error {
	copies := make([]*nats.Msg, len(batch.msgs))
	for i, m := range batch.msgs {
		copies[i] = r.copyOf(m, batch.seqs[i])
	}
	if last := r.c.storeAtOnce(ctx, r.to, copies); last > 0 {
		for i, seq := range batch.seqs {
			r.stored(seq, last-uint64(len(copies)-1-i))
		}
		return nil
	}
	for i, seq := range batch.seqs {
		place, err := r.c.storeSurely(ctx, r.to, r.copyOf(batch.msgs[i], seq))
		if errors.Is(err, nats.ErrMaxPayload) || errCode(err) == jsTooBig {
			err = fmt.Errorf("its copy is larger than the server or the stream takes: raise the limit, or begin again after it, from sequence %d: %w", seq+1, err)
		}
		if err != nil {
			return fmt.Errorf("the event at sequence %d of stream %s: %w", seq, r.to.stream, err)
		}
		r.stored(seq, place)
	}
	return nil
}

func (r *replay) stored(seq, place uint64) {
	r.copies, r.last = append(r.copies, place), place
	r.kept++
	r.state.Given++
	r.state.Next = seq + 1
}

func (r *replay) copyOf(m jetstream.Msg, seq uint64) *nats.Msg {
	mark := r.mark
	mark.Sequence = seq
	head, _ := json.Marshal(mark) // of strings and numbers: it cannot fail
	out := &nats.Msg{Header: plainHeader(m.Headers()), Data: m.Data()}
	out.Header[hReplay] = []string{string(head)}
	r.to.address(out, m.Subject(), fmt.Sprintf("%s/replay/%s/%d", r.to.consumer, mark.Run, seq))
	return out
}

// makeRoom leaves out of a batch what would not leave room for publishers, and
// waits for the group if that is all and it can make room.
func (r *replay) makeRoom(ctx context.Context, batch *originals) error {
	for p := (pause{}); ; {
		info, err := r.c.streamInfo(ctx, r.to.stream)
		if err != nil {
			return err
		}
		n := batch.fit(info, replayFull)
		if n == len(batch.msgs) {
			return nil
		}
		group, ahead, err := r.look(ctx)
		switch {
		case err != nil:
			return err
		case r.kept > len(r.copies): // the group is done with some
			if err := r.sweep(ctx, group.AckFloor.Stream); err != nil {
				return err
			}
			continue
		case n > 0:
			batch.cut(n)
			return nil
		case len(r.copies) == 0:
			limit, used := nearestLimit(info)
			return fmt.Errorf("%w: stream %s is %.0f%% full (%s), and a replay leaves the last tenth to publishers: let the groups catch up (\"tidings streams\" shows which is behind), or raise the limit with \"nats stream edit %s\"",
				adapter.ErrFull, r.to.stream, 100*used, limit, r.to.stream)
		}
		r.tell(whyWait(group, ahead))
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}
