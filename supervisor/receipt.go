//go:build unix

package supervisor

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
)

// A Receipt is what a deploy came to, or has come to so far. What workers have
// handled is counted by themselves, those built on package worker; each count is
// over the whole life of a worker, so that it can be compared with any record of
// what the worker did.
type Receipt struct {
	Deploy      int                 `json:"deploy"` // a number, from 1 for each master
	Master      int                 `json:"master"` // pid
	State       string              `json:"state"`
	Reason      string              `json:"reason,omitempty"` // why it was rolled back or stopped
	Command     []string            `json:"command"`
	Generation  int                 `json:"generation"` // of the new workers
	Began       time.Time           `json:"began"`
	Ready       *time.Time          `json:"ready,omitempty"`   // all new workers were
	Until       *time.Time          `json:"until,omitempty"`   // the probation lasts
	Decided     *time.Time          `json:"decided,omitempty"` // to go on or back
	Ended       *time.Time          `json:"ended,omitempty"`   // and all that had to go were gone
	Generations []GenerationReceipt `json:"generations"`       // the old ones first
	Gaps        []GapReceipt        `json:"gaps,omitempty"`    // of subscriptions that got events
	Lost        uint64              `json:"lost"`              // live events that workers dropped during the deploy, or had taken and could not handle
	// Unaccounted names workers that ended, and did not say what became of what
	// they had taken: durable events come again, live ones are lost.
	Unaccounted []string `json:"unaccounted,omitempty"`
}

// A GapReceipt is the longest time within the deploy in which no worker of either
// generation got an event of a subscription, to 10 ms.
type GapReceipt struct {
	Pattern string        `json:"pattern"`
	Group   string        `json:"group,omitempty"`
	Durable bool          `json:"durable,omitempty"`
	Gap     time.Duration `json:"gap_ns"`
}

// A GenerationReceipt is about the workers of one generation.
type GenerationReceipt struct {
	Generation    int                           `json:"generation"`
	New           bool                          `json:"new"`
	Version       string                        `json:"version,omitempty"`
	Program       string                        `json:"program,omitempty"`
	SHA256        string                        `json:"sha256,omitempty"` // of the program, if it is kept
	Workers       []MemberReceipt               `json:"workers"`
	Subscriptions []sdnotify.SubscriptionReport `json:"subscriptions,omitempty"` // sums over the workers
}

// A MemberReceipt is about one worker.
type MemberReceipt struct {
	PID     int                   `json:"pid"`
	Slot    int                   `json:"slot"`
	Ended   string                `json:"ended,omitempty"`   // its status; empty while it runs
	Counted bool                  `json:"counted,omitempty"` // it has told its last counts
	Left    []sdnotify.LeftReport `json:"left,omitempty"`    // what its drain did not finish
}

// Over reports whether the deploy is.
func (r *Receipt) Over() bool { return r.Ended != nil }

// Good reports whether the deploy was committed and lost nothing.
func (r *Receipt) Good() bool {
	return r.State == DeployCommitted && r.Lost == 0 && len(r.Unaccounted) == 0
}

// A member is a worker that takes part in a deploy.
type member struct {
	*worker
	isNew bool
	begin sdnotify.Report // what it had told when it joined
	ended string
}

// join has w take part in the deploy, if there is one.
func (m *master) join(w *worker) {
	if d := m.deploy; d != nil {
		d.members = append(d.members, &member{worker: w, isNew: w.release == d.release, begin: w.report})
	}
}

// leave notes how a member of the deploy ended.
func (m *master) leave(w *worker, words string) {
	if m.deploy == nil {
		return
	}
	for _, k := range m.deploy.members {
		if k.worker == w {
			k.ended = words
		}
	}
}

// A subscription is what workers of several generations have in common.
type subscription struct {
	Name, Pattern, Group string
	Durable              bool
}

func (s subscription) String() string {
	switch {
	case s.Durable:
		return fmt.Sprintf("%s (durable, group %s)", s.Pattern, s.Group)
	case s.Group != "":
		return fmt.Sprintf("%s (group %s)", s.Pattern, s.Group)
	}
	return s.Pattern
}

func keyOf(s *sdnotify.SubscriptionReport) subscription {
	return subscription{s.Name, s.Pattern, s.Group, s.Durable}
}

