package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/internal/doctor"
)

// statusBlind is that of a doctor that could not look, or was told nonsense.
const statusBlind = 2

type doctorCmd struct {
	JSON     bool          `name:"json" help:"Print the report as JSON on standard output."`
	Save     string        `help:"Also write the report as JSON to that file, for --compare."`
	Compare  bool          `help:"Show only what differs between A and B: each a URL, or a file that --save or --json wrote where it is."`
	Between  []string      `arg:"" optional:"" name:"a-b" help:"A and B, with --compare."`
	URL      string        `name:"url" env:"TIDINGS_URL" help:"The broker, as applications are given it."`
	Prefix   string        `env:"TIDINGS_PREFIX" help:"What keeps environments apart on one broker."`
	App      string        `env:"TIDINGS_APP" help:"The app whose stream is compared with what URL and routes declare."`
	Routes   string        `env:"TIDINGS_ROUTES" help:"Its routes: these topics are tried."`
	Monitor  string        `help:"nats-server's HTTP monitoring, http://HOST:PORT; by default port 8222 of each server is tried."`
	SpoolDir string        `env:"TIDINGS_SPOOL_DIR" help:"The directory of its spool."`
	SpoolMax string        `env:"TIDINGS_SPOOL_MAX" help:"How much a process may keep there, like 512MiB."`
	Timeout  time.Duration `default:"60s" help:"How long all may take."`
}

// Help is shown below the flags.
func (doctorCmd) Help() string {
	return `Run it where the application runs, as its user and with its environment. It looks
at the broker as a client sees it, and at this machine, changes nothing, and shows
no secret.

To find what staging has that production has not:

  staging$    tidings doctor --save staging.json
  production$ tidings doctor --save production.json
  tidings doctor --compare staging.json production.json

Settings, limits, permissions and verdicts are compared, not what changes by
itself. A URL that is compared is looked at from here.

Exit status: 0 no check failed, or nothing differs; 1 one failed, or something
differs; 2 wrong usage, or it could not look.`
}

// Run looks, or compares.
func (c doctorCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var err error
	if c.Compare {
		err = c.compare(ctx)
	} else {
		err = c.look(ctx)
	}
	var status exitError
	if err == nil || errors.As(err, &status) {
		return err
	}
	report(err)
	return exitError(statusBlind)
}

func (c doctorCmd) look(ctx context.Context) error {
	if len(c.Between) > 0 {
		return hinted{fmt.Errorf("unexpected argument %s", c.between()), "two are compared with --compare; one is looked at with --url"}
	}
	if c.URL == "" {
		return errNoBroker
	}
	r, err := c.examine(ctx, c.URL)
	if err != nil {
		return err
	}
	if c.Save != "" {
		if err := r.Write(c.Save); err != nil {
			return err
		}
	}
	if c.JSON {
		err = printJSON(r)
	} else {
		err = r.Print(os.Stdout)
	}
	if err == nil && r.Failed() {
		err = exitError(1)
	}
	return err
}

// between is how many there are: they may be URLs with secrets.
func (c doctorCmd) between() string { return fmt.Sprintf("(%d of them)", len(c.Between)) }

func (c doctorCmd) examine(ctx context.Context, url string) (*doctor.Report, error) {
	most, err := spoolMax(c.SpoolMax)
	if err != nil {
		return nil, err
	}
	self := "/proc/self/exe"
	if _, err := os.Stat(self); err != nil {
		if self, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	return doctor.Examine(ctx, doctor.Options{URL: url, Prefix: c.Prefix, App: c.App, Routes: c.Routes, Monitor: c.Monitor,
		SpoolDir: c.SpoolDir, SpoolMax: most, Self: []string{self, "tidings", "__signals"}, Environ: os.Environ()})
}

// spoolMax reads what TIDINGS_SPOOL_MAX may be; 0 is the default.
func spoolMax(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	number, factor := s, int64(1)
	for unit, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			number, factor = strings.TrimSpace(rest), n
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--spool-max is %q: want a size like 512MiB, or bytes", s)
	}
	return n * factor, nil
}

func (c doctorCmd) compare(ctx context.Context) error {
	if len(c.Between) != 2 {
		return hinted{errors.New("two are compared"), "tidings doctor --compare A B, each a URL or a file that --save wrote"}
	}
	a, err := c.one(ctx, c.Between[0])
	if err != nil {
		return err
	}
	b, err := c.one(ctx, c.Between[1])
	if err != nil {
		return err
	}
	diffs := doctor.Compare(a, b)
	if c.JSON {
		err = printJSON(map[string]any{"a": label(a), "b": label(b), "differences": diffs})
	} else {
		err = printDifferences(os.Stdout, a, b, diffs)
	}
	if err == nil && len(diffs) > 0 {
		err = exitError(1)
	}
	return err
}

// one reads a report, or makes one of a URL.
func (c doctorCmd) one(ctx context.Context, from string) (*doctor.Report, error) {
	var r *doctor.Report
	var err error
	if strings.Contains(from, "://") {
		r, err = c.examine(ctx, from)
	} else {
		r, err = doctor.Read(from)
	}
	if err == nil && !r.Reached() {
		err = fmt.Errorf("%s: %w", r.URL, doctor.ErrNothing)
		for _, check := range r.Checks {
			if check.Verdict == doctor.Fail {
				err = hinted{err, check.Found}
				break
			}
		}
	}
	return r, err
}

func label(r *doctor.Report) string {
	return fmt.Sprintf("%s, seen from %s at %s", r.URL, r.Host, r.Time.Format(time.RFC3339))
}

func printDifferences(out io.Writer, a, b *doctor.Report, diffs []doctor.Difference) error {
	fmt.Fprintf(out, "A  %s\nB  %s\n", label(a), label(b))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(diffs) == 0 {
		fmt.Fprintln(w, "nothing differs")
	} else {
		fmt.Fprintln(w, "WHAT\tA\tB")
	}
	for _, d := range diffs {
		fmt.Fprintf(w, "%s\t%s\t%s\n", d.What, d.A, d.B)
	}
	return w.Flush()
}

type signalsCmd struct{}

// Run is the child that signals are sent to.
func (signalsCmd) Run() error { return doctor.Listen(os.Stdin, os.Stdout) }
