// Command tidings runs, deploys and drills applications that use Tidings.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

type cli struct {
	Drill   drillCmd   `cmd:"" help:"Prove it: run real processes through deploys and faults, and count every event."`
	Run     runCmd     `cmd:"" help:"Run workers under a master that replaces them without a gap."`
	Deploy  deployCmd  `cmd:"" help:"Replace the workers of a master by new ones, which have to prove themselves."`
	Status  statusCmd  `cmd:"" help:"Show masters, workers and their subscriptions."`
	Ctl     ctlCmd     `cmd:"" help:"Ask a master for what signals do, and have an answer."`
	Hub     hubCmd     `cmd:"" help:"Run the broker."`
	DLQ     dlqCmd     `cmd:"" name:"dlq" help:"Look at events that were given up, redrive or drop them."`
	Event   eventCmd   `cmd:"" help:"Show what became of an event in each durable group."`
	Replay  replayCmd  `cmd:"" help:"Give a durable group events once more that it has handled."`
	Streams streamsCmd `cmd:"" help:"Show streams and durable groups; remove groups that nobody needs."`
	Spool   spoolCmd   `cmd:"" help:"Show what waits on this machine for the broker; send what dead processes have left."`
	Apply   applyCmd   `cmd:"" help:"Make streams as they are declared."`
	Backup  backupCmd  `cmd:"" help:"Copy the streams of a hub, while it works."`
	Restore restoreCmd `cmd:"" help:"Put the streams of a backup into a hub."`
	Doctor  doctorCmd  `cmd:"" help:"Look at the broker and this machine for what does not suit; compare two environments."`
	Version versionCmd `cmd:"" help:"Print the version."`
	Exec    execCmd    `cmd:"" name:"__exec" hidden:"" help:"For the master's own use."`
	Signals signalsCmd `cmd:"" name:"__signals" hidden:"" help:"For the doctor's own use."`
	Example exampleCmd `cmd:"" name:"__example" hidden:"" help:"Run an example application."`
}

const description = `Events between Go services, and deploys that lose nothing.

Exit status: 0 done, 1 failed (drill: a promise was broken), 2 the run proves
nothing, 3 a dry run found differences, 4 a deploy was rolled back, 5 one lost
events, 64 wrong usage (doctor: 2, also when it could not look).`

// hinted is an error with a way out.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// exitError ends the command with a status and says nothing more.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, err := newParser(new(cli)).Parse(args)
	if err != nil {
		report(usage(err))
		return usageStatus(err)
	}
	err = ctx.Run()
	var status exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	report(err)
	return 1
}

func newParser(c *cli) *kong.Kong {
	return kong.Must(c, kong.Name("tidings"), kong.Description(description), kong.UsageOnError(),
		kong.BindTo(context.Background(), (*context.Context)(nil)))
}

// usage adds where to look to a mistake on the command line.
func usage(err error) error {
	var h hinted
	if errors.As(err, &h) {
		return err
	}
	help := "tidings --help"
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil {
		if cmd := p.Context.Selected(); cmd != nil && !cmd.Hidden {
			help = cmd.FullPath() + " --help"
		}
	}
	return hinted{err, help + " shows what there is"}
}

// usageStatus is 64, but for the doctor's: there 1 and 2 say whether something is ill.
func usageStatus(err error) int {
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil {
		if cmd := p.Context.Selected(); cmd != nil && cmd.Name == "doctor" {
			return statusBlind
		}
	}
	return 64
}

func report(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	var h hinted
	if errors.As(err, &h) {
		fmt.Fprintln(os.Stderr, "hint:", h.hint)
	}
}

type versionCmd struct{}

func (versionCmd) Run() error {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version + " " + info.GoVersion
	}
	fmt.Println("tidings", version)
	return nil
}
