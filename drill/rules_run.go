package drill

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// judgeStrangers finds what was handled and should not exist.
func (j *judge) judgeStrangers() {
	wanted := map[Expectation]bool{}
	for _, x := range j.ev.Expect {
		wanted[Expectation{Topic: x.Topic, Pattern: x.Pattern, Group: x.Group}] = true
	}
	for k, hs := range j.got {
		h := hs[0]
		v := Violation{Topic: k.topic, ID: k.id, Pattern: k.pattern, Group: k.group, PID: h.rep.PID}
		if j.pubs[k.eventKey] == nil {
			v.Rule, v.Text = RuleUnknown, "handled by "+h.rep.name()+"; no publisher wrote that it would send it"
			j.broken(j.ledger, h.begin, v)
		} else if !wanted[Expectation{Topic: k.topic, Pattern: k.pattern, Group: k.group}] {
			v.Rule, v.Text = RuleUnexpected, "handled by "+h.rep.name()
			j.broken(j.evidence, h.begin, v)
		}
	}
}

// judgeOrder: within a process, a subscription begins each publisher's events of
// a topic in the order of their numbers. Redeliveries are apart.
func (j *judge) judgeOrder() {
	byEntry := map[*Reporter]map[deliveryKey][]*handling{}
	for k, hs := range j.got {
		for _, h := range hs {
			if byEntry[h.rep] == nil {
				byEntry[h.rep] = map[deliveryKey][]*handling{}
			}
			byEntry[h.rep][k] = append(byEntry[h.rep][k], h)
		}
	}
	for _, r := range j.led.Reporters {
		highest := map[stream]int{}
		for _, e := range r.Entries {
			if e.Kind != witness.Begin {
				continue
			}
			k := deliveryKey{eventKey{e.Topic, e.ID}, e.Pattern, e.Group}
			hs := byEntry[r][k]
			h := hs[0]
			byEntry[r][k] = hs[1:]
			j.judgePlace(r, e, h, highest)
		}
	}
}

func (j *judge) judgePlace(r *Reporter, e Entry, h *handling, highest map[stream]int) {
	publisher, n, ok := witness.SplitID(e.ID)
	if !ok || h.double || h.late {
		return
	}
	s := stream{r, e.Topic, publisher, "", e.Pattern, e.Group}
	row := j.order
	if j.keyed(e) {
		s.key, row = j.keyOf(e), j.keys
	}
	last, any := highest[s]
	if !any || n > last {
		highest[s] = n
		return
	}
	if j.reordered(e) {
		row.Redelivered++
		row.Note = fmt.Sprintf("%d came again to another process after the hub's restart", row.Redelivered)
		return
	}
	j.broken(row, e.At, Violation{Rule: RuleOrder, Topic: e.Topic, ID: e.ID, Pattern: e.Pattern, Group: e.Group, PID: r.PID,
		Text: fmt.Sprintf("begun after %s in %s", witness.ID(publisher, last), r.name())})
}

// reordered: a durable event that another process had been sent when the hub went
// down. The restarted hub may hand it out again as if for the first time.
func (j *judge) reordered(e Entry) bool {
	durable := slices.ContainsFunc(j.ev.Expect, func(x Expectation) bool {
		return x.Durable && x.Topic == e.Topic && x.Pattern == e.Pattern && x.Group == e.Group
	})
	p := j.pubs[eventKey{e.Topic, e.ID}]
	if !durable || p == nil {
		return false
	}
	return slices.ContainsFunc(j.ev.Outages, func(o Outage) bool { return p.intent <= o.Down && e.At > o.Down })
}

