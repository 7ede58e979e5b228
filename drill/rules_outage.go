package drill

import (
	"fmt"
	"slices"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// spooled: the event was accepted while there was no hub, so it lay in a spool.
func (j *judge) spooled(p *publication) bool {
	return p.state == witness.Accept && j.durable(p.topic) && slices.ContainsFunc(j.ev.Outages, func(o Outage) bool { return o.kind() == Outages && o.Gone < p.done && p.done < o.Up })
}

func (j *judge) durable(topic string) bool {
	return slices.ContainsFunc(j.ev.Expect, func(x Expectation) bool { return x.Durable && x.Topic == topic })
}

// forgivenByDeath: the event was published so shortly before its publisher was killed
// that it may not have left it.
func (d *delivery) forgivenByDeath() bool {
	x, dead := d.dead[d.p.rep]
	return dead && len(d.hs) == 0 && d.p.done >= x.Sent-d.lim.Unflushed
}

// inHands: before was in the hands of a process when the hub went. What has lain in
// its queue it has begun soon after.
func (j *judge) inHands(before *handling, o Outage) bool {
	return before.begin < min(o.Back, max(o.Up, o.Down+inHand))
}

// inHand bounds how long what a process was sent waits for its handler.
const inHand = time.Second

// forgotten is since when acknowledgements that the hub had confirmed may have been
// lost with it: it writes down where its consumers are some time later.
func (j *judge) forgotten(o Outage) Mono {
	if o.Killed {
		return o.Down - j.lim.Unsaved
	}
	return o.Down
}

// announced: a publisher has said that it sends events again that may be stored. It
// names them by ids that journals do not have, so they are so many.
func (j *judge) announced(k eventKey) bool {
	if j.ev.Spools == nil {
		return false
	}
	if !j.possible[k] && len(j.possible) < j.ev.Spools.Possible {
		j.possible[k] = true
	}
	return j.possible[k]
}

// resent: the publisher itself has published the event twice, so shortly before the hub
// went that the second may lie in a spool until the stream has forgotten the first.
func (j *judge) resent(p *publication) bool {
	return j.fateOf(p.eventKey) == witness.Twice && slices.ContainsFunc(j.ev.Outages, func(o Outage) bool {
		return p.done > o.Down-window && p.done <= o.Gone
	})
}

// judgeSpools: at the end nothing is left in spools, and there was something in them.
func (j *judge) judgeSpools() {
	s := j.ev.Spools
	if s == nil {
		return
	}
	wrong := func(format string, args ...any) {
		j.broken(j.end, 0, Violation{Rule: RuleEnd, Text: fmt.Sprintf(format, args...)})
	}
	if s.Left > 0 {
		wrong("%d accepted events lie in spools, and all publishers have ended", s.Left)
	}
	if s.Refused > 0 {
		wrong("%d accepted events were refused by the hub and set aside", s.Refused)
	}
	if s.Damaged > 0 {
		wrong("%d parts of spools were set aside as damaged", s.Damaged)
	}
	spooled, refused := 0, 0
	for _, p := range j.sorted {
		if j.spooled(p) {
			spooled++
		}
		if p.state == witness.Refuse && j.phaseAt(p.intent).Kind == Fulls {
			refused++
		}
	}
	if spooled < j.lim.Spooled {
		j.void("only %d events were accepted while there was no hub; it proves nothing below %d", spooled, j.lim.Spooled)
	}
	if j.rows[rowKey{true, Fulls}] != nil && refused < j.lim.Refused {
		j.row(true, Fulls).void = true
		j.void("only %d events were refused by full spools; it proves nothing below %d", refused, j.lim.Refused)
	}
	j.judgeDeaths()
}

// judgeDeaths: publishers were killed, and left something behind.
func (j *judge) judgeDeaths() {
	var left uint64
	for _, x := range j.ev.Deaths {
		left += x.Left
		if e, gone := j.exit(x.PID); !gone || e.Signal != "killed" {
			j.row(true, Deaths).void = true
			j.void("the kill -9 of the publisher %s missed: it ended with status %d %s", x.Name, e.Code, e.Signal)
		}
	}
	if left == 0 {
		j.row(true, Deaths).void = true
		j.void("no publisher that was killed has left anything in its spool")
	}
}

// died says of the deaths of publishers what there is to say.
func (j *judge) died() string {
	var left uint64
	open, stored := 0, uint64(0)
	for _, x := range j.ev.Deaths {
		left, open, stored = left+x.Left, open+x.Open, stored+x.Stored
	}
	if j.ev.Spools == nil {
		return fmt.Sprintf(" of publishers (%d events unanswered)", open)
	}
	s := fmt.Sprintf(" of publishers (%d events left in their spools, %d stored and not known to be, %d unanswered)", left, stored, open)
	if n := j.ev.Spools; n != nil && n.Possible > 0 {
		s += fmt.Sprintf(", %d possible doubles", n.Possible)
	}
	return s
}
