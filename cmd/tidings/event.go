package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/natsbus"
)

type eventCmd struct {
	ID    string `arg:"" help:"Its id, as logs, receipts and dead letters have it."`
	Since string `help:"Look only at what was stored since then: a duration back from now (2h), or a time (2006-01-02T15:04:05Z)."`
	JSON  bool   `name:"json" help:"Print it as JSON on standard output."`
	brokerFlags
}

// Help is shown below the flags.
func (eventCmd) Help() string {
	return `For each durable group an event is "waiting" until it is delivered, "taken" while
it is handled or waits for a retry, and then "settled": handled, or expired. One
that was given up is a "dead letter". One that was delivered while others before
it are not settled is "open": it may be settled, or taken. The headers of what is
stored are read, which takes a second for some 200 000 events; --since makes that
fewer.

Exit status: 0 found, 1 not found or failed.`
}

// Run prints what became of the event.
func (c eventCmd) Run(ctx context.Context) error {
	from, err := since(c.Since)
	if err != nil {
		return err
	}
	ctx, admin, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	found, err := admin.Event(ctx, c.ID, from)
	switch {
	case errors.Is(err, natsbus.ErrNoEvent):
		return hinted{err, "live events are not stored; durable ones are purged once every group has settled them and the stream needs the room"}
	case errors.Is(err, context.DeadlineExceeded):
		return hinted{err, "--since has it read less, --timeout wait longer"}
	case err != nil:
		return err
	case c.JSON:
		return printJSON(found)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for i, e := range found {
		if i > 0 {
			fmt.Fprintln(w)
		}
		printEvent(w, e)
	}
	return w.Flush()
}

func printEvent(w *tabwriter.Writer, e natsbus.EventState) {
	fmt.Fprintf(w, "%s, published %s by %s: stream %s, sequence %d\n", e.Topic, e.Time.UTC().Format(time.RFC3339Nano), e.Source, e.Stream, e.Sequence)
	switch {
	case e.NotBefore != nil:
		fmt.Fprintf(w, "delayed until %s\n", e.NotBefore.UTC().Format(time.RFC3339Nano))
		return
	case e.Only != "":
		fmt.Fprintln(w, "redelivered to one group alone")
	case len(e.Groups) == 0:
		fmt.Fprintln(w, "no group subscribes to it")
		return
	}
	fmt.Fprintln(w, "GROUP\tPATTERN\tSTATE\t")
	for _, f := range e.Groups {
		more := ""
		switch f.State {
		case natsbus.FateDead:
			more = fmt.Sprintf("%s: %s", f.Letter, f.Reason)
		case natsbus.FateWaiting:
			more = fmt.Sprintf("at most %d are to be settled up to it", f.Before)
		case natsbus.FateOpen:
			more = fmt.Sprintf("%d that were delivered are not settled", f.Before)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Group, f.Pattern, f.State, more)
	}
}