// judgeGaps measures the longest time in which no process began anything of a
// subscription, while publishers published.
func (j *judge) judgeGaps() {
	begins := map[Expectation][]Mono{}
	durable := map[Expectation]bool{}
	for _, x := range j.ev.Expect {
		durable[Expectation{Topic: x.Topic, Pattern: x.Pattern, Group: x.Group}] = x.Durable
	}
	for k, hs := range j.got {
		x := Expectation{Topic: k.topic, Pattern: k.pattern, Group: k.group}
		if _, ok := durable[x]; !ok {
			continue
		}
		for _, h := range hs {
			if !h.double && !h.late && h.begin <= j.ev.Finish {
				begins[x] = append(begins[x], h.begin)
			}
		}
	}
	for x, at := range begins {
		slices.Sort(at)
		for i := 1; i < len(at); i++ {
			row := j.rowAt(durable[x], at[i-1]+lookahead)
			row.Gap = max(row.Gap, ms(at[i]-at[i-1]))
			if durable[x] {
				j.stall(at[i-1], at[i])
			}
		}
	}
}

// stall notes that no durable event of a subscription was begun between two instants, if
// a node was killed there or the leaders were elected that it had been.
func (j *judge) stall(from, to Mono) {
	for i, o := range j.ev.Outages {
		if o.kind() == Nodes && from < max(o.Up, o.Elected) && to > o.Down {
			j.stalls[i] = max(j.stalls[i], to-from)
		}
	}
}

func (j *judge) judgeBudgets() {
	budgets := map[Kind]int{Kills: len(j.ev.Kills), Crashes: len(j.ev.Crashes), Cuts: len(j.left)}
	for _, o := range j.ev.Outages {
		budgets[o.kind()]++
	}
	for kind, n := range budgets {
		row := j.row(true, kind)
		if budget := n * j.lim.Redeliveries[kind]; row != j.evidence && row.Redelivered > budget {
			j.broken(row, 0, Violation{Rule: RuleBudget, Text: fmt.Sprintf("%d redeliveries; the budget is %d", row.Redelivered, budget)})
		}
	}
}

func (j *judge) judgeLedger() {
	lines := 0
	for _, r := range j.led.Reporters {
		lines += int(r.lines)
		for _, f := range r.Flaws {
			j.broken(j.ledger, 0, Violation{Rule: RuleLedger, PID: r.PID, Text: r.File + ": " + f})
		}
		_, dead := j.killed[r]
		if _, died := j.dead[r]; !r.Closed && !dead && !died {
			j.broken(j.ledger, r.last, Violation{Rule: RuleLedger, PID: r.PID, Text: r.File + ": not closed, and its process was not killed by the drill"})
		}
	}
	if j.ledger.Note == "" {
		j.ledger.Note = fmt.Sprintf("%d journals, %d lines", len(j.led.Reporters), lines)
	}
}

func (j *judge) judgeEnd() {
	e := j.ev.End
	if e == nil {
		j.end.void = true
		j.void("what the broker held at the end is not known")
		return
	}
	wrong := func(format string, args ...any) {
		j.broken(j.end, 0, Violation{Rule: RuleEnd, Text: fmt.Sprintf(format, args...)})
	}
	if e.Pending > 0 {
		wrong("%d stored events were never delivered", e.Pending)
	}
	if e.AckPending > 0 {
		wrong("%d delivered events were never acknowledged", e.AckPending)
	}
	var accepted, doubt uint64
	if s := j.ev.Spools; s != nil {
		doubt = uint64(s.Possible)
	}
	for _, p := range j.sorted {
		if !j.durable(p.topic) {
			continue
		}
		switch p.state {
		case witness.Accept:
			accepted++
			if j.resent(p) {
				doubt++
			}
		case witness.Doubt:
			doubt++
		}
	}
	if e.Stored < accepted {
		wrong("%d durable events were accepted, %d are stored", accepted, e.Stored)
	}
	if e.Stored > accepted+doubt {
		wrong("%d durable events are stored, though only %d were accepted and %d are in doubt", e.Stored, accepted, doubt)
	}
	j.end.Note = fmt.Sprintf("stored %d, pending %d, unacknowledged %d", e.Stored, e.Pending, e.AckPending)
}

