package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings/natsbus"
)

type spoolCmd struct {
	Dir string `env:"TIDINGS_SPOOL_DIR" help:"The applications' Options.SpoolDir, on this machine."`

	List  spoolListCmd  `cmd:"" default:"withargs" help:"Show the spools of this machine, and what waits in them (the default)."`
	Show  spoolShowCmd  `cmd:"" help:"Show the events of a spool."`
	Drain spoolDrainCmd `cmd:"" help:"Send what dead processes have left."`
}

// Help is shown below the flags.
func (spoolCmd) Help() string {
	return `While the broker is away an application keeps durable events in its spool, and
sends them when it is back. What a process leaves when it dies is sent by the next
process of its app, within 5 s; or by "tidings spool drain", if there is to be none.

Exit status: 0 done, also when there was nothing to do; 1 failed, or something was
not sent; 64 wrong usage.`
}

// Validate asks for the directory.
func (c spoolCmd) Validate() error {
	if c.Dir == "" {
		return hinted{errors.New("no directory is named"), "set TIDINGS_SPOOL_DIR or --dir to what the applications have"}
	}
	return nil
}

// read returns what there is; a directory that is not there is a mistake.
func (c spoolCmd) read() ([]natsbus.SpoolState, []string, error) {
	if _, err := os.Stat(c.Dir); err != nil {
		return nil, nil, hinted{err, "--dir is the applications' Options.SpoolDir; it is made when the first of them starts"}
	}
	return natsbus.Spools(c.Dir)
}

type spoolListCmd struct {
	JSON bool `name:"json" help:"Print it as JSON on standard output."`
}

// Run prints the table.
func (c spoolListCmd) Run(spool *spoolCmd) error {
	all, refused, err := spool.read()
	if c.JSON {
		return errors.Join(printJSON(map[string]any{"spools": all, "refused": refused}), err)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(all) == 0 && err == nil {
		fmt.Fprintln(w, "no spools")
	} else if len(all) > 0 {
		fmt.Fprintln(w, "SPOOL\tAPP\tOWNER\tEVENTS\tBYTES\tOLDEST\tDAMAGED")
	}
	var dead uint64
	for _, s := range all {
		if !s.Owned {
			dead += s.Events
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%d\n", filepath.Base(s.Path), s.App, owner(s), s.Events, s.Bytes, clock(s.Oldest), s.Damaged)
	}
	err = errors.Join(err, w.Flush())
	if dead > 0 {
		fmt.Printf("%d events of processes that are dead: the next process of the app sends them, or tidings spool drain\n", dead)
	}
	if len(refused) > 0 {
		fmt.Printf("%d events that no stream would take, in %s: tidings spool show FILE, tidings spool drain --refused\n", len(refused), filepath.Dir(refused[0]))
	}
	return err
}

func owner(s natsbus.SpoolState) string {
	switch {
	case !s.Owned:
		return "dead"
	case s.Pid == 0:
		return "alive"
	}
	return fmt.Sprintf("pid %d", s.Pid)
}

type spoolShowCmd struct {
	Spool string `arg:"" help:"A name that list shows, or a file of a refused event."`
	Limit int    `default:"100" help:"At most so many, from the oldest on; 0 is all."`
	JSON  bool   `name:"json" help:"Print one JSON object a line, payloads included."`
}

// Run prints the events.
func (c spoolShowCmd) Run(spool *spoolCmd) error {
	path := c.Spool
	if !strings.ContainsRune(path, filepath.Separator) {
		path = filepath.Join(spool.Dir, path)
	}
	if _, err := os.Stat(path); err != nil {
		return hinted{err, "tidings spool list shows the names"}
	}
	w, enc, n := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0), json.NewEncoder(os.Stdout), 0
	var errs []error
	for e, err := range natsbus.SpoolEvents(path) {
		if n == c.Limit && c.Limit > 0 {
			fmt.Fprintf(os.Stderr, "the first %d; --limit=0 shows all\n", n)
			break
		}
		if n++; n == 1 && !c.JSON {
			fmt.Fprintln(w, "NUMBER\tACCEPTED\tTOPIC\tID\tBYTES\tSENT BEFORE")
		}
		if err != nil {
			errs = append(errs, err)
		}
		if e.Subject == "" {
			continue
		}
		if c.JSON {
			errs = append(errs, enc.Encode(spooledJSON(e)))
			continue
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\n", e.Number, clock(e.Stored), e.Topic, e.ID, len(e.Data), clock(e.Doubt))
	}
	return errors.Join(append(errs, w.Flush())...)
}

func spooledJSON(e natsbus.SpooledEvent) map[string]any {
	out := map[string]any{"number": e.Number, "topic": e.Topic, "subject": e.Subject, "id": e.ID, "source": e.Source, "time": e.Time,
		"content_type": e.ContentType, "data": e.Data, "headers": e.Header}
	if json.Valid(e.Data) {
		out["data"] = json.RawMessage(e.Data)
	}
	for name, t := range map[string]time.Time{"accepted": e.Stored, "sent_before": e.Doubt} {
		if !t.IsZero() {
			out[name] = t
		}
	}
	return out
}

type spoolDrainCmd struct {
	Apps    []string `arg:"" optional:"" name:"app" help:"Only those of these apps, as list shows them."`
	Refused bool     `help:"Also the events that no stream would take before."`
	DryRun  bool     `name:"dry-run" help:"Only show which it would be."`
	brokerFlags
}

// Help is shown below the flags.
func (spoolDrainCmd) Help() string {
	return `They are sent in order, with the ids they have; those that the broker may have
already are looked up first. Spools of processes that live are left to them. What
is not sent within --timeout stays where it is.`
}

// Run sends.
func (c spoolDrainCmd) Run(ctx context.Context, spool *spoolCmd) error {
	all, refused, err := spool.read()
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.show(all, refused)
	}
	ctx, admin, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	var sent uint64
	err = admin.DrainSpools(ctx, spool.Dir, c.Apps, c.Refused, func(d natsbus.SpoolDrained) {
		sent += d.Sent
		fmt.Printf("%s: %d sent, %d left, %d refused\n", d.Path, d.Sent, d.Left, d.Refused)
	})
	fmt.Printf("%d events sent\n", sent)
	return err
}

func (c spoolDrainCmd) show(all []natsbus.SpoolState, refused []string) error {
	for _, s := range all {
		if !s.Owned && c.means(s.App) {
			fmt.Printf("%s: %d would be sent\n", s.Path, s.Events)
		}
	}
	if c.Refused {
		for _, path := range refused {
			fmt.Printf("%s: 1 would be sent\n", path)
		}
	}
	return nil
}

func (c spoolDrainCmd) means(app string) bool {
	return len(c.Apps) == 0 || slices.Contains(c.Apps, app)
}
