package drill

import (
	"fmt"
	"slices"
)

// judgeCells: each signal had its effect, and met events.
func (j *judge) judgeCells() {
	played, nothing := 0, 0
	for _, c := range j.ev.Cells {
		if c.Nothing != "" {
			nothing++
			continue
		}
		played++
		for _, s := range c.Wrong {
			j.broken(j.effects, c.Start, Violation{Rule: RuleEffect, Text: c.Name + ": " + s})
		}
		if c.Missed != "" {
			j.effects.void = true
			j.void("%s: %s", c.Name, c.Missed)
		}
		for _, durable := range []bool{false, true} {
			r := j.row(durable, Kind(c.Name))
			if r.Sent < j.lim.PerCell && c.Missed == "" && len(c.Wrong) == 0 {
				r.void = true
				j.void("%s: %d events were sent; it proves nothing below %d", r.Promise, r.Sent, j.lim.PerCell)
			}
			j.judgeCutOff(c, r, durable)
		}
		if idle := j.idle(c.Workers); idle > 0 && len(c.Wrong) == 0 {
			j.effects.void = true
			j.void("%s: %d of %d workers had nothing to do", c.Name, idle, len(c.Workers))
		}
	}
	if j.effects != nil {
		j.effects.Note = fmt.Sprintf("%d cells, %d are meaningless, %d workers were cut off as they may be", played, nothing, len(j.ev.CutOff))
	}
}

// judgeCutOff bounds what is forgiven, and what comes again.
func (j *judge) judgeCutOff(c *Cell, r *Row, durable bool) {
	n := 0
	for _, k := range j.ev.CutOff {
		// What was published just before a cell is its own, and may have gone with a process
		// of the one before.
		before := k.Noticed < c.Start && k.Noticed+j.lim.Slack >= c.Start-lookahead
		if before || j.cellOf(k) == Kind(c.Name) {
			n++
		}
	}
	if budget := n * j.lim.CutOff; !durable && r.Forgiven > budget {
		j.broken(r, c.Start, Violation{Rule: RuleBudget, Text: fmt.Sprintf("%d live events went with %d processes; the budget is %d", r.Forgiven, n, budget)})
	}
	if budget := n * j.lim.Redeliveries[Signals]; durable && r.Redelivered > budget {
		j.broken(r, c.Start, Violation{Rule: RuleBudget, Text: fmt.Sprintf("%d redeliveries; the budget is %d", r.Redelivered, budget)})
	}
}

// cellOf is the row of the cell whose signal has cut a process off.
func (j *judge) cellOf(k Kill) Kind {
	gone, _ := j.exit(k.PID)
	if i := slices.IndexFunc(j.ev.Cells, func(c *Cell) bool { return c.Start <= gone.At && gone.At <= c.End }); i >= 0 {
		return Kind(j.ev.Cells[i].Name)
	}
	return Signals
}

// idle counts the processes that have begun nothing.
func (j *judge) idle(pids []int) (n int) {
	for _, pid := range pids {
		if j.worked([]int{pid}) == 0 {
			n++
		}
	}
	return n
}
