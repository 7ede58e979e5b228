package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"github.com/tidings-go/tidings/supervisor"
)

// Exit statuses of a deploy besides 0 and 1.
const (
	exitRolledBack = 4
	exitLost       = 5
)

// lookEvery is how often a deploy is looked at.
const lookEvery = 200 * time.Millisecond

type deployCmd struct {
	Command   string        `help:"The workers' command from now on, its words separated by blanks; or give it after --. Default: the present one, as it is found now."`
	Probation time.Duration `default:"10s" help:"How long new and old workers serve side by side before the old ones go."`
	MaxErrors uint64        `default:"0" help:"How many errors of handlers to put up with in a subscription, beyond what the old workers' rate explains."`
	MaxLag    uint64        `default:"1000" help:"How many events more than at first may wait at the broker for a group."`
	JUnit     string        `name:"junit" help:"File to write the receipt to as JUnit XML."`
	JSON      bool          `name:"json" help:"Print the receipt as JSON on standard output."`
	Abort     bool          `help:"Take the deploy that is under way back."`
	Argv      []string      `arg:"" optional:"" passthrough:"" name:"command" help:"The workers' command from now on, after --."`
	controlFlags
}

// Help is shown below the flags.
func (deployCmd) Help() string {
	return `Starts new workers beside the old ones of a tidings run. Once they are ready
both serve, for the probation; then the old ones drain. If a new worker ends, is
not ready in time or hangs, if its handlers fail more often than those of the
old workers, or if events wait, the new ones drain instead, and the old ones
never stopped. One deploy at a time. INT takes it back, if it is not decided. A relative path is meant as in tidings run.

Counts are of programs that use package worker, over the life of each worker.

Exit status: 0 the new workers serve and nothing was lost, 1 nothing was begun,
or the master is gone, 4 rolled back, 5 the new workers serve, but events were
lost, or a worker did not tell what became of them.`
}

// Validate refuses what cannot be meant.
func (c deployCmd) Validate() error {
	switch {
	case c.Command != "" && len(c.Argv) > 0:
		return hinted{errors.New("--command and words after --"), "give one of them"}
	case strings.ContainsAny(c.Command, "'\"\\"):
		return hinted{errors.New("--command: quotes are not understood"), "give the words after --"}
	case c.Probation < 0:
		return hinted{fmt.Errorf("--probation=%v", c.Probation), "give a duration that is not negative"}
	}
	return nil
}

// Run deploys and prints the receipt.
func (c deployCmd) Run(ctx context.Context) error {
	control, err := c.socket()
	if err != nil {
		return err
	}
	if c.Abort {
		d, err := control.Abort(ctx)
		if err == nil {
			fmt.Printf("master %d: deploy %d is taken back\n", d.Master, d.Deploy)
		}
		return err
	}
	// Before anything is begun: what cannot be written must not be found out after.
	report, err := c.pendingReport()
	if err != nil {
		return err
	}
	defer report.Cleanup()
	d, err := control.Deploy(ctx, supervisor.DeployRequest{Command: c.argv(), Probation: c.Probation, MaxErrors: c.MaxErrors, MaxLag: c.MaxLag})
	if err != nil {
		return err
	}
	r, err := follow(ctx, control, d, os.Stderr)
	if err != nil {
		return err
	}
	if err := errors.Join(c.print(os.Stdout, r), report.write(r)); err != nil {
		return err
	}
	switch {
	case r.Good():
		return nil
	case r.State == supervisor.DeployCommitted:
		return exitError(exitLost)
	}
	return exitError(exitRolledBack)
}

func (c deployCmd) argv() []string {
	if len(c.Argv) > 0 && c.Argv[0] == "--" {
		return c.Argv[1:]
	}
	if len(c.Argv) > 0 {
		return c.Argv
	}
	return strings.Fields(c.Command)
}

func (c deployCmd) print(w io.Writer, r *supervisor.Receipt) error {
	if c.JSON {
		return printJSON(r)
	}
	return printReceipt(w, r)
}

// follow looks at a deploy until it is over, and says how it goes. INT and TERM take
// it back; a second one ends the looking.
func follow(ctx context.Context, control supervisor.Control, d supervisor.Done, progress io.Writer) (*supervisor.Receipt, error) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(told)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last, aborted := "", false
	unknown := func(err error) error {
		return hinted{fmt.Errorf("deploy %d: what became of it is not known: %w", d.Deploy, err), "tidings status; a master that ended starts again with the last good release if it has --state"}
	}
	for {
		s, err := control.Status(ctx)
		if err == nil && (s.Master != d.Master || s.Deploy == nil || s.Deploy.Deploy != d.Deploy) {
			err = fmt.Errorf("master %d has no deploy %d of master %d", s.Master, d.Deploy, d.Master)
		}
		if err != nil {
			return nil, unknown(err)
		}
		if line := progressOf(s, time.Now()); line != last {
			fmt.Fprintln(progress, line)
			last = line
		}
		if s.Deploy.Over() {
			return s.Deploy, nil
		}
		select {
		case <-tick.C:
		case sig := <-told:
			if aborted {
				return nil, unknown(errors.New("interrupted twice"))
			}
			aborted = true
			if _, err := control.Abort(ctx); err != nil {
				fmt.Fprintf(progress, "%v: %v\n", sig, err)
			} else {
				fmt.Fprintf(progress, "%v: the deploy is taken back\n", sig)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A pendingReport is a JUnit file that appears whole or not at all. The zero one is
// none.
type pendingReport struct{ file *renameio.PendingFile }

func (c deployCmd) pendingReport() (pendingReport, error) {
	if c.JUnit == "" {
		return pendingReport{}, nil
	}
	f, err := renameio.NewPendingFile(c.JUnit, renameio.WithPermissions(0o600))
	if err != nil {
		return pendingReport{}, fmt.Errorf("--junit=%s: %w", c.JUnit, err)
	}
	return pendingReport{f}, nil
}

// Cleanup removes what has not become the file.
func (p pendingReport) Cleanup() {
	if p.file != nil {
		_ = p.file.Cleanup()
	}
}

func (p pendingReport) write(r *supervisor.Receipt) error {
	if p.file == nil {
		return nil
	}
	err := writeJUnit(p.file, r)
	if err == nil {
		err = p.file.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	return nil
}
