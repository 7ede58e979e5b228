package natsbus

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// tallyWait is how long after a mark what the members have counted is believed to be
// there. Tests change it.
var tallyWait = time.Second

const (
	forgetRun   = 15 * time.Minute // after the last mark or event
	maxStray    = 1024             // runs of which no mark was heard yet
	maxTalliers = 1024             // members that are added up
	goneAfter   = 10               // times tallyWait that a member is silent
)

// holes count, for one live subscription, the events that were sent and that nobody of
// its group got. Each member of a group counts what it gets of each run, says that
// number when it hears a mark, and when it leaves; each adds up the numbers of all from
// the first mark on that it has heard. The difference to what was sent is missing.
//
// Everything here is about the subscription's own messages: nothing is asked of the
// publishers, and a mark or a tally that is lost is made good by the next.
type holes struct {
	c      *conn
	group  bool // else the subscription gets everything
	me     string
	emit   func(*tally)
	topics string // for the log
	tally  string // where the group's tallies are said
	now    func() time.Time

	mu    sync.Mutex
	runs  map[string]*inRun
	stray int
	gone  uint64 // missing of runs that are forgotten
	due   atomic.Int64
}

// inRun is what was got of a run.
type inRun struct {
	topic       string
	marked      bool   // a mark was heard
	first, high uint64 // numbers
	got         uint64
	ahead       [2]ahead // the point that was announced, and the one before
	due         *mark    // not answered yet: events that came before it are not taken yet

	base    *point
	last    *point
	members map[string]*counted // who has said anything since base, or before there is one
	missing uint64              // when that could be judged last
	at      time.Time
}

// ahead counts what was got with a point's number or a higher one.
type ahead struct{ point, above uint64 }

// A point is a mark's.
type point struct {
	mark
	at     time.Time
	got    map[string]uint64 // by each member, up to there
	unsure bool              // a member does not know
}

// counted is what a member said last.
type counted struct {
	tally
	at time.Time
}

// A tally is what one member has got of a run.
type tally struct {
	Member string `json:"member"`
	Run    string `json:"run"`
	Topic  string `json:"topic"`
	Below  uint64 `json:"below,omitempty"` // up to this point; 0: all, it leaves
	Got    uint64 `json:"got"`
	First  uint64 `json:"first,omitempty"` // the lowest number and the highest of what it has got
	High   uint64 `json:"high,omitempty"`
	Unsure bool   `json:"unsure,omitempty"` // it cannot say for this point
}

func (c *conn) newHoles(group, pattern string) *holes {
	h := &holes{c: c, group: group != "", me: nuid.Next(), topics: pattern, now: time.Now, runs: map[string]*inRun{}}
	h.emit = h.publish
	sum := sha256.Sum256([]byte(queueName(group, c.subject(pattern))))
	h.tally = reserved + ".tally." + hex.EncodeToString(sum[:12])
	return h
}

// subjects are where it has to be listened.
func (h *holes) subjects(pending func() int) map[string]nats.MsgHandler {
	s := map[string]nats.MsgHandler{markSubject(h.c.subject(h.topics)): func(m *nats.Msg) { h.marked(m, pending) }}
	if h.group {
		s[h.tally] = h.told
	}
	return s
}

// took counts an event. It is called by the subscription's goroutine.
func (h *holes) took(id, topic string) {
	run, n, ok := splitID(id)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runs[run]
	if r == nil {
		r = h.add(strings.Clone(run), topic, h.now())
	}
	if r == nil || r.topic != topic { // that is one of them published anew
		return
	}
	if r.got++; r.got == 1 || n < r.first {
		r.first = n
	}
	r.high = max(r.high, n)
	for i := range r.ahead {
		if n >= r.ahead[i].point {
			r.ahead[i].above++
		}
	}
}

// add makes room for a run by forgetting what may be none: ids of other kinds look
// like those of runs. mu is held.
func (h *holes) add(run, topic string, now time.Time) *inRun {
	if h.stray >= maxStray || len(h.runs) >= maxRuns {
		for name, r := range h.runs {
			if !r.marked || now.Sub(r.at) > forgetRun {
				h.gone += r.judge(now)
				delete(h.runs, name)
			}
		}
		h.stray = 0
	}
	if len(h.runs) >= maxRuns {
		return nil
	}
	h.stray++
	r := &inRun{topic: topic, at: now, members: map[string]*counted{}}
	h.runs[run] = r
	return r
}

// count is how many events with numbers below a point were got, if that is known.
func (r *inRun) count(below uint64) (n uint64, known bool) {
	switch {
	case r.got == 0 || below <= r.first:
		return 0, true
	case r.high < below:
		return r.got, true
	}
	for _, a := range r.ahead {
		if a.point == below {
			return r.got - a.above, true
		}
	}
	return 0, false
}

// marked takes a mark. It is called by a goroutine of its own: events that came before
// it may be taken later, and those that came after it earlier.
func (h *holes) marked(msg *nats.Msg, pending func() int) {
	var m mark
	if json.Unmarshal(msg.Data, &m) == nil && m.Run != "" {
		h.send(h.mark(&m, h.now(), pending() > 0))
	}
}

// mark returns what is to be said of it now, if anything is.
func (h *holes) mark(m *mark, now time.Time, behind bool) (said *tally) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runs[m.Run]
	if r == nil {
		r = h.add(m.Run, m.Topic, now)
	}
	if r == nil || r.topic != m.Topic {
		return nil
	}
	if !r.marked {
		r.marked = true
		h.stray--
	}
	r.at = now
	if m.Below > 0 {
		h.say(r, now)
		h.gone += r.reach(m, now)
		if r.due = m; behind {
			h.due.Add(1)
		} else {
			said = h.settle(m.Run, r, now)
		}
	}
	if m.Next > 0 {
		if r.ahead[1] = r.ahead[0]; r.high < m.Next {
			r.ahead[0] = ahead{point: m.Next}
		}
	}
	return said
}

