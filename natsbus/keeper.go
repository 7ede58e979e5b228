package natsbus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/loop"
)

// When a stream is purged. Above the high mark of a limit the oldest events that
// every group has acknowledged go, down to the low mark and no further: what is
// left is what a later group gets.
const (
	highMark = 0.75
	lowMark  = 0.5
)

// Times of the keeper.
const (
	keepBusy    = time.Second            // how often to look at a stream above its low mark
	keepCalm    = 5 * time.Second        // and at others; a publisher that finds one full does not wait for that
	keepPatient = 5 * time.Second        // for all answers of one look
	keepAnswer  = 200 * time.Millisecond // how long "nothing can be purged" is believed
	keepSay     = 10 * time.Second       // how often a purge is logged
)

// The keeper looks after the streams that hold this app's durable routes: it
// purges them, and makes them again when they are gone. Every process that
// declares such a route has one. They need no election: each works out from the
// stream's own state up to which sequence to purge, never beyond what all groups
// have acknowledged, so that what two of them do is what one would have done.
//
// What it knows of acknowledgements may be late, and then it purges less. That a
// server which was killed forgets the last of them does no harm: they were given
// once, by a group that had handled the event.
type keeper struct {
	c     *conn
	asks  chan ask
	run   *loop.Loop
	total atomic.Uint64

	// What follows belongs to the loop.
	kept map[string]*kept
	lost string // the last failure that was reported
}

// kept is what the keeper remembers of a stream.
type kept struct {
	last    look
	saidAt  time.Time
	unsaid  uint64
	blocked bool // it was said that a group holds the stream above its high mark
}

// An ask is a publisher's whose event was refused.
type ask struct {
	subject string
	size    int  // of the event
	server  bool // it was the server that is full, or the account
	at      time.Time
	answer  chan look
}

// fits reports whether there is room by now: another process may have purged.
func (a ask) fits(info *jetstream.StreamInfo) bool {
	const overhead = 64 // of a stored event
	room := info.Config.MaxBytes <= 0 || info.State.Bytes+uint64(a.size+len(a.subject)+overhead) <= uint64(info.Config.MaxBytes)
	return !a.server && room && (info.Config.MaxMsgs <= 0 || info.State.Msgs < uint64(info.Config.MaxMsgs))
}

// A look is what came of looking at a stream.
type look struct {
	at   time.Time
	room bool    // for the event of the publisher that asked
	why  string  // nothing could be purged
	used float64 // of the limit that is nearest, before
}

func startKeeper(c *conn) *keeper {
	k := &keeper{c: c, asks: make(chan ask), kept: map[string]*kept{}}
	k.run = loop.Go(k.main)
	return k
}

// stop does not wait: it may be called by the handler of a log line.
func (k *keeper) stop() {
	if k != nil {
		k.run.Stop()
	}
}

func (k *keeper) purged() uint64 {
	if k == nil {
		return 0
	}
	return k.total.Load()
}

// makeRoom purges the stream that has refused an event, and reports whether that
// helped; if not, why.
func (k *keeper) makeRoom(ctx context.Context, it *item, full *streamFull) (made bool, why string) {
	if k == nil {
		return false, ""
	}
	a := ask{subject: it.msg.Subject, size: it.size, server: full.server, at: time.Now(), answer: make(chan look, 1)}
	select {
	case k.asks <- a:
	case <-k.run.Done():
		return false, ""
	case <-ctx.Done():
		return false, ""
	}
	select {
	case l := <-a.answer:
		return l.room, l.why
	case <-k.run.Done():
		return false, ""
	case <-ctx.Done():
		return false, ""
	}
}

func (k *keeper) main(ctx context.Context) {
	next := time.NewTimer(jitter(keepBusy))
	defer next.Stop()
	for {
		select {
		case <-next.C:
			next.Reset(jitter(k.round(ctx)))
		case a := <-k.asks:
			k.answerAsk(ctx, a)
		case <-ctx.Done():
			return
		}
	}
}

// jitter keeps the processes of an app from asking all at once.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

// round looks at all streams once, and says when to do so again.
func (k *keeper) round(ctx context.Context) (again time.Duration) {
	if !k.c.link.isUp() {
		return keepBusy
	}
	ctx, cancel := context.WithTimeout(ctx, keepPatient)
	defer cancel()
	again = keepCalm
	seen := map[string]bool{}
	for _, route := range k.c.cfg.Durable {
		info, err := k.c.streamAt(ctx, "", k.c.subject(route))
		if err != nil {
			k.failed(ctx, fmt.Errorf("natsbus: durable route %q: %w", route, err))
			continue
		}
		if name := info.Config.Name; !seen[name] {
			seen[name] = true
			if l := k.look(ctx, name, nil); l.used > lowMark {
				again = keepBusy
			}
		}
	}
	return again
}

