package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/deadletter"
	_ "github.com/tidings-go/tidings/natsbus" // makes nats:// URLs known
)

type dlqCmd struct {
	URL    string `name:"url" env:"TIDINGS_URL" help:"Where the broker is, as for the applications: nats://HOST:PORT?token-file=PATH."`
	Prefix string `env:"TIDINGS_PREFIX" help:"The applications' prefix, if they have one."`

	List    dlqListCmd    `cmd:"" help:"Show which events were given up, oldest first."`
	Show    dlqShowCmd    `cmd:"" help:"Show one with all that is known of it."`
	Redrive dlqRedriveCmd `cmd:"" help:"Give events to the group that gave them up once more."`
	Drop    dlqDropCmd    `cmd:"" help:"Remove dead letters for good."`
}

// Help is shown below the flags.
func (dlqCmd) Help() string {
	return `A durable event that its handler gave up, that cannot be decoded, or that its
processes died of is a dead letter of its group until it is redriven or dropped.

Exit status: 0 done, also when there was nothing to do; 1 failed, for one letter
or more; 64 wrong usage.`
}

func (c dlqCmd) open(ctx context.Context) (*deadletter.Store, error) {
	if c.URL == "" {
		return nil, errNoBroker
	}
	return deadletter.Open(ctx, c.URL, deadletter.Options{Prefix: c.Prefix})
}

// with runs f on an open store.
func (c dlqCmd) with(ctx context.Context, f func(*deadletter.Store) error) error {
	s, err := c.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}

// selecting are the flags that say which letters are meant.
type selecting struct {
	Group  string `help:"Only those of this group."`
	Topic  string `help:"Only those whose topic matches this pattern, like order.>."`
	Reason string `help:"Only those whose reason contains this text."`
	Since  string `help:"Only those given up since then: a duration back from now (2h), or a time (2006-01-02T15:04:05Z)."`
}

func (s selecting) selection() (deadletter.Selection, error) {
	sel := deadletter.Selection{Group: s.Group, Topic: s.Topic, Reason: s.Reason}
	var err error
	sel.Since, err = since(s.Since)
	return sel, err
}

// since reads the flag of that name; without it the zero time.
func since(s string) (t time.Time, err error) {
	if s == "" {
		return t, nil
	}
	if t, err = moment(s, time.Now()); err != nil {
		err = hinted{fmt.Errorf("--since=%s is neither a duration nor a time", s), "2h, or 2006-01-02T15:04:05Z"}
	}
	return t, err
}

type dlqListCmd struct {
	selecting
	JSON bool `name:"json" help:"Print one JSON object a line, payloads included."`
}

// Run prints a table.
func (c dlqListCmd) Run(ctx context.Context, dlq *dlqCmd) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	return dlq.with(ctx, func(s *deadletter.Store) error {
		t := newLetterTable(os.Stdout, c.JSON)
		for l, err := range s.List(ctx, sel) {
			if err != nil {
				return errors.Join(t.end(), err)
			}
			if err := t.row(l, ""); err != nil {
				return err
			}
		}
		return t.end()
	})
}

type dlqShowCmd struct {
	ID   string `arg:"" help:"As list shows it."`
	JSON bool   `name:"json" help:"Print a JSON object."`
}

// Run prints everything.
func (c dlqShowCmd) Run(ctx context.Context, dlq *dlqCmd) error {
	return dlq.with(ctx, func(s *deadletter.Store) error {
		l, err := s.Get(ctx, c.ID)
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(os.Stdout).Encode(jsonLetter(l))
		}
		return showLetter(os.Stdout, l)
	})
}

// acting are the flags of what changes something.
type acting struct {
	IDs []string `arg:"" optional:"" name:"id" help:"As list shows them."`
	selecting
	All    bool `help:"All there are, where nothing else says which."`
	DryRun bool `name:"dry-run" help:"Only show which it would be."`
	JSON   bool `name:"json" help:"Print one JSON object a line."`
}

// Validate refuses to guess.
func (c acting) Validate() error {
	narrow := len(c.IDs) > 0 || c.selecting != selecting{}
	switch {
	case c.All && narrow:
		return hinted{errors.New("--all is every dead letter, and something else narrows it"), "leave out one of them"}
	case !c.All && !narrow:
		return hinted{errors.New("nothing says which dead letters are meant"), "name ids, --group, --topic, --reason or --since; or --all"}
	}
	return nil
}

func (c acting) run(ctx context.Context, dlq *dlqCmd, done string, act func(*deadletter.Store, deadletter.Selection, deadletter.Action) (int, error)) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	sel.IDs, sel.All = c.IDs, c.All
	would := done
	if c.DryRun {
		would = "would be " + done
	}
	return dlq.with(ctx, func(s *deadletter.Store) error {
		t, failed := newLetterTable(os.Stdout, c.JSON), 0
		var broken error
		n, err := act(s, sel, deadletter.Action{DryRun: c.DryRun, Tell: func(l *deadletter.Letter, err error) {
			outcome := would
			if err != nil {
				outcome = "failed"
				failed++
			}
			broken = errors.Join(broken, t.row(l, outcome))
		}})
		broken = errors.Join(broken, t.end())
		if !c.JSON {
			fmt.Printf("%d %s", n, would)
			if failed > 0 {
				fmt.Printf(", %d failed", failed)
			}
			fmt.Println()
		}
		return errors.Join(err, broken)
	})
}

type dlqRedriveCmd struct{ acting }

// Help is shown below the flags.
func (dlqRedriveCmd) Help() string {
	return `The event goes to the group that gave it up and to nobody else, with the id,
topic, time, source and headers it had, and as many attempts as a new one. The
letter is removed once the event is stored.`
}

