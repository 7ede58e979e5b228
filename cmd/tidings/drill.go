package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill"
	"github.com/tidings-go/tidings/examples/billing"
)

type drillCmd struct {
	Rate     int           `default:"1000" help:"Events per second, over all publishers; at most 400 but in the first scenario, 300 with --signals."`
	For      time.Duration `help:"How long to publish; default 60s, with --short 30s. The cells of --signals take what they take."`
	Deploys  int           `default:"3" help:"How many rolling deploys, in the first scenario."`
	Scenario string        `default:"deploys" help:"What to put it through: one of those above."`
	Signals  bool          `help:"Send every signal, in every state, to masters and workers: the scenario signals."`
	Cells    string        `help:"With --signals: only cells whose names match this regular expression, such as '^running: HUP'."`
	Seed     uint64        `help:"The random instants of an earlier run again, whose verdict names it: of --scenario=outage."`
	Short    bool          `help:"A run of under a minute; of --signals, some cells."`
	JSON     bool          `name:"json" help:"Print the verdict as JSON on standard output."`
	Dir      string        `help:"Folder for journals and logs; default: a new one among the temporary files."`
	Mutant   string        `hidden:"" help:"Run with this defect, in a binary built with -tags mutants."`
}

// Help is shown below the flags.
func (drillCmd) Help() string {
	return `Starts a hub, a master with two workers, and two publishers, as processes of
their own; deploys, kills and restarts them; then compares what was sent with
what was handled. Exit status: 0 every promise was kept, 1 one was broken, 2
the run proves nothing. Scenarios:
` + scenarios()
}

// scenarios is a line for each.
func scenarios() string {
	var b strings.Builder
	for _, s := range drill.Scenarios() {
		fmt.Fprintf(&b, "\n  %-8s %s", s.Name, s.About)
	}
	return b.String()
}

// Validate refuses what cannot be meant.
func (c drillCmd) Validate() error {
	switch {
	case c.Rate < 4:
		return hinted{fmt.Errorf("--rate=%d: there are two publishers with two topics each", c.Rate), "the least is 4; a run proves something from about 40"}
	case c.Deploys < 0:
		return hinted{fmt.Errorf("--deploys=%d: not a number of deploys", c.Deploys), "0 is none"}
	case !slices.ContainsFunc(drill.Scenarios(), func(s drill.Scenario) bool { return s.Name == c.Scenario }):
		return hinted{fmt.Errorf("--scenario=%s: there is no such scenario", c.Scenario), "tidings drill --help lists them"}
	case c.Signals && c.Scenario != "deploys" && c.Scenario != "signals":
		return hinted{fmt.Errorf("--signals --scenario=%s: they are two scenarios", c.Scenario), "run one after the other"}
	case c.Cells != "" && c.scenario() != "signals":
		return hinted{fmt.Errorf("--cells=%s: only the matrix of signals has cells", c.Cells), "give --signals, too"}
	case badPattern(c.Cells) != nil:
		return hinted{fmt.Errorf("--cells=%s: %w", c.Cells, badPattern(c.Cells)), "it is a regular expression for names such as 'running: HUP'"}
	case c.For < 0:
		return hinted{fmt.Errorf("--for=%v: not a length of time", c.For), "20s is about the least that proves something"}
	}
	return nil
}

func badPattern(pattern string) error {
	_, err := regexp.Compile(pattern)
	return err
}

func (c drillCmd) scenario() string {
	if c.Signals {
		return "signals"
	}
	return c.Scenario
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
		Dir: c.Dir, Rate: c.Rate, For: length, Deploys: c.Deploys, Mutant: c.Mutant, Scenario: c.scenario(), Short: c.Short, Seed: c.Seed, Cells: c.Cells, Progress: os.Stderr,
		Hub:       []string{self, "hub"},
		Master:    []string{self, "run"},
		Deploy:    []string{self, "deploy"},
		Refusable: billing.Books,
		Worker:    []string{self, "__example", "billing", "--boot=1s"},
		Shop:      []string{self, "__example", "shop"},
		Expect: []drill.Expectation{
			{Topic: "cart.viewed", Pattern: "cart.viewed", Group: "billing"},
			{Topic: "order.placed", Pattern: "order.placed", Group: "billing", Durable: true, Keyed: true, GivesUp: true},
			{Topic: "order.placed", Pattern: "order.placed", Group: billing.Books, Durable: true},
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
