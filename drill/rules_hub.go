package drill

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// A Move is one end of the hub in one process, and its start in the same or another.
type Move struct {
	From    string `json:"from"`
	End     string `json:"end"` // "killed" or "stopped"
	To      string `json:"to"`
	Silence ms     `json:"silence_ms"` // the longest time in which no durable event was accepted
}

// judgeKept: the hub that a master keeps is the same one before and after each deploy,
// and from one to the next if nobody has ended it in between.
func (j *judge) judgeKept() {
	if j.kept == nil {
		return
	}
	through := map[int][]string{}
	var pids []int
	var last *Deploy
	for i := range j.ev.Deploys {
		d := &j.ev.Deploys[i]
		if d.Hub == nil {
			continue
		}
		is := func(before, after HubRun, when string) {
			if before != after {
				j.broken(j.kept, d.Start, Violation{Rule: RuleHub, PID: before.PID,
					Text: fmt.Sprintf("%s: the hub was process %d (server %s), then %d (server %s)", when, before.PID, before.Server, after.PID, after.Server)})
			}
		}
		is(d.Hub.Before, d.Hub.After, d.Name)
		if last != nil && !slices.ContainsFunc(j.ev.Outages, func(o Outage) bool { return last.Start < o.Down && o.Down < d.Start }) {
			is(last.Hub.After, d.Hub.Before, "between "+last.Name+" and "+d.Name)
		}
		last = d
		pid := d.Hub.Before.PID
		if through[pid] == nil {
			pids = append(pids, pid)
		}
		through[pid] = append(through[pid], fmt.Sprintf("%s (%s)", d.Name, d.Signal))
	}
	var notes []string
	for _, pid := range pids {
		notes = append(notes, fmt.Sprintf("pid %d in %s", pid, strings.Join(through[pid], ", ")))
	}
	j.kept.Note = strings.Join(notes, "; ")
}

// judgeMoves: whoever has the hub may end, and soon another takes what is published.
func (j *judge) judgeMoves() {
	if j.moved == nil {
		return
	}
	var longest ms
	for _, o := range j.ev.Outages {
		if o.Host == "" {
			continue
		}
		m := Move{From: o.Host, End: "stopped", To: o.Next, Silence: ms(j.silence(o))}
		if o.Killed {
			m.End = "killed"
		}
		j.v.Moves = append(j.v.Moves, m)
		longest = max(longest, m.Silence)
		if time.Duration(m.Silence) > j.lim.Silence {
			j.broken(j.moved, o.Down, Violation{Rule: RuleLate, PID: o.PID,
				Text: fmt.Sprintf("after the %s nothing was accepted for %v; the bound is %v", o.what(), round(m.Silence), j.lim.Silence)})
		}
	}
	j.moved.Note = fmt.Sprintf("%d times, at most %v without an accepted durable event", len(j.v.Moves), round(longest))
}

// silence is the longest time around an outage in which no publisher was told that a
// durable event is accepted.
func (j *judge) silence(o Outage) (longest time.Duration) {
	last := o.Down
	var told []Mono
	for _, p := range j.sorted {
		if p.state == witness.Accept && j.durable(p.topic) && o.Down <= p.done && p.done <= o.Back {
			told = append(told, p.done)
		}
	}
	slices.Sort(told)
	for _, at := range append(told, o.Back) {
		longest = max(longest, at-last)
		last = at
	}
	return longest
}