// failed reports what goes wrong, once as long as it is the same.
func (k *keeper) failed(ctx context.Context, err error) {
	if ctx.Err() != nil || !k.c.link.isUp() || err.Error() == k.lost {
		return
	}
	k.lost = err.Error()
	k.c.report(err)
}

func (k *keeper) answerAsk(ctx context.Context, a ask) {
	ctx, cancel := context.WithTimeout(ctx, keepPatient)
	defer cancel()
	info, err := k.c.streamAt(ctx, "", a.subject)
	if err != nil {
		a.answer <- look{why: err.Error()}
		return
	}
	l := k.of(info.Config.Name).last
	// Of many that wait for room, the first answer is that of all; that there is
	// none is believed for a moment.
	again := l.room && l.at.After(a.at) || l.why != "" && time.Since(l.at) < keepAnswer
	if !again {
		l = k.look(ctx, info.Config.Name, &a)
	}
	a.answer <- l
}

func (k *keeper) of(stream string) *kept {
	s := k.kept[stream]
	if s == nil {
		s = &kept{}
		k.kept[stream] = s
	}
	return s
}

// look purges a stream if it is above its high mark, or has refused the event of
// a publisher that asks.
func (k *keeper) look(ctx context.Context, name string, a *ask) look {
	s := k.of(name)
	l, err := k.lookAt(ctx, s, name, a)
	l.at = time.Now()
	if err != nil {
		l.room = false
		l.why = fmt.Sprintf("what can be purged of stream %s could not be purged or found out: %v", name, err)
		k.failed(ctx, errors.New("natsbus: "+l.why))
	} else {
		k.lost = ""
	}
	s.last = l
	return l
}

func (k *keeper) lookAt(ctx context.Context, s *kept, name string, a *ask) (look, error) {
	info, err := k.c.streamInfo(ctx, name)
	if err != nil {
		return look{}, err
	}
	limit, used := nearestLimit(info)
	l := look{used: used, room: a != nil && a.fits(info)}
	if used < highMark && (a == nil || l.room) {
		s.blocked = false
		return l, nil
	}
	nothing := fmt.Sprintf("nothing can be purged from stream %s%s (%s)", name, ofApp(info), limit)
	if info.Config.Metadata[metaApp] == "" {
		l.why = nothing + ": it was not made by Tidings"
		return l, nil
	}
	hold, err := k.c.holder(ctx, info)
	if err != nil {
		return l, err
	}
	if end := purgeEnd(info, used, hold); end > info.State.FirstSeq {
		// If that removes nothing, another process has done it meanwhile.
		l.room = true
		return l, k.purge(ctx, s, name, end)
	}
	l.why = nothing + ": " + hold.say()
	if !s.blocked {
		s.blocked = true
		k.c.log.Warn("natsbus: a stream fills and nothing can be purged from it", "stream", name, "used", fmt.Sprintf("%.0f%%", 100*used), "limit", limit, "cause", hold.say())
	}
	return l, nil
}

// nearestLimit is the limit that will be reached first, and how much of it is used.
func nearestLimit(info *jetstream.StreamInfo) (limit string, used float64) {
	limit = "no limit of its own"
	if n := info.Config.MaxBytes; n > 0 {
		limit, used = "max_bytes "+formatSize(n), float64(info.State.Bytes)/float64(n)
	}
	if n := info.Config.MaxMsgs; n > 0 {
		if u := float64(info.State.Msgs) / float64(n); u > used {
			limit, used = "max_msgs "+formatCount(n), u
		}
	}
	return limit, used
}

// purgeEnd is the first sequence to keep. What is used may be little when it is
// the server that is full; then half of the stream goes.
func purgeEnd(info *jetstream.StreamInfo, used float64, h holder) uint64 {
	share := 0.5
	if used > highMark {
		share = 1 - lowMark/used
	}
	st := info.State
	n := uint64(float64(st.LastSeq-st.FirstSeq+1)*share) + 1
	return min(st.FirstSeq+n, h.floor+1)
}

func (k *keeper) purge(ctx context.Context, s *kept, name string, end uint64) error {
	var done struct {
		Purged uint64 `json:"purged"`
	}
	if err := k.c.request(ctx, "STREAM.PURGE."+name, map[string]uint64{"seq": end}, &done); err != nil {
		return err
	}
	k.total.Add(done.Purged)
	s.blocked = false
	s.unsaid += done.Purged
	if s.unsaid > 0 && time.Since(s.saidAt) > keepSay {
		k.c.log.Info("natsbus: purged what every group has acknowledged", "stream", name, "events", s.unsaid, "up_to_sequence", end-1)
		s.saidAt, s.unsaid = time.Now(), 0
	}
	return nil
}