// receipt is a copy of what is known.
func (d *deploy) receipt() Receipt {
	r := Receipt{Deploy: d.number, Master: os.Getpid(), State: d.phase, Reason: d.reason, Command: slices.Clone(d.command), Generation: d.generation, Began: d.began}
	known := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	r.Ready, r.Decided, r.Ended = known(d.ready), known(d.decided), known(d.ended)
	if !d.ready.IsZero() {
		r.Until = known(d.ready.Add(d.Probation))
	}
	members := slices.Clone(d.members)
	slices.SortFunc(members, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.generation, b.generation), cmp.Compare(a.slot, b.slot), cmp.Compare(a.pid, b.pid))
	})
	for _, k := range members {
		if n := len(r.Generations); n == 0 || r.Generations[n-1].Generation != k.generation {
			r.Generations = append(r.Generations, GenerationReceipt{Generation: k.generation, New: k.isNew, Program: k.release.program.path, SHA256: k.release.program.sum()})
		}
		r.Generations[len(r.Generations)-1].add(k)
		r.Lost += k.lost()
		if k.isUnaccounted() {
			r.Unaccounted = append(r.Unaccounted, fmt.Sprintf("worker %d of generation %d: %s", k.pid, k.generation, k.ended))
		}
	}
	r.Gaps = d.gaps()
	return r
}

func (g *GenerationReceipt) add(k *member) {
	g.Version = cmp.Or(g.Version, k.report.Version)
	g.Workers = append(g.Workers, MemberReceipt{PID: k.pid, Slot: k.slot, Ended: k.ended, Counted: k.report.Final, Left: slices.Clone(k.report.Left)})
	for i := range k.report.Subscriptions {
		s := &k.report.Subscriptions[i]
		at := slices.IndexFunc(g.Subscriptions, func(o sdnotify.SubscriptionReport) bool { return keyOf(&o) == keyOf(s) })
		if at < 0 {
			g.Subscriptions = append(g.Subscriptions, *s)
		} else {
			add(&g.Subscriptions[at], s)
		}
	}
}

// add makes sum that of both. What is known of a group at the broker is the same
// for all of its members: the higher one is the safer one.
func add(sum, s *sdnotify.SubscriptionReport) {
	sum.Ready = sum.Ready && s.Ready
	sum.Queued += s.Queued
	sum.Hung += s.Hung
	for _, of := range []struct{ sum, s *uint64 }{
		{&sum.Running, &s.Running}, {&sum.Received, &s.Received}, {&sum.Redelivered, &s.Redelivered}, {&sum.Handled, &s.Handled},
		{&sum.GaveUp, &s.GaveUp}, {&sum.Returned, &s.Returned}, {&sum.Expired, &s.Expired}, {&sum.Dropped, &s.Dropped},
		{&sum.Left, &s.Left}, {&sum.Failed, &s.Failed}, {&sum.Acked, &s.Acked},
	} {
		*of.sum += *of.s
	}
	sum.Lag, sum.LagKnown = max(sum.Lag, s.Lag), sum.LagKnown || s.LagKnown
}

// lost counts the live events that came to nothing, as far as the worker has told.
func (k *member) lost() (n uint64) {
	dropped := map[subscription]uint64{}
	for i := range k.begin.Subscriptions {
		dropped[keyOf(&k.begin.Subscriptions[i])] = k.begin.Subscriptions[i].Dropped
	}
	for i := range k.report.Subscriptions {
		s := &k.report.Subscriptions[i]
		n += s.Dropped - min(s.Dropped, dropped[keyOf(s)])
		if !s.Durable {
			n += s.Left
		}
	}
	return n
}

// isUnaccounted: a worker that reports counts must report its last. One that never
// does, in another language say, has its exit status to say that all is well. One
// that was not even ready and had no subscriptions has taken nothing.
func (k *member) isUnaccounted() bool {
	switch {
	case k.ended == "" || k.report.Final || k.readyAt.IsZero() && len(k.report.Subscriptions) == 0:
		return false
	case len(k.report.Subscriptions) > 0:
		return true
	}
	return k.why != "" || !k.status.Exited() || k.status.ExitStatus() != 0
}
