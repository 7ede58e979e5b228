package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tidings-go/tidings/drill"
)

type drillCmd struct {
	Rate    int           `default:"1000" help:"Events per second, over all publishers."`
	For     time.Duration `help:"How long to publish; default 60s, with --short 30s."`
	Deploys int           `default:"3" help:"How many rolling deploys."`
	Short   bool          `help:"A run of under a minute."`
	JSON    bool          `name:"json" help:"Print the verdict as JSON on standard output."`
	Dir     string        `help:"Folder for journals and logs; default: a new one among the temporary files."`
	Mutant  string        `hidden:"" help:"Run with this defect, in a binary built with -tags mutants."`
}

// Help is shown below the flags.
func (drillCmd) Help() string {
	return `Starts a hub, a master with two workers, and two publishers, as processes of
their own; deploys, kills and restarts them; then compares what was sent with
what was handled. Exit status: 0 every promise was kept, 1 one was broken, 2
the run proves nothing.`
}

// Validate refuses what cannot be meant.
func (c drillCmd) Validate() error {
	switch {
	case c.Rate < 4:
		return hinted{fmt.Errorf("--rate=%d: there are two publishers with two topics each", c.Rate), "the least is 4; a run proves something from about 40"}
	case c.Deploys < 0:
		return hinted{fmt.Errorf("--deploys=%d: not a number of deploys", c.Deploys), "0 is none"}
	case c.For < 0:
		return hinted{fmt.Errorf("--for=%v: not a length of time", c.For), "20s is about the least that proves something"}
	}
	return nil
}

// Run runs the drill and prints its verdict.
func (c drillCmd) Run(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	length := c.For
	if length == 0 {
		length = 60 * time.Second
		if c.Short {
			length = 30 * time.Second
		}
	}
	v, err := drill.Run(ctx, drill.Config{
		Dir: c.Dir, Rate: c.Rate, For: length, Deploys: c.Deploys, Mutant: c.Mutant, Progress: os.Stderr,
		Hub:    []string{self, "hub"},
		Master: []string{self, "run"},
		Worker: []string{self, "__example", "billing", "--boot=1s"},
		Shop:   []string{self, "__example", "shop"},
		Expect: []drill.Expectation{
			{Topic: "cart.viewed", Pattern: "cart.viewed", Group: "billing"},
			{Topic: "order.placed", Pattern: "order.placed", Group: "billing", Durable: true},
		},
	})
	if err != nil {
		return err
	}
	if c.JSON {
		err = v.WriteJSON(os.Stdout)
	} else {
		err = v.WriteText(os.Stdout)
	}
	if err != nil {
		return err
	}
	if code := v.Result.ExitCode(); code != 0 {
		return exitError(code)
	}
	return nil
}
