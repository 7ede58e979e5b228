package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// controlFlags say which master is meant.
type controlFlags struct {
	Control string `env:"TIDINGS_CONTROL" help:"The master's control socket, as given to tidings run."`
	PIDFile string `name:"pid-file" env:"TIDINGS_PID_FILE" help:"The master's pid file, if it has no --control of its own."`
}

func (c controlFlags) socket() (supervisor.Control, error) {
	switch {
	case c.Control != "":
		return supervisor.Control{Path: c.Control}, nil
	case c.PIDFile != "":
		return supervisor.Control{Path: supervisor.ControlPath(c.PIDFile)}, nil
	}
	return supervisor.Control{}, hinted{errors.New("which master?"), "give the --pid-file or --control of its tidings run"}
}

type statusCmd struct {
	JSON  bool          `name:"json" help:"Print it as JSON on standard output, with --watch one line each time."`
	Watch bool          `help:"Again and again, until the master is gone."`
	Ready bool          `help:"Exit with 0 only if every worker is ready, and none is missing."`
	Every time.Duration `default:"1s" help:"How often with --watch."`
	controlFlags
}

// Help is shown below the flags.
func (statusCmd) Help() string {
	return `While an upgrade is under way there are two masters, and both are shown. What a
worker is still waiting for, and its subscriptions, are known of programs that
use package worker. LAG are events that wait at the broker for the group, as the
worker heard last, "-" if it has not or the subscription is not durable. In flight
in the worker are WAIT, events taken that no handler has yet, and RUN, handlers that
run. FAILED counts attempts, GAVE UP events that are not tried again.

Exit status: 0 a master answered, 1 none did or, with --ready, a worker is not.`
}

// Run prints what the masters say.
func (c statusCmd) Run(ctx context.Context) error {
	control, err := c.socket()
	if err != nil {
		return err
	}
	if c.Watch && c.Every <= 0 {
		return hinted{fmt.Errorf("--every is %v", c.Every), "give a positive duration"}
	}
	masters, err := statuses(ctx, control)
	if err == nil && c.Ready {
		if err := c.print(os.Stdout, masters); err != nil {
			return err
		}
		return allReady(masters[0])
	}
	for err == nil {
		if err = c.print(os.Stdout, masters); err != nil || !c.Watch {
			return err
		}
		select {
		case <-time.After(c.Every):
		case <-ctx.Done():
			return ctx.Err()
		}
		if masters, err = statuses(ctx, control); err != nil {
			return nil // it has ended, and was seen before
		}
	}
	return hinted{err, "is tidings run started, with this --pid-file or --control?"}
}

func allReady(s supervisor.Status) error {
	ready := 0
	for _, w := range s.Workers {
		if w.State == "ready" {
			ready++
		}
	}
	if ready < s.Want || s.Want == 0 {
		return fmt.Errorf("master %d: %d of %d workers are ready", s.Master, ready, s.Want)
	}
	return nil
}

// statuses asks the master and, during an upgrade, the old one, whose is the error
// only if neither answers.
func statuses(ctx context.Context, control supervisor.Control) ([]supervisor.Status, error) {
	var found []supervisor.Status
	s, err := control.Status(ctx)
	if err == nil {
		found = append(found, s)
	}
	if s, failed := (supervisor.Control{Path: control.Path + supervisor.OldSuffix}).Status(ctx); failed == nil {
		found = append(found, s)
	}
	if len(found) > 0 {
		return found, nil
	}
	return nil, err
}

type statusJSON struct {
	Masters []supervisor.Status `json:"masters"`
}