// judgeEvidence: the run must have done what it says it did.
func (j *judge) judgeEvidence() {
	for _, plan := range []struct {
		want, is int
		what     string
	}{
		{j.ev.WantDeploys, len(j.ev.Deploys), "deploys"},
		{j.ev.WantKills, len(j.ev.Kills), "kills"},
		{j.ev.WantOutages, len(j.ev.Outages), "restarts of the hub"},
		{j.ev.WantDeaths, len(j.ev.Deaths), "kills of publishers"},
		{j.ev.WantReleases, len(j.ev.Releases), "runs of tidings deploy"},
	} {
		if plan.is < plan.want {
			j.void("%d %s were planned, %d happened", plan.want, plan.what, plan.is)
		}
	}
	for i, d := range j.ev.Deploys {
		j.judgeDeploy(i, d)
	}
	for _, k := range j.ev.Kills {
		j.judgeKill(k)
	}
	for _, k := range j.ev.Crashes {
		if e, gone := j.exit(k.PID); !gone || e.Code != witness.DeadlyStatus {
			j.void("it is not known that a deadly event has ended pid %d", k.PID)
		}
	}
	for _, o := range j.ev.Outages {
		j.judgeOutage(o)
	}
	j.judgeFates()
	j.judgeInFlight()
	for _, x := range j.ev.Expect {
		n := 0
		for _, p := range j.sorted {
			if p.topic == x.Topic {
				n++
			}
		}
		if n < j.lim.PerWorker {
			j.void("only %d events were published on %s", n, x.Topic)
		}
	}
	if len(j.ev.Expect) == 0 {
		j.void("nothing was expected of anybody")
	}
}

func (j *judge) exit(pid int) (Exit, bool) {
	i := slices.IndexFunc(j.ev.Exits, func(e Exit) bool { return e.PID == pid })
	if i < 0 {
		return Exit{}, false
	}
	return j.ev.Exits[i], true
}

func (j *judge) worked(pids []int) (handled int) {
	for _, pid := range pids {
		if r := j.reps[pid]; r != nil {
			for _, e := range r.Entries {
				if e.Kind == witness.End && e.Err == "" {
					handled++
				}
			}
		}
	}
	return handled
}

func (j *judge) judgeDeploy(i int, d Deploy) {
	voidDeploy := func(format string, args ...any) {
		for _, durable := range []bool{false, true} {
			j.row(durable, Deploys).void = true
		}
		j.void("%s: %s", d.Name, fmt.Sprintf(format, args...))
	}
	if d.Failure != "" {
		j.broken(j.evidence, d.Start, Violation{Rule: RuleProcess, Text: d.Name + ": " + d.Failure})
		return
	}
	if len(d.New) == 0 || slices.ContainsFunc(d.New, func(pid int) bool { return slices.Contains(d.Old, pid) }) {
		voidDeploy("no new processes: old %v, new %v", d.Old, d.New)
	}
	if n := j.worked(d.New); n < j.lim.PerWorker {
		voidDeploy("the new generation has handled %d events; it proves nothing below %d", n, j.lim.PerWorker)
	}
	if n := j.worked(d.Old); i == 0 && n < j.lim.PerWorker {
		voidDeploy("the old generation has handled %d events; it proves nothing below %d", n, j.lim.PerWorker)
	}
	for _, pid := range d.Old {
		e, gone := j.exit(pid)
		if !gone {
			j.broken(j.evidence, d.Start, Violation{Rule: RuleProcess, PID: pid, Text: fmt.Sprintf("%s: old process %d was not seen to exit", d.Name, pid)})
		} else if d.Cut && e.Code == 1 && len(j.left[j.reps[pid]]) > 0 {
			continue // it says so when it leaves something behind
		} else if e.Code != 0 || e.Signal != "" {
			j.broken(j.evidence, e.At, Violation{Rule: RuleProcess, PID: pid, Text: fmt.Sprintf("%s: old process %d ended with status %d %s", d.Name, pid, e.Code, e.Signal)})
		}
	}
}

