package drill

import (
	"encoding/json"
	"fmt"
	"io"
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
		fmt.Fprintf(w, "at %.3f s: %s: %s: %s %s: %s\n", time.Duration(x.At).Seconds(), x.Promise, x.Rule, x.Topic, x.ID, x.Text)
	}
	for _, s := range v.Void {
		fmt.Fprintln(w, "void:", s)
	}
	for _, p := range v.Publishers {
		fmt.Fprintf(w, "%s on %s: %d sent, %d accepted, %d refused, %d in doubt; behind schedule p50 %v, p99 %v, max %v\n",
			p.Name, p.Topic, p.Sent, p.Accepted, p.Refused, p.InDoubt, round(p.Late50), round(p.Late99), round(p.LateMax))
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "promise\tsent\taccepted\tin doubt\thandled\tlost\tdoubled\tredelivered\tforgiven\tgap\tdelay\t")
	for _, r := range v.Rows {
		if !r.counts {
			continue
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%v\t%s\n", r.Promise, r.Sent, r.Accepted, r.InDoubt, r.Handled,
			r.Lost, r.Doubled, r.Redelivered, r.Forgiven, round(r.Gap), round(r.Delay), r.Result)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range v.Rows {
		if !r.counts {
			fmt.Fprintf(t, "%s\t%s\t%s\n", r.Promise, r.Note, r.Result)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if v.Dir != "" {
		fmt.Fprintf(w, "journals and logs: %s\n", v.Dir)
	}
	_, err := fmt.Fprintln(w, v.Result)
	return err
}

func round(d ms) time.Duration { return time.Duration(d).Round(100 * time.Microsecond) }
