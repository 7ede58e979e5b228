package natsbus

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Live events may be lost: with a connection, in a full buffer, with a process that is
// killed. Nobody would notice, so a publisher counts what it has sent and says so in
// marks, and the members of a group add up what they have got; see holes.
//
// A run is all events of one source and topic. Their ids begin the same and end in a
// number, so that nothing need be added to them. The numbers have gaps, of events that
// were refused or went elsewhere: only how many were sent up to a number means anything.
const (
	markAhead  = 4                // so many times as far as it came between two looks is the next point
	markForget = 10 * time.Minute // after the last event of a run
	maxRuns    = 4096             // that are counted, here and by each subscription
)

// markEvery is how often runs are looked at. Tests change it.
var markEvery = time.Second

// A mark says how many events of a run have been sent whose numbers are below a point.
type mark struct {
	Run   string `json:"run"`
	Topic string `json:"topic"`
	Below uint64 `json:"below,omitempty"` // the point; 0: there is none in this mark
	Sent  uint64 `json:"sent"`
	Next  uint64 `json:"next,omitempty"` // the next point, if it is known: nothing near it has been sent
}

func markSubject(subject string) string { return reserved + ".mark." + subject }

// counting reports whether a subject is that of marks or tallies.
func counting(subject string) bool {
	return strings.HasPrefix(subject, reserved+".mark.") || strings.HasPrefix(subject, reserved+".tally.")
}

// splitID takes the number from an id. Many ids that are not of a run look the same.
func splitID(id string) (run string, n uint64, ok bool) {
	i := strings.LastIndexByte(id, '-')
	if i < 1 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(id[i+1:], 36, 64)
	return id[:i], n, err == nil && n > 0
}

// marks are the runs of a publisher. They belong to the writer's goroutine.
type marks struct {
	runs map[string]*outRun
	at   time.Time // when runs are looked at next
	emit func(*mark)
}

type outRun struct {
	topic         string
	high          uint64 // the highest number
	sent          uint64
	next          uint64 // the point that was announced; 0: none
	above         uint64 // sent events with that number or a higher one
	passed        bool   // there was one at the last look: soon all below have been sent
	before, quiet uint64 // what was sent at the last look, and how many looks ago that was
	last          time.Time
}

// begin is called before an event is written.
func (k *marks) begin(it *item, now time.Time) {
	if it.run == "" || k.runs[it.run] != nil {
		return
	}
	if len(k.runs) >= maxRuns {
		return // nobody hears of the run, so nobody misses any of it
	}
	r := &outRun{topic: it.topic, high: it.number - 1, last: now}
	k.runs[it.run] = r
	k.emit(&mark{Run: it.run, Topic: r.topic, Below: it.number})
	if k.at.IsZero() {
		k.at = now.Add(markEvery)
	}
}

// wrote is called after it was.
func (k *marks) wrote(it *item) {
	r := k.runs[it.run]
	if r == nil {
		return
	}
	r.sent++
	r.high = max(r.high, it.number)
	if r.next > 0 && it.number >= r.next {
		r.above++
	}
}

// step marks what there is to mark, and returns how long there is nothing to do.
func (k *marks) step(now time.Time) time.Duration {
	if k.at.IsZero() {
		return time.Hour
	}
	if d := k.at.Sub(now); d > 0 {
		return d
	}
	for name, r := range k.runs {
		if m := r.look(now); m != nil {
			m.Run, m.Topic = name, r.topic
			k.emit(m)
		}
		if now.Sub(r.last) > markForget {
			delete(k.runs, name)
		}
	}
	if k.at = now.Add(markEvery); len(k.runs) == 0 {
		k.at = time.Time{}
	}
	return markEvery
}

// look decides what is to be said of a run. When it is idle everything that was sent
// is; twice, since those who took the last events may not have been done with them.
// Else the next point is announced before it is reached, so that whoever gets events can
// count up to it, however they and the marks overtake each other.
func (r *outRun) look(now time.Time) *mark {
	came := r.sent - r.before
	r.before = r.sent
	if came == 0 {
		r.next, r.above, r.passed = 0, 0, false
		if r.quiet++; r.quiet == 1 || r.quiet == 3 {
			return &mark{Below: r.high + 1, Sent: r.sent}
		}
		return nil
	}
	r.quiet, r.last = 0, now
	if r.next > 0 && !r.passed {
		r.passed = r.above > 0
		return nil
	}
	m := new(mark)
	if r.passed {
		m.Below, m.Sent = r.next, r.sent-r.above
	}
	r.next, r.above, r.passed = r.high+markAhead*came+16, 0, false
	m.Next = r.next
	return m
}

// again has idle runs be marked once more: marks are lost with a connection too.
func (k *marks) again() {
	for _, r := range k.runs {
		r.quiet = 0
	}
}

// mark is sent by the writer, behind the events that it speaks of.
func (w *writer) mark(m *mark) {
	if w.muteMarks.Load() {
		return
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = w.c.nc.Publish(markSubject(w.c.subject(m.Topic)), b)
	}
	if err != nil {
		w.c.log.Debug("natsbus: a mark was not sent", "topic", m.Topic, "err", err) // the next one says as much
	}
}