func (j *judge) judgeKill(k Kill) {
	missed := func(why string) {
		for _, durable := range []bool{false, true} {
			j.row(durable, Kills).void = true
		}
		j.void("the kill -9 of pid %d missed: %s", k.PID, why)
	}
	if e, gone := j.exit(k.PID); !gone {
		missed("its end was not seen")
	} else if e.Signal != "killed" {
		missed(fmt.Sprintf("it ended with status %d %s", e.Code, e.Signal))
	}
	if j.worked([]int{k.PID}) < j.lim.PerWorker {
		missed("it was not at work")
	}
}

func (j *judge) judgeOutage(o Outage) {
	met := o.Before > 0 && o.Gone != 0 && o.Closed > 0
	if o.Killed || o.Host != "" {
		e, gone := j.exit(o.PID)
		met = o.Before > 0 && gone && (e.Signal == "killed") == o.Killed
	}
	if !met {
		for _, durable := range []bool{false, true} {
			j.row(durable, o.kind()).void = true
		}
		j.void("the %s met nobody: %d clients before, %d connections closed", o.what(), o.Before, o.Closed)
	}
	if o.Old.Name == "" && slices.ContainsFunc(j.ev.Expect, func(x Expectation) bool { return x.Durable }) {
		j.row(true, o.kind()).void = true
		j.void("it is not known which store the hub had before the %s", o.what())
	}
	if o.Back == 0 || o.After < o.Before {
		j.broken(j.row(false, o.kind()), o.Up, Violation{Rule: RuleProcess, Text: fmt.Sprintf("%d of %d clients came back after the %s", o.After, o.Before, o.what())})
	}
	if !o.Old.Created.Equal(o.New.Created) || o.Old.Name != o.New.Name || o.New.LastSeq < o.Old.LastSeq {
		j.broken(j.row(true, o.kind()), o.Up, Violation{Rule: RuleStream, Text: fmt.Sprintf("the hub came back with another store: %s of %v at %d, was %s of %v at %d",
			o.New.Name, o.New.Created, o.New.LastSeq, o.Old.Name, o.Old.Created, o.Old.LastSeq)})
	}
}

// judgeInFlight counts what the deploys met: events that a worker began after it
// had been asked to go.
func (j *judge) judgeInFlight() {
	old := map[int]bool{}
	for _, d := range j.ev.Deploys {
		for _, pid := range d.Old {
			old[pid] = true
		}
	}
	for _, q := range j.ev.Quits {
		r := j.reps[q.PID]
		if r == nil || !old[q.PID] {
			continue
		}
		delete(old, q.PID) // a second request does not count twice
		for _, e := range r.Entries {
			if e.Kind == witness.Begin && e.At > q.At {
				j.v.InFlight++
			}
		}
	}
	if len(j.ev.Deploys) > 0 && j.v.InFlight < j.lim.InFlight {
		for _, durable := range []bool{false, true} {
			j.row(durable, Deploys).void = true
		}
		j.void("only %d events were in flight when workers were asked to go; it proves nothing below %d", j.v.InFlight, j.lim.InFlight)
	}
	j.evidence.Note = j.done()
}

// done says what was done to the processes.
func (j *judge) done() string {
	var notes []string
	note := func(n int, format string, args ...any) {
		if n > 0 {
			notes = append(notes, fmt.Sprintf(format, append([]any{n}, args...)...))
		}
	}
	note(len(j.ev.Deploys), "%d deploys (%d events in flight)", j.v.InFlight)
	note(len(j.ev.Kills), "%d kills%s", j.firstAgain())
	note(len(j.ev.Deaths), "%d kills%s", j.died())
	outages := map[Kind]int{}
	for _, o := range j.ev.Outages {
		outages[o.kind()]++
	}
	note(outages[Outages], "%d restarts of the hub")
	note(outages[Takeover], "%d moves of the hub")
	note(outages[Networks], "%d network faults")
	note(outages[Nodes], "%d nodes killed (%s)", j.stalled())
	note(len(j.ev.Crashes), "%d processes killed by an event")
	var away time.Duration
	for _, s := range j.ev.Away {
		away += s.To - s.From
	}
	note(len(j.ev.Away), "%d times no worker (%v in all)", away.Round(time.Millisecond))
	return strings.Join(notes, ", ")
}

