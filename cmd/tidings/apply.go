package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/tidings-go/tidings/natsbus"
)

// statusDifferent is that of a dry run which has found something to do.
const statusDifferent = 3

type applyCmd struct {
	File   string `arg:"" optional:"" help:"What is declared; default: TIDINGS_APP and TIDINGS_ROUTES."`
	DryRun bool   `help:"Show what would be changed, and change nothing."`
	JSON   bool   `name:"json" help:"Print the differences as JSON on standard output."`
	App    string `env:"TIDINGS_APP" help:"The app whose routes these are, without a file."`
	Routes string `env:"TIDINGS_ROUTES" help:"Its routes, without a file; only durable ones count."`
	brokerFlags
}

// Help is shown below the flags.
func (applyCmd) Help() string {
	return `Makes streams as they are declared. A file names apps and what their streams
are to be; what it does not mention stays as it is:

  [shop]
  durable    = order.> invoice.*
  max-bytes  = 4GiB
  max-msgs   = 10000000
  replicas   = 3
  duplicates = 2m        # how long ids are remembered
  fixed      = yes       # its users may not make streams: make those for its
                         # delayed events and for dead letters too

Subjects are only added: remove one with "nats stream edit" once nobody
publishes to it. What cannot be changed is an error, and nothing is then.

Exit status: 0 all is as declared, 1 failed, 3 --dry-run has found differences.`
}

// Run shows the differences, and removes them unless it is a dry run.
func (c applyCmd) Run(ctx context.Context) error {
	declared, err := c.declared()
	if err != nil {
		return err
	}
	ctx, admin, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	plans := []*natsbus.Plan{}
	var failed error
	change := false
	for _, d := range declared {
		// All is compared before anything is changed.
		p, err := admin.Plan(ctx, d)
		if err != nil {
			return err
		}
		failed = errors.Join(failed, p.Fixed())
		plans, change = append(plans, p), change || p.Change()
	}
	if err := c.show(plans); err != nil {
		return err
	}
	switch {
	case failed != nil:
		return failed
	case change && c.DryRun:
		return exitError(statusDifferent)
	case c.DryRun:
		return nil
	}
	for _, d := range declared {
		if _, err := admin.Apply(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (c applyCmd) declared() ([]natsbus.Declaration, error) {
	if c.File != "" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return natsbus.ReadDeclarations(c.File, f)
	}
	d := natsbus.Declaration{App: c.App}
	for pair := range strings.SplitSeq(c.Routes, ",") {
		if pattern, class, _ := strings.Cut(strings.TrimSpace(pair), "="); strings.TrimSpace(class) == "durable" {
			d.Durable = append(d.Durable, strings.TrimSpace(pattern))
		}
	}
	if d.App == "" || d.Durable == nil {
		return nil, hinted{errors.New("nothing is declared"), "name a file (tidings apply --help shows one), or set TIDINGS_APP and, with a durable route in it, TIDINGS_ROUTES"}
	}
	return []natsbus.Declaration{d}, nil
}

func (c applyCmd) show(plans []*natsbus.Plan) error {
	if c.JSON {
		return printJSON(plans)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	n := 0
	row := func(stream, setting, have, want string) {
		if n++; n == 1 {
			fmt.Fprintln(w, "STREAM\tSETTING\tIS\tSHOULD BE")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", stream, setting, have, want)
	}
	for _, p := range plans {
		if p.Create {
			row(p.Stream, "stream", "missing", "there")
		}
		for _, stream := range p.Beside {
			row(stream, "stream", "missing", "there")
		}
		for _, subject := range p.Add {
			row(p.Stream, "subject", "missing", subject)
		}
		for _, d := range p.Differences {
			have := d.Have
			if d.Fixed {
				have += " (cannot be changed)"
			}
			row(p.Stream, d.Setting, have, d.Want)
		}
	}
	if n == 0 {
		fmt.Fprintln(w, "all is as declared")
	}
	for _, p := range plans {
		for _, pattern := range slices.Sorted(maps.Keys(p.Elsewhere)) {
			fmt.Fprintf(w, "note: %s of app %s is kept in stream %s, whose settings are that app's\n", pattern, p.App, p.Elsewhere[pattern])
		}
	}
	return w.Flush()
}
