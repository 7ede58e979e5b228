package tidings

import (
	"fmt"
	"strings"
	"time"
)

// Health says whether a bus does what it is there for, and if not, what is in the way.
//
// It is for people and for alarms, not for what restarts or bypasses processes: a broker
// that is away is no reason to restart those who wait for it, nor to take all of them out
// of service at once. For that there are readiness and liveness, see [Bus.Ready] and
// worker.Probes.
type Health struct {
	OK       bool
	Problems []Problem // none if OK
}

// Problem is one thing that does not work.
type Problem struct {
	What   string
	Since  time.Time // zero: not known
	Cause  string    // "": not known
	WayOut string
}

// String is the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.What)
	if !p.Since.IsZero() {
		fmt.Fprintf(&b, " since %s", p.Since.Format(time.RFC3339))
	}
	if p.Cause != "" {
		fmt.Fprintf(&b, ": %s", p.Cause)
	}
	if p.WayOut != "" {
		fmt.Fprintf(&b, "; %s", p.WayOut)
	}
	return b.String()
}

// Health returns the present state, at the cost of a [Debugger.Snapshot].
func (d *Debugger) Health() Health {
	h := Health{Problems: problems(d.Snapshot())}
	if state := d.b.state.Load(); state != stateOpen {
		h.Problems = append(h.Problems, Problem{What: "the bus drains, or has ended", WayOut: "nothing more comes of it"})
	}
	h.OK = len(h.Problems) == 0
	return h
}

func problems(s Snapshot) (ps []Problem) {
	if t := s.Transport; s.Attached && !t.Connected {
		ps = append(ps, Problem{What: "no connection to " + t.URL, Since: t.Since, Cause: t.LastError,
			WayOut: fmt.Sprintf("it is tried again for ever; %d events wait in memory and %d in the spool; the log says what to do", t.Buffered, t.Spooled)})
	}
	for _, i := range s.Subscriptions {
		if i.Ended {
			continue
		}
		who := i.title()
		if !i.Ready {
			ps = append(ps, Problem{What: who + " is not proven to get anything", WayOut: "see the log: its consumer may not answer, or the broker be away"})
		}
		for _, h := range i.Hung {
			ps = append(ps, Problem{What: fmt.Sprintf("a handler of %s does not return, with event %s of %s", who, h.Event.ID(), h.Event.Topic()), Since: h.Since,
				WayOut: "its stack is in the Snapshot: it waits for something, or loops; give it a Timeout"})
		}
	}
	return ps
}

// title is how a subscription is called in messages.
func (i *SubscriptionInfo) title() string {
	switch {
	case i.Name != "":
		return fmt.Sprintf("subscription %q to %s", i.Name, i.Pattern)
	case i.Group != "":
		return fmt.Sprintf("the subscription of group %q to %s", i.Group, i.Pattern)
	}
	return fmt.Sprintf("the subscription to %s of %s", i.Pattern, i.Place)
}