// stalled is for how long nothing was handled around the death of each node, and of that,
// how long the stream or one of its groups had no leader: then nothing can be accepted, or
// handled, by whatever client.
func (j *judge) stalled() string {
	var all []string
	for i, o := range j.ev.Outages {
		if o.kind() == Nodes {
			all = append(all, fmt.Sprintf("%v without an event, of which %v without a leader", round(ms(j.stalls[i])), round(ms(max(o.Elected-o.Down, 0)))))
		}
	}
	return strings.Join(all, "; ")
}

// A Publisher is how one publisher kept to its open-loop schedule on one topic.
type Publisher struct {
	Name     string `json:"name"`
	Topic    string `json:"topic"`
	Sent     int    `json:"sent"`
	Accepted int    `json:"accepted"`
	Refused  int    `json:"refused"`
	InDoubt  int    `json:"in_doubt"`
	Spooled  int    `json:"spooled"`     // accepted while there was no hub
	Late50   ms     `json:"late_p50_ms"` // behind the schedule, when it was published
	Late99   ms     `json:"late_p99_ms"`
	LateMax  ms     `json:"late_max_ms"`
}

// judgePublishers: a publisher that was blocked or refused sends nothing into the
// gap that matters, and the gap then looks harmless.
func (j *judge) judgePublishers() {
	type key struct{ name, topic string }
	late := map[key][]time.Duration{}
	other := map[key]int{} // refused with a full spool, or on its way when its publisher was killed
	stats := map[key]*Publisher{}
	last := map[key]*publication{}
	var keys []key
	for _, p := range j.sorted {
		k := key{p.publisher, p.topic}
		s := stats[k]
		if s == nil {
			s = &Publisher{Name: p.publisher, Topic: p.topic}
			stats[k] = s
			keys = append(keys, k)
		}
		s.Sent++
		switch p.state {
		case witness.Accept:
			s.Accepted++
		case witness.Refuse:
			s.Refused++
			if j.phaseAt(p.intent).Kind == Fulls {
				other[k]++
			}
		case witness.Doubt:
			s.InDoubt++
			if x, dead := j.dead[p.rep]; dead && p.done == 0 && p.intent >= x.Sent-j.lim.Unflushed {
				other[k]++
			}
		}
		if j.spooled(p) {
			s.Spooled++
		}
		late[k] = append(late[k], max(0, p.intent-p.scheduled))
		last[k] = p
	}
	for _, k := range keys {
		s, l := stats[k], late[k]
		slices.Sort(l)
		s.Late50, s.Late99, s.LateMax = ms(l[len(l)/2]), ms(l[len(l)*99/100]), ms(l[len(l)-1])
		j.v.Publishers = append(j.v.Publishers, *s)
		if share := float64(s.Accepted+other[k]) / float64(s.Sent); share < j.lim.Accepted {
			j.void("only %.0f %% of what %s published on %s was accepted", 100*share, s.Name, s.Topic)
		}
		end := j.ev.Finish
		if x, dead := j.dead[last[k].rep]; dead {
			end = x.Sent
		}
		for _, q := range j.ev.Leavers {
			if q.PID == last[k].rep.PID {
				end = q.At
			}
		}
		if behind := end - last[k].scheduled; behind > 2*time.Second {
			j.void("%s was %v behind its schedule on %s at its end: it was blocked", s.Name, behind.Round(time.Millisecond), s.Topic)
		}
		if n := last[k].n; n != s.Sent {
			j.void("%s skipped %d events of its schedule on %s", s.Name, n-s.Sent, s.Topic)
		}
	}
	if len(keys) == 0 {
		j.void("nothing was published")
	}
}
