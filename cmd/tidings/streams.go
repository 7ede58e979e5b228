package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/natsbus"
)

type streamsCmd struct {
	List   streamsListCmd   `cmd:"" default:"withargs" help:"Show streams, their durable groups, and what waits for them (the default)."`
	Forget streamsForgetCmd `cmd:"" help:"Remove a durable group that nobody needs any more."`
}

type streamsListCmd struct {
	JSON bool `name:"json" help:"Print it as JSON on standard output."`
	brokerFlags
}

// Help is shown below the flags.
func (streamsListCmd) Help() string {
	return `A group is "pulling" while a process of it asks for events, "busy" when its
processes hold all they take at once, and else "away". It is an "orphan" when
it is away while other groups of the same app are not: its pattern was changed,
or the process that subscribed to it was given up. What waits for it keeps the
stream from being purged; "tidings streams forget" removes it.`
}

// Run prints the table.
func (c streamsListCmd) Run(ctx context.Context) error {
	ctx, admin, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	states, err := admin.Streams(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(states)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(states) == 0 {
		fmt.Fprintln(w, "no streams")
	}
	for i, s := range states {
		if i > 0 {
			fmt.Fprintln(w)
		}
		app := s.App
		if app == "" {
			app = "- (not made by Tidings: never purged)"
		}
		fmt.Fprintf(w, "stream %s, app %s: %d events, %.0f%% full, %s\n", s.Name, app, s.Messages, 100*s.Used, strings.Join(topics(s.Subjects), " "))
		if len(s.Groups) == 0 {
			fmt.Fprintln(w, "no groups: nothing is purged")
			continue
		}
		fmt.Fprintln(w, "GROUP\tPATTERN\tSTATE\tWAITING\tUNSETTLED\tOLDEST\tLAST ACTIVE")
		for _, g := range s.Groups {
			fmt.Fprintln(w, groupRow(g))
		}
	}
	return w.Flush()
}

// topics are the subjects of events: those that begin with $ are Tidings' or
// NATS's own.
func topics(subjects []string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return strings.HasPrefix(s, "$") })
}

func groupRow(g natsbus.GroupState) string {
	state := g.State
	if g.Orphan {
		state = "orphan"
	}
	oldest := "-"
	if g.Oldest != nil {
		oldest = g.Oldest.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%s\t%s", g.Group, g.Pattern, state, g.Pending, g.Unsettled, oldest, g.LastActive.UTC().Format(time.RFC3339))
}

type streamsForgetCmd struct {
	Group   string `arg:"" help:"The group."`
	Pattern string `arg:"" help:"Its pattern, as tidings streams shows it."`
	DryRun  bool   `help:"Show what would be removed, and remove nothing."`
	Force   bool   `help:"Also when a process takes from it."`
	brokerFlags
}

// Help is shown below the flags.
func (streamsForgetCmd) Help() string {
	return `The events that wait for the group stay in the stream for others, and are
purged like what it had handled. If the group comes back it gets all that is
stored then.`
}

// Run removes the group.
func (c streamsForgetCmd) Run(ctx context.Context) error {
	ctx, admin, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	found, err := admin.Find(ctx, c.Group, c.Pattern)
	if err != nil {
		return hinted{err, "tidings streams shows them"}
	}
	for _, g := range found {
		if c.DryRun {
			fmt.Printf("would forget group %s (%s) of stream %s: %s, %d events wait for it\n", g.Group, g.Pattern, g.Stream, g.State, g.Waits())
			continue
		}
		switch err := admin.Forget(ctx, g, c.Force); {
		case errors.Is(err, natsbus.ErrInUse):
			return hinted{err, "stop the processes that subscribe to it, or use --force: they make it anew and get again what is stored"}
		case err != nil:
			return err
		}
		fmt.Printf("forgot group %s (%s) of stream %s: %d events waited for it\n", g.Group, g.Pattern, g.Stream, g.Waits())
	}
	return nil
}
