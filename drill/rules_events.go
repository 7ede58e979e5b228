package drill

import (
	"fmt"
	"slices"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// judgeEvents holds each event against each subscription that must get it.
func (j *judge) judgeEvents() {
	last := j.lastBegun()
	for _, p := range j.sorted {
		for _, x := range j.ev.Expect {
			if x.Topic != p.topic {
				continue
			}
			row := j.rowAt(x.Durable, p.intent+lookahead)
			d := &delivery{judge: j, p: p, x: x, row: row, hs: j.got[deliveryKey{p.eventKey, x.Pattern, x.Group}], last: last}
			d.count()
			d.judgeRefused()
			if x.Durable {
				d.judgeDurable()
			} else {
				d.judgeLive()
			}
			d.judgeUnfinished()
			d.judgeDelay()
		}
	}
}

// stream is what one process gets of one publisher's topic for one subscription.
type stream struct {
	rep              *Reporter
	topic, publisher string
	key              string // of keyed ones
	pattern, group   string
}

// lastBegun is the highest number that each process has begun of each stream.
func (j *judge) lastBegun() map[stream]int {
	last := map[stream]int{}
	for k, hs := range j.got {
		publisher, n, ok := witness.SplitID(k.id)
		if !ok {
			continue
		}
		for _, h := range hs {
			s := stream{h.rep, k.topic, publisher, "", k.pattern, k.group}
			if seen, ok := last[s]; !ok || n > seen {
				last[s] = n
			}
		}
	}
	return last
}

// delivery is one event on its way to one (group, pattern).
type delivery struct {
	*judge
	p    *publication
	x    Expectation
	row  *Row
	hs   []*handling // by begin
	last map[stream]int
}

func (d *delivery) handled() bool {
	for _, h := range d.hs {
		if h.ok() {
			return true
		}
	}
	return false
}

func (d *delivery) count() {
	rows := []*Row{d.row}
	if d.x.Durable {
		rows = append(rows, d.accepted)
	}
	for _, r := range rows {
		r.Sent++
		switch d.p.state {
		case witness.Accept:
			r.Accepted++
		case witness.Doubt:
			r.InDoubt++
		case witness.Refuse:
			r.Refused++
		}
		if d.spooled(d.p) {
			r.Spooled++
		}
		if d.handled() {
			r.Handled++
		}
	}
}

func (d *delivery) violate(r *Row, at Mono, h *handling, rule, format string, args ...any) {
	v := Violation{Rule: rule, Topic: d.p.topic, ID: d.p.id, Pattern: d.x.Pattern, Group: d.x.Group, Text: fmt.Sprintf(format, args...)}
	if h != nil {
		v.PID = h.rep.PID
	}
	d.broken(r, at, v)
}

// lost records the loss of an event; for a durable one the promise that what was
// accepted is handled is broken too, but the event is named once.
func (d *delivery) lost(rule, format string, args ...any) {
	d.row.Lost++
	if d.x.Durable {
		d.accepted.Lost++
		d.accepted.Violations++
	}
	var h *handling
	if len(d.hs) > 0 {
		h = d.hs[len(d.hs)-1]
	}
	d.violate(d.row, d.p.intent, h, rule, format, args...)
}

func (d *delivery) judgeRefused() {
	if d.p.state == witness.Refuse && len(d.hs) > 0 {
		d.violate(d.row, d.hs[0].begin, d.hs[0], RuleRefused, "Publish said that nothing was accepted; %s got it all the same", d.hs[0].rep.name())
	}
}

// missing says how an accepted event was not handled, if it was not.
func (d *delivery) missing() (rule, text string, missing bool) {
	if d.p.state != witness.Accept || d.handled() || d.dies() {
		return "", "", false
	}
	if len(d.hs) == 0 {
		return RuleLost, "accepted, and no process of the group has begun it", true
	}
	h := d.hs[len(d.hs)-1]
	if h.end == 0 {
		return RuleUnfinished, "begun and never ended by " + h.rep.name(), true
	}
	if d.x.Durable {
		return RuleNotRetried, fmt.Sprintf("the handler in %s failed, and the event did not come again: %s", h.rep.name(), h.failed), true
	}
	return RuleFailed, fmt.Sprintf("the handler in %s failed: %s", h.rep.name(), h.failed), true
}

func (d *delivery) fate() witness.Fate { return d.fateOf(d.p.eventKey) }

// dies: its end is a dead letter, which other rules look for.
func (d *delivery) dies() bool { return d.x.GivesUp && d.fate().Dies() }

func (d *delivery) judgeLive() {
	if rule, text, missing := d.missing(); missing {
		d.losses = append(d.losses, loss{d.p.intent, d.forgivenByKill()})
		if d.forgivenByKill() || d.forgivenByDeath() || d.forgivenByOutage() || d.nobodyThere() {
			d.row.Forgiven++
		} else {
			d.lost(rule, "%s", text)
		}
	}
	for i, h := range d.hs {
		if i == 0 {
			continue
		}
		h.double = true
		d.doubled(h, d.hs[i-1])
	}
}

// judgeUnfinished: a handler that a process left behind when it ended by itself
// is a drain that failed, even if the event was handled again elsewhere.
func (d *delivery) judgeUnfinished() {
	_, _, missing := d.missing()
	for i, h := range d.hs {
		_, dead := d.killed[h.rep]
		named := missing && i == len(d.hs)-1 // as a loss
		if h.end == 0 && !dead && !named && !d.named(h.rep) {
			d.violate(d.rowAt(d.x.Durable, h.begin), h.begin, h, RuleUnfinished, "begun and never ended by %s; it is not lost, yet the drain has failed", h.rep.name())
		}
	}
}

// doubled records a handling that no promise allows, in the row of the time at
// which it happened.
func (d *delivery) doubled(h, before *handling) {
	row := d.rowAt(d.x.Durable, h.begin)
	if d.x.Durable && (d.resent(d.p) || d.announced(d.p.eventKey)) {
		row.Redelivered++
		return
	}
	row.Doubled++
	d.violate(row, h.begin, h, RuleDoubled, "begun by %s %v after %s had begun it", h.rep.name(), (h.begin - before.begin).Round(time.Microsecond), before.rep.name())
}

// forgivenByKill: the event died in the hands of a killed process, or can have
// been on the way to it. Streams are ordered, so what it was sent and had not
// begun is above the last number that it had begun.
func (d *delivery) forgivenByKill() bool {
	for _, h := range d.hs {
		if _, dead := d.killed[h.rep]; !dead || h.end != 0 {
			return false
		}
	}
	if len(d.hs) > 0 {
		return true
	}
	for r, k := range d.killed {
		if d.p.done > k.Noticed+d.lim.Slack {
			continue
		}
		n, any := d.last[stream{r, d.p.topic, d.p.publisher, "", d.x.Pattern, d.x.Group}]
		if any && d.p.n > n || !any && d.p.done >= r.opened && d.subscribes(r) {
			return true
		}
	}
	return false
}

// subscribes: a process of r's program has begun something of the subscription, so
// r, which has died too soon to begin anything of this publisher, was in it too.
func (d *delivery) subscribes(r *Reporter) bool {
	return d.programs[program{r.App, d.x.Topic, d.x.Pattern, d.x.Group}]
}

// forgivenByOutage: the event was published between the stop of the hub and the
// moment all clients were back. Slack before it is for what the hub had in hand.
func (d *delivery) forgivenByOutage() bool {
	if len(d.hs) > 0 {
		return false
	}
	for _, o := range d.ev.Outages {
		if d.p.done >= o.Down-d.lim.Slack && d.p.intent <= o.Back {
			return true
		}
	}
	return false
}

// nobodyThere: the event was published while no worker was ready.
func (d *delivery) nobodyThere() bool {
	return len(d.hs) == 0 && slices.ContainsFunc(d.ev.Away, func(s Span) bool {
		return d.p.done >= s.From-d.lim.Slack && d.p.intent <= s.To+d.lim.Slack
	})
}

// named: the receipt of a process's drain names the event.
func (d *delivery) named(r *Reporter) bool { return d.left[r][d.p.eventKey] != nil }

func (d *delivery) judgeDurable() {
	if rule, text, missing := d.missing(); missing {
		d.lost(rule, "%s", text)
	}
	for i, h := range d.hs {
		if h.early || h.ack != 0 && (h.end == 0 || h.ack < h.end) {
			d.violate(d.rowAt(true, h.begin), h.begin, h, RuleEarlyAck, "the broker had confirmed the acknowledgement before the handler in %s had ended", h.rep.name())
		}
		switch {
		case d.dies() && d.redriven(h):
			h.double = true // other rules count it
		case i > 0:
			d.judgeAgain(i)
		case h.attempt > 1:
			d.judgeAttempt(h)
		}
	}
}

// judgeAgain judges a begin that is not the event's first.
func (d *delivery) judgeAgain(i int) {
	h, before := d.hs[i], d.hs[i-1]
	h.double = true
	row := d.rowAt(true, h.begin)
	if before.failed != "" && (d.fate().Fails() || d.refused(before)) {
		row.Retried++
		return
	}
	for _, b := range d.hs[:i] {
		if b.rep == h.rep && b.failed == "" {
			d.doubled(h, b) // a process remembers what it has handled, whatever the broker does
			return
		}
	}
	switch {
	case d.named(before.rep):
		h.back = true
		d.row2(Cuts, row).Redelivered++
	case d.diedWith(before, h):
		d.row2(d.deathKind(before.rep), row).Redelivered++
	case before.failed != "" && !d.leaving(before):
		d.violate(row, before.begin, before, RuleFailed, "the handler in %s failed, and nothing was planted for it: %s", before.rep.name(), before.failed)
	case before.failed != "":
		d.violate(d.receipts, h.begin, h, RuleReceipt, "cut off in %s, whose receipt does not name it, and begun again by %s", before.rep.name(), h.rep.name())
	case d.unacknowledged(before, h) != "":
		d.row2(d.unacknowledged(before, h), row).Redelivered++
	default:
		d.doubled(h, before)
	}
}

// row2 is the durable row of a kind, or otherwise.
func (d *delivery) row2(kind Kind, otherwise *Row) *Row {
	if r := d.rows[rowKey{true, kind}]; r != nil {
		return r
	}
	return otherwise
}

// refused: the handler was one of a version that fails with every event of the
// group, and was taken back for that.
func (d *delivery) refused(h *handling) bool {
	return slices.ContainsFunc(d.ev.Releases, func(r Release) bool {
		return r.Exit == exitRolledBack && r.Refuses == d.x.Group && r.Refuses != "" && slices.Contains(r.New, h.rep.PID)
	})
}

// diedWith: before was in the hands of a process that was killed, without an
// acknowledgement on record, and h came afterwards.
func (d *delivery) diedWith(before, h *handling) bool {
	k, dead := d.killed[before.rep]
	return dead && before.ack == 0 && h.begin > k.Sent
}

// leaving: the handler ended after its process had been asked to go.
func (d *delivery) leaving(h *handling) bool {
	return slices.ContainsFunc(d.ev.Quits, func(q Quit) bool { return q.PID == h.rep.PID && q.At <= h.end })
}

// unacknowledged: before's acknowledgement was not on record when an outage began, and
// h came after that. It returns the outage's kind.
func (d *delivery) unacknowledged(before, h *handling) Kind {
	for _, o := range d.ev.Outages {
		if d.inHands(before, o) && h.begin > o.Down && (before.ack == 0 || before.ack > d.forgotten(o)) {
			return o.kind()
		}
	}
	return ""
}

// judgeAttempt judges a first begin of what the broker had delivered before: to a
// process that died, or whose connection did.
func (d *delivery) judgeAttempt(h *handling) {
	h.late = true
	row := d.rowAt(true, h.begin)
	for r, k := range d.killed {
		if d.p.intent <= k.Noticed+d.lim.Slack && h.begin > k.Sent {
			d.row2(d.deathKind(r), row).Redelivered++
			return
		}
	}
	for r := range d.left {
		if d.named(r) && r != h.rep {
			h.back = true
			d.row2(Cuts, row).Redelivered++
			return
		}
	}
	for _, o := range d.ev.Outages {
		if d.p.intent <= o.Back && h.begin > o.Down {
			d.row2(o.kind(), row).Redelivered++
			return
		}
	}
	row.Redelivered++
	d.violate(row, h.begin, h, RuleRedelivered, "delivered for the %d. time, to %s, and nothing had died", h.attempt, h.rep.name())
}

func (d *delivery) judgeDelay() {
	if len(d.hs) == 0 || d.p.state != witness.Accept {
		return
	}
	// What a dead process had begun was not handled: only the delivery that came
	// to an end counts, or an ack wait of half a minute would pass for prompt.
	h := d.hs[0]
	if d.dies() {
		return // its end is its letter
	}
	if i := slices.IndexFunc(d.hs, func(h *handling) bool { return h.end != 0 }); i >= 0 {
		h = d.hs[i]
	}
	delay := max(0, h.begin-d.p.done)
	d.row.Delay = max(d.row.Delay, ms(delay))
	if bound := d.maxDelay(d.p.done, h.begin); delay > bound {
		d.violate(d.row, h.begin, h, RuleLate, "begun %v after it was accepted; the bound is %v", delay.Round(time.Millisecond), bound)
	}
}

// maxDelay is the bound for an event on its way at that time: the largest of the
// phases that it met.
func (j *judge) maxDelay(from, to Mono) time.Duration {
	bound := j.lim.MaxDelay[j.phaseAt(from).Kind]
	for _, p := range j.ev.Phases {
		if p.Start > from && p.Start <= to {
			bound = max(bound, j.lim.MaxDelay[p.Kind])
		}
	}
	for _, o := range j.ev.Outages {
		if from <= o.Back && to >= o.Down {
			bound += o.Up - o.Down
		}
	}
	// What a process had that was cut off comes again after the ack wait; it may come
	// to another one that is.
	if j.ev.End != nil {
		for _, k := range j.ev.CutOff {
			if from <= k.Noticed+j.lim.Slack && to >= k.Sent {
				bound += time.Duration(j.ev.End.AckWait)
			}
		}
	}
	return bound
}