// Run redrives.
func (c dlqRedriveCmd) Run(ctx context.Context, dlq *dlqCmd) error {
	return c.run(ctx, dlq, "redriven", func(s *deadletter.Store, sel deadletter.Selection, a deadletter.Action) (int, error) {
		return s.Redrive(ctx, sel, a)
	})
}

type dlqDropCmd struct{ acting }

// Run drops.
func (c dlqDropCmd) Run(ctx context.Context, dlq *dlqCmd) error {
	return c.run(ctx, dlq, "dropped", func(s *deadletter.Store, sel deadletter.Selection, a deadletter.Action) (int, error) {
		return s.Drop(ctx, sel, a)
	})
}

// letterTable prints letters, a line each.
type letterTable struct {
	json *json.Encoder
	tab  *tabwriter.Writer
	rows int
}

func newLetterTable(w io.Writer, asJSON bool) *letterTable {
	if asJSON {
		return &letterTable{json: json.NewEncoder(w)}
	}
	return &letterTable{tab: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (t *letterTable) row(l *deadletter.Letter, outcome string) error {
	if t.json != nil {
		j := jsonLetter(l)
		if outcome != "" {
			j = letterJSON{ID: l.ID, Topic: l.Event.Topic, Event: l.Event.ID, Group: l.Group, Outcome: outcome}
		}
		return t.json.Encode(j)
	}
	head, cells := "ID\tTOPIC\tGROUP\tATTEMPTS\tLAST\tREASON", fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s",
		l.ID, l.Event.Topic, l.Group, l.Attempts, clock(l.Last), oneLine(l.Reason, 60))
	if outcome != "" {
		head, cells = "ID\tTOPIC\tGROUP\tOUTCOME", fmt.Sprintf("%s\t%s\t%s\t%s", l.ID, l.Event.Topic, l.Group, outcome)
	}
	if t.rows == 0 {
		fmt.Fprintln(t.tab, head)
	}
	t.rows++
	_, err := fmt.Fprintln(t.tab, cells)
	return err
}

func (t *letterTable) end() error {
	if t.json != nil {
		return nil
	}
	return t.tab.Flush()
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

func oneLine(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func showLetter(w io.Writer, l *deadletter.Letter) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range [][2]string{
		{"id", l.ID}, {"reason", oneLine(l.Reason, 1<<12)},
		{"group", l.Group}, {"pattern", l.Pattern}, {"given up by", l.Instance},
		{"attempts", fmt.Sprint(l.Attempts)}, {"deliveries", fmt.Sprint(l.Deliveries)},
		{"first failed", clock(l.First)}, {"last failed", clock(l.Last)},
		{"stream", fmt.Sprintf("%s, sequence %d", l.Stream, l.Sequence)},
		{"event", l.Event.ID}, {"topic", l.Event.Topic}, {"source", l.Event.Source},
		{"published", clock(l.Event.Time)}, {"content type", l.Event.ContentType},
	} {
		fmt.Fprintf(tab, "%s\t%s\n", f[0], f[1])
	}
	for _, k := range slices.Sorted(maps.Keys(l.Event.Header)) {
		fmt.Fprintf(tab, "header %s\t%s\n", k, oneLine(l.Event.Header[k], 1<<12))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	if l.Stack != "" {
		fmt.Fprintf(w, "\nstack:\n%s\n", strings.TrimRight(l.Stack, "\n"))
	}
	_, err := fmt.Fprintf(w, "\npayload, %d bytes:\n%s\n", len(l.Event.Data), payloadText(l.Event.Data))
	return err
}

// payloadText is what a terminal may be shown.
func payloadText(b []byte) string {
	if !utf8.Valid(b) || strings.ContainsFunc(string(b), func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' && r != '\r' }) {
		return fmt.Sprintf("%q", b)
	}
	return string(b)
}

// letterJSON is a letter for other programs.
type letterJSON struct {
	ID          string            `json:"id"`
	Topic       string            `json:"topic"`
	Event       string            `json:"event"`
	Group       string            `json:"group"`
	Outcome     string            `json:"outcome,omitempty"`
	Pattern     string            `json:"pattern,omitempty"`
	Reason      string            `json:"reason,omitempty"`
	Stack       string            `json:"stack,omitempty"`
	Attempts    *int              `json:"attempts,omitempty"`
	Deliveries  int               `json:"deliveries,omitempty"`
	First       *time.Time        `json:"first,omitempty"` // absent if no handler failed
	Last        *time.Time        `json:"last,omitempty"`
	Instance    string            `json:"instance,omitempty"`
	Stream      string            `json:"stream,omitempty"`
	Sequence    uint64            `json:"sequence,omitempty"`
	Source      string            `json:"source,omitempty"`
	Published   *time.Time        `json:"published,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Header      map[string]string `json:"header,omitempty"`
	Payload     []byte            `json:"payload,omitempty"` // base64
}

func jsonLetter(l *deadletter.Letter) letterJSON {
	return letterJSON{ID: l.ID, Topic: l.Event.Topic, Event: l.Event.ID, Group: l.Group, Pattern: l.Pattern,
		Reason: l.Reason, Stack: l.Stack, Attempts: &l.Attempts, Deliveries: l.Deliveries, First: timeOrNil(l.First), Last: timeOrNil(l.Last),
		Instance: l.Instance, Stream: l.Stream, Sequence: l.Sequence, Source: l.Event.Source, Published: timeOrNil(l.Event.Time),
		ContentType: l.Event.ContentType, Header: l.Event.Header, Payload: l.Event.Data}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