func (c statusCmd) print(w io.Writer, masters []supervisor.Status) error {
	if c.JSON && c.Watch {
		return json.NewEncoder(w).Encode(statusJSON{masters})
	}
	if c.JSON {
		return printJSON(statusJSON{masters})
	}
	if c.Watch {
		fmt.Fprintln(w, time.Now().Format(time.RFC3339))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range masters {
		printMaster(t, s, time.Now())
	}
	return t.Flush()
}

func printMaster(w io.Writer, s supervisor.Status, now time.Time) {
	fmt.Fprintf(w, "master %d, %s, generation %d, since %s, tidings %s: %s\n", s.Master, s.State, s.Generation, ago(s.Since, now), s.Version, strings.Join(s.Command, " "))
	if s.NewMaster != 0 {
		fmt.Fprintf(w, "upgrade to master %d: QUIT %d to go on with it, QUIT %d to go back\n", s.NewMaster, s.Master, s.NewMaster)
	}
	if s.Hub != nil {
		printHub(w, s.Hub, now)
	}
	if s.Deploy != nil {
		fmt.Fprintln(w, headline(s.Deploy))
	}
	if s.Reloads > 0 {
		fmt.Fprintf(w, "%d more reloads wait for their turn\n", s.Reloads)
	}
	fmt.Fprintln(w, "SLOT\tPID\tGENERATION\tSTATE\tSINCE\tRESTARTS\tMEMORY\tVERSION\tSAYS")
	for _, k := range s.Workers {
		says := k.Status
		if k.State == "waiting" {
			says = "died, started again in " + ago(now, *k.Deadline) + ": " + k.LastDeath
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", k.Slot, number(k.PID), number(k.Generation), k.State, ago(k.Since, now), k.Restarts,
			memory(k.Memory), cmp.Or(k.Version, k.Program, "-"), cmp.Or(firstLine(says), "-"))
	}
	head := false
	for _, k := range s.Workers {
		for _, sub := range k.Subscriptions {
			if !head {
				fmt.Fprintln(w, "\nPID\tPATTERN\tGROUP\tSTATE\tLAG\tWAIT\tRUN\tHANDLED\tFAILED\tGAVE UP\tDROPPED")
				head = true
			}
			state := "ready"
			switch {
			case !sub.Ready:
				state = "not ready"
			case sub.Hung > 0:
				state = fmt.Sprintf("%d hung", sub.Hung)
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\n", k.PID, sub.Pattern, cmp.Or(sub.Group, "-"), state, lag(sub),
				sub.Queued, sub.Running, sub.Handled, sub.Failed, sub.GaveUp, sub.Dropped)
		}
	}
	fmt.Fprintln(w)
}

func printHub(w io.Writer, h *supervisor.HubStatus, now time.Time) {
	fmt.Fprintf(w, "hub %s, %s for %s, %s, %d restarts", number(h.PID), h.State, ago(h.Since, now), cmp.Or(h.URL, h.Dir), h.Restarts)
	if !h.Ours && h.State == "running" {
		fmt.Fprint(w, ", which others run")
	}
	if h.LastDeath != "" {
		fmt.Fprintf(w, ", the last: %s", firstLine(h.LastDeath))
	}
	fmt.Fprintln(w)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func lag(s sdnotify.SubscriptionReport) string {
	if !s.LagKnown {
		return "-"
	}
	return fmt.Sprint(s.Lag)
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func memory(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
}

func ago(t, now time.Time) string { return max(now.Sub(t), 0).Round(time.Second).String() }

type ctlCmd struct {
	Request string `arg:"" help:"What to ask for."`
	controlFlags
}

// Help is shown below the flags.
func (ctlCmd) Help() string {
	var b strings.Builder
	b.WriteString("Each has the effect of a signal, but is answered, with the reason if it is\nrefused, and counts: of signals in a burst only the kinds are known.\n")
	for _, r := range supervisor.Requests() {
		fmt.Fprintf(&b, "\n  %-11s %s", r.Name, r.Signal)
	}
	return b.String()
}

// Run asks and prints the answer.
func (c ctlCmd) Run(ctx context.Context) error {
	control, err := c.socket()
	if err != nil {
		return err
	}
	if c.Request == "deploy" || c.Request == "abort" {
		return hinted{fmt.Errorf("%s has more to say than a signal", c.Request), "tidings deploy, or tidings deploy --abort"}
	}
	d, err := control.Request(ctx, c.Request)
	if err != nil {
		return err
	}
	fmt.Printf("master %d: %s begun, %d workers wanted", d.Master, c.Request, d.Workers)
	if d.Generation != 0 {
		fmt.Printf(", generation %d", d.Generation)
	}
	if d.PID != 0 {
		fmt.Printf(", new master %d", d.PID)
	}
	fmt.Println()
	return nil
}
