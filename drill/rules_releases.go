package drill

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tidings-go/tidings/supervisor"
)

// judgeReleases: each tidings deploy ended as it must, with a receipt that the ledger
// agrees with, and each worker that was looked at is of the release that it must be.
func (j *judge) judgeReleases() {
	var ends []string
	for i := range j.ev.Releases {
		d := &j.ev.Releases[i]
		ends = append(ends, fmt.Sprintf("%s %d", d.Name, d.Exit))
		j.judgeRelease(d)
		if d.Receipt != nil {
			j.judgeReceipt(d)
		}
	}
	for _, s := range j.ev.Starts {
		if s.Is != s.Want {
			j.broken(j.deploys, 0, Violation{Rule: RuleDeploy, PID: s.PID, Text: fmt.Sprintf("worker %d is of release %q, want %q", s.PID, s.Is, s.Want)})
		}
	}
	if j.deploys != nil {
		j.deploys.Note = fmt.Sprintf("exit status: %s; %d workers are of the release that they must be", strings.Join(ends, ", "), len(j.ev.Starts))
	}
}

func (j *judge) judgeRelease(d *Release) {
	wrong := func(pid int, format string, args ...any) {
		j.broken(j.deploys, d.End, Violation{Rule: RuleDeploy, PID: pid, Text: d.Name + ": " + fmt.Sprintf(format, args...)})
	}
	if d.Exit != d.Want {
		wrong(0, "tidings deploy ended with %d, want %d", d.Exit, d.Want)
	}
	r := d.Receipt
	if state := map[int]string{exitGood: supervisor.DeployCommitted, exitLost: supervisor.DeployCommitted, exitRolledBack: supervisor.DeployRolledBack}[d.Exit]; state != "" && (r == nil || r.State != state) {
		wrong(0, "it ended with %d, and the receipt does not say %q", d.Exit, state)
	}
	if r == nil {
		return
	}
	if d.Exit == exitRolledBack {
		for _, q := range j.ev.Quits {
			if slices.Contains(d.Old, q.PID) && d.Start <= q.At && q.At <= d.End {
				wrong(q.PID, "it was taken back, and an old worker was asked to go")
			}
		}
	}
	j.judgeUnaccounted(d, wrong)
	if d.Refuses != "" && (r.Ready == nil || !j.refusing(d)) {
		j.deploys.void = true
		j.void("%s: no handler of %s failed in its probation", d.Name, d.Refuses)
	}
}

// judgeUnaccounted: those who were killed meanwhile are, and nobody else.
func (j *judge) judgeUnaccounted(d *Release, wrong func(pid int, format string, args ...any)) {
	killed := 0
	for _, k := range j.ev.Kills {
		if k.Sent < d.Begun || k.Noticed > d.End {
			continue
		}
		killed++
		named := fmt.Sprintf("worker %d ", k.PID)
		if !slices.ContainsFunc(d.Receipt.Unaccounted, func(s string) bool { return strings.HasPrefix(s, named) }) {
			wrong(k.PID, "process %d was killed, and the receipt accounts for it", k.PID)
		}
	}
	if n := len(d.Receipt.Unaccounted); n > killed {
		wrong(0, "%d were killed, and %d are unaccounted for: %q", killed, n, d.Receipt.Unaccounted)
	}
}

// refusing: a handler has failed because of the version.
func (j *judge) refusing(d *Release) bool {
	for _, pid := range d.New {
		r := j.reps[pid]
		if r == nil {
			continue
		}
		for s, t := range j.tallies(r, r.last) {
			if s.group == d.Refuses && t.failed > 0 {
				return true
			}
		}
	}
	return false
}
