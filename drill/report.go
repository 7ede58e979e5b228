package drill

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// shown bounds what a terminal gets; the file has all.
const shown = 20

// WriteJSON writes the whole verdict for machines.
func (v *Verdict) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// WriteText writes the verdict for people: violations, a table, and one word.
func (v *Verdict) WriteText(w io.Writer) error {
	for i, x := range v.Violations {
		if i == shown {
			fmt.Fprintf(w, "… and %d more in verdict.json\n", len(v.Violations)-shown)
			break
		}
		about := x.Rule
		if x.Topic != "" {
			about += ": " + x.Topic + " " + x.ID
		}
		fmt.Fprintf(w, "at %.3f s: %s: %s: %s\n", time.Duration(x.At).Seconds(), x.Promise, about, x.Text)
	}
	for _, s := range v.Void {
		fmt.Fprintln(w, "void:", s)
	}
	for _, p := range v.Publishers {
		fmt.Fprintf(w, "%s on %s: %d sent, %d accepted, %d refused, %d in doubt, %d spooled; behind schedule p50 %v, p99 %v, max %v\n",
			p.Name, p.Topic, p.Sent, p.Accepted, p.Refused, p.InDoubt, p.Spooled, round(p.Late50), round(p.Late99), round(p.LateMax))
	}
	fmt.Fprintln(w)
	if err := v.writeCells(w); err != nil {
		return err
	}
	if err := v.writeMoves(w); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "promise\t\tsent\taccepted\tin doubt\trefused\tspooled\thandled\tlost\tdoubled\tretried\tredelivered\tforgiven\tgap\tdelay")
	for _, r := range v.Rows {
		if !r.counts || r.cell {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%v\n", r.Promise, r.Result, r.Sent, r.Accepted, r.InDoubt, r.Refused, r.Spooled, r.Handled,
			r.Lost, r.Doubled, r.Retried, r.Redelivered, r.Forgiven, round(r.Gap), round(r.Delay))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range v.Rows {
		if !r.counts {
			fmt.Fprintf(t, "%s\t%s\t%s\n", r.Promise, r.Result, r.Note)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if v.Evidence != nil && v.Evidence.Seed != 0 {
		fmt.Fprintf(w, "its random instants again: --seed=%d\n", v.Evidence.Seed)
	}
	if v.Dir != "" {
		fmt.Fprintf(w, "journals and logs: %s\n", v.Dir)
	}
	_, err := fmt.Fprintln(w, v.Result)
	return err
}

// writeCells writes the matrix of signals, live and durable events together.
func (v *Verdict) writeCells(w io.Writer) error {
	if v.Evidence == nil || len(v.Evidence.Cells) == 0 {
		return nil
	}
	rows := map[string][]*Row{}
	for _, r := range v.Rows {
		if r.cell {
			_, name, _ := strings.Cut(r.Promise, ", ")
			rows[name] = append(rows[name], r)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "state\tsignal\tto\t\tsent\thandled\tlost\tdoubled\tredelivered\tforgiven\teffect")
	for _, c := range v.Evidence.Cells {
		if c.Nothing != "" {
			fmt.Fprintf(t, "%s\t%s\t%s\t-\t\t\t\t\t\t\tmeaningless: %s\n", c.State, c.Signal, c.To, c.Nothing)
			continue
		}
		var all Row
		result := "ok"
		for _, r := range rows[c.Name] {
			all.Sent, all.Handled, all.Lost = all.Sent+r.Sent, all.Handled+r.Handled, all.Lost+r.Lost
			all.Doubled, all.Redelivered, all.Forgiven = all.Doubled+r.Doubled, all.Redelivered+r.Redelivered, all.Forgiven+r.Forgiven
			if r.Result != "ok" && result != string(Broken) {
				result = r.Result
			}
		}
		effect := c.Effect
		switch {
		case len(c.Wrong) > 0:
			result, effect = string(Broken), strings.Join(c.Wrong, "; ")
		case c.Missed != "":
			result, effect = "void", c.Missed
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", c.State, c.Signal, c.To, result,
			all.Sent, all.Handled, all.Lost, all.Doubled, all.Redelivered, all.Forgiven, effect)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// writeMoves writes what ended the hub, who had it next, and how long that took.
func (v *Verdict) writeMoves(w io.Writer) error {
	if len(v.Moves) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "the hub was\tand was\tthen it was\tnothing accepted for")
	for _, m := range v.Moves {
		fmt.Fprintf(t, "%s\t%s\t%s\t%v\n", m.From, m.End, m.To, round(m.Silence))
	}
	fmt.Fprintln(t)
	return t.Flush()
}

func round(d ms) time.Duration { return time.Duration(d).Round(time.Millisecond) }