// reach begins a point. A publisher that counts anew is followed from there on; what
// was missing until then is returned.
func (r *inRun) reach(m *mark, now time.Time) (before uint64) {
	p := &point{mark: *m, at: now, got: map[string]uint64{}}
	switch {
	case r.base == nil && !r.knows(m):
	case r.base == nil:
		r.begin(p)
	case m.Sent < r.last.Sent:
		before, r.missing = r.missing, 0
		r.members = map[string]*counted{}
		r.begin(p)
	case r.last.Below == m.Below && r.last.Sent == m.Sent:
		p.got = r.last.got // the same one, said again
	}
	r.last = p
	return before
}

// knows reports whether this member was there before the point was reached: who has left
// since then, and what they got, it cannot know else.
func (r *inRun) knows(m *mark) bool {
	return m.Next == 0 || r.ahead[0].point == m.Below || r.ahead[1].point == m.Below
}

// begin makes a point the base, if what others have said already can be placed there:
// tallies may overtake marks.
func (r *inRun) begin(p *point) {
	early := r.members
	r.base, r.members = p, map[string]*counted{}
	for _, c := range early {
		r.add(&c.tally, c.at)
	}
}

// settle says what this member has got up to the point that is due. mu is held.
func (h *holes) settle(run string, r *inRun, now time.Time) *tally {
	n, known := r.count(r.due.Below)
	t := &tally{Member: h.me, Run: run, Topic: r.topic, Below: r.due.Below, Got: n, First: r.first, High: r.high, Unsure: !known}
	r.due = nil
	r.add(t, now)
	return t
}

// caughtUp settles what is due, once all that had come was taken: nothing more than
// what the caller has just taken is pending.
func (h *holes) caughtUp(pending func() int) {
	if h.due.Load() == 0 || pending() > 1 {
		return
	}
	var said []*tally
	h.mu.Lock()
	h.due.Store(0)
	now := h.now()
	for name, r := range h.runs {
		if r.due != nil {
			said = append(said, h.settle(name, r, now))
		}
	}
	h.mu.Unlock()
	for _, t := range said {
		h.send(t)
	}
}

// add takes what a member says. What it got before the base does not count.
func (r *inRun) add(t *tally, now time.Time) {
	if b := r.base; b != nil {
		_, placed := b.got[t.Member]
		switch {
		case placed:
		case t.Below == b.Below && !t.Unsure:
			b.got[t.Member] = t.Got
		case t.Got == 0 || t.First >= b.Below: // it has come since
		case t.High < b.Below && !t.Unsure:
			return // what it has got since, it will say
		default:
			r.base = nil // a later mark will do, with all that was said until then
		}
	}
	if t.Unsure {
		if r.last != nil && t.Below == r.last.Below {
			r.last.unsure = true
		}
		return
	}
	c := r.members[t.Member]
	if c == nil && len(r.members) < maxTalliers {
		c = new(counted)
		r.members[t.Member] = c
	}
	if c != nil {
		*c = counted{*t, now}
	}
}

// told takes the tally of another member.
func (h *holes) told(msg *nats.Msg) {
	var t tally
	if json.Unmarshal(msg.Data, &t) == nil && t.Member != h.me {
		h.heard(&t)
	}
}

func (h *holes) heard(t *tally) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runs[t.Run]
	if r == nil {
		r = h.add(t.Run, t.Topic, h.now())
	}
	if r != nil && r.topic == t.Topic {
		r.add(t, h.now())
	}
}

func (h *holes) send(t *tally) {
	if t != nil && h.group {
		h.emit(t)
	}
}

func (h *holes) publish(t *tally) {
	if b, err := json.Marshal(t); err == nil {
		_ = h.c.sendLive(&nats.Msg{Subject: h.tally, Data: b}, h.topics, "") // the next one says as much
	}
}

// leave says all that was got; the others count on.
func (h *holes) leave() {
	if !h.group {
		return
	}
	var said []*tally
	h.mu.Lock()
	for name, r := range h.runs {
		if r.got > 0 {
			said = append(said, &tally{Member: h.me, Run: name, Topic: r.topic, Got: r.got, First: r.first, High: r.high})
		}
	}
	h.mu.Unlock()
	for _, t := range said {
		h.send(t)
	}
}

// judge is how many events of the run are missing, as far as all have said what they
// got. Who has been silent for long is gone, and what it got since it spoke last too.
func (r *inRun) judge(now time.Time) uint64 {
	if r.base == nil || r.due != nil || r.last.unsure || now.Sub(r.last.at) < tallyWait {
		return r.missing
	}
	var got uint64
	for name, c := range r.members {
		if c.Below > 0 && c.Below < r.last.Below && now.Sub(c.at) < goneAfter*tallyWait {
			return r.missing
		}
		got += c.Got - r.base.got[name]
	}
	r.missing = 0
	if sent := r.last.Sent - r.base.Sent; sent > got {
		r.missing = sent - got
	}
	return r.missing
}

// say logs what is missing for the first time. mu is held.
func (h *holes) say(r *inRun, now time.Time) {
	before := r.missing
	if n := r.judge(now); n > before {
		h.c.log.Warn("natsbus: live events were sent and did not arrive: a connection was lost, a buffer was full, or a process of the group was killed",
			"topic", r.topic, "pattern", h.topics, "missing", n-before)
	}
}

// missing is how many are, of all runs.
func (h *holes) missing() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, now := h.gone, h.now()
	for _, r := range h.runs {
		n += r.judge(now)
	}
	return n
}
