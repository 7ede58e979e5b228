package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// idsShown bounds the ids of events in a text; JSON has all of them.
const idsShown = 20

// progressOf is a line that changes once a second at most.
func progressOf(s supervisor.Status, now time.Time) string {
	r := s.Deploy
	line := fmt.Sprintf("deploy %d: %s", r.Deploy, r.State)
	switch r.State {
	case supervisor.DeployStarting:
		ready := 0
		for _, w := range s.Workers {
			if w.Generation == r.Generation && w.State == "ready" {
				ready++
			}
		}
		return fmt.Sprintf("%s, %d of %d new workers ready", line, ready, s.Want)
	case supervisor.DeployProbation:
		var handled, failed uint64
		for _, g := range r.Generations {
			for _, sub := range g.Subscriptions {
				if g.New {
					handled, failed = handled+sub.Handled, failed+sub.Failed
				}
			}
		}
		return fmt.Sprintf("%s, %s left; new workers handled %d events, %d attempts failed", line, ago(now, *r.Until), handled, failed)
	}
	if r.Reason != "" {
		line += ": " + firstLine(r.Reason)
	}
	return line
}

// headline says it all in one line.
func headline(r *supervisor.Receipt) string {
	line := fmt.Sprintf("deploy %d: %s", r.Deploy, r.State)
	switch {
	case r.Reason != "":
		line += ": " + r.Reason
	case r.Good():
		line += ", nothing lost"
	case r.Over():
		line += fmt.Sprintf(", %d events lost, %d workers unaccounted for", r.Lost, len(r.Unaccounted))
	}
	return line
}

func printReceipt(w io.Writer, r *supervisor.Receipt) error {
	fmt.Fprintln(w, headline(r))
	fmt.Fprintln(w, timesOf(r))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nGENERATION\tSLOT\tPID\tPROGRAM\tENDED")
	for _, g := range r.Generations {
		for _, k := range g.Workers {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", nameOf(g), k.Slot, k.PID, programOf(g), cmp.Or(firstLine(k.Ended), "serves"))
		}
	}
	fmt.Fprintln(t, "\nGENERATION\tSUBSCRIPTION\tRECEIVED\tHANDLED\tACKNOWLEDGED\tREDELIVERED\tFAILED\tDROPPED\tLEFT\tLAG")
	for _, g := range r.Generations {
		for _, s := range g.Subscriptions {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%s\n", nameOf(g), subscriptionOf(s), s.Received, s.Handled,
				ifDurable(s, s.Acked), s.Redelivered, s.Failed, s.Dropped, s.Left, lagOf(s))
		}
	}
	if len(r.Gaps) > 0 {
		fmt.Fprintln(t, "\nSUBSCRIPTION\tLONGEST GAP")
		for _, g := range r.Gaps {
			fmt.Fprintf(t, "%s\t%v\n", subscriptionOf(sdnotify.SubscriptionReport{Pattern: g.Pattern, Group: g.Group, Durable: g.Durable}), g.Gap)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range remarks(r) {
		fmt.Fprintln(w, line)
	}
	return nil
}

func nameOf(g supervisor.GenerationReceipt) string {
	if g.New {
		return fmt.Sprintf("%d (new)", g.Generation)
	}
	return fmt.Sprintf("%d (old)", g.Generation)
}

// programOf is the version that the program tells, or its file, and its checksum.
func programOf(g supervisor.GenerationReceipt) string {
	name := cmp.Or(g.Version, g.Program, "-")
	if g.SHA256 != "" {
		name += " (sha256 " + g.SHA256[:12] + ")"
	}
	return name
}

func subscriptionOf(s sdnotify.SubscriptionReport) string {
	switch {
	case s.Durable:
		return s.Pattern + " (durable, " + s.Group + ")"
	case s.Group != "":
		return s.Pattern + " (" + s.Group + ")"
	}
	return s.Pattern
}

func ifDurable(s sdnotify.SubscriptionReport, n uint64) string {
	if !s.Durable {
		return "-"
	}
	return fmt.Sprint(n)
}

func lagOf(s sdnotify.SubscriptionReport) string {
	if !s.LagKnown {
		return "-"
	}
	return fmt.Sprint(s.Lag)
}

func timesOf(r *supervisor.Receipt) string {
	at := r.Began
	line := "began " + r.Began.Format(time.RFC3339)
	for _, step := range []struct {
		name string
		at   *time.Time
	}{{"ready", r.Ready}, {"decided", r.Decided}, {"over", r.Ended}} {
		if step.at != nil {
			line += fmt.Sprintf(", %s %v later", step.name, step.at.Sub(at).Round(time.Millisecond))
			at = *step.at
		}
	}
	return line + "; command: " + strings.Join(r.Command, " ")
}

// remarks are what to look at.
func remarks(r *supervisor.Receipt) []string {
	var lines []string
	for _, u := range r.Unaccounted {
		lines = append(lines, "unaccounted for: "+u)
	}
	for _, g := range r.Generations {
		for _, k := range g.Workers {
			for _, l := range k.Left {
				for _, of := range []struct {
					what string
					ids  []string
				}{{"handed back", l.IDs}, {"handled, but not confirmed", l.Unconfirmed}} {
					if n := len(of.ids); n > 0 {
						shown := strings.Join(of.ids[:min(n, idsShown)], " ")
						if n > idsShown {
							shown += fmt.Sprintf(" and %d more, see --json", n-idsShown)
						}
						lines = append(lines, fmt.Sprintf("%s by worker %d, of %s: %d events: %s", of.what, k.PID, cmp.Or(l.Pattern, "all subscriptions"), n, shown))
					}
				}
			}
		}
	}
	return lines
}
