package doctor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/renameio/v2"
)

// A Verdict is what is thought of one thing.
type Verdict string

const (
	OK      Verdict = "ok"
	Warn    Verdict = "warn"    // it works, and may not always
	Fail    Verdict = "fail"    // something that Tidings needs is not so
	Skipped Verdict = "skipped" // it could not be looked at, or there was no need
)

// A Check is one thing that was looked at.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Do      string  `json:"do,omitempty"` // the way out, of what is not ok
}

// A Report is what was found. Facts are what two environments can be compared by.
type Report struct {
	Format int               `json:"format"` // of this file
	Time   time.Time         `json:"time"`
	Host   string            `json:"host"`
	URL    string            `json:"url"` // without secrets
	App    string            `json:"app,omitempty"`
	Checks []Check           `json:"checks"`
	Facts  map[string]string `json:"facts"`
}

// format changes when a report of before can no longer be compared with one of now.
const format = 1

// Failed reports whether a check failed.
func (r *Report) Failed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Verdict == Fail })
}

// Print writes a table: each check, and below what is not ok the way out.
func (r *Report) Print(w io.Writer) error {
	width, count := 0, map[Verdict]int{}
	for _, c := range r.Checks {
		width = max(width, utf8.RuneCountInString(c.Name))
		count[c.Verdict]++
	}
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-7s  %-*s  %s\n", c.Verdict, width, c.Name, c.Found)
		if c.Do != "" {
			fmt.Fprintf(&b, "         %-*s  -> %s\n", width, "", c.Do)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warn, %d fail, %d skipped\n", count[OK], count[Warn], count[Fail], count[Skipped])
	_, err := io.WriteString(w, b.String())
	return err
}

// Write writes the report as JSON to a file that only its owner can read: it holds no
// secret, but it says much of the machine.
func (r *Report) Write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, append(b, '\n'), 0o600)
}

// Read reads what Write wrote, or what "tidings doctor --json" printed.
func Read(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s is no report of tidings doctor --json: %w", path, err)
	}
	switch {
	case r.Format == 0 || r.Facts == nil:
		return nil, fmt.Errorf("%s is no report of tidings doctor --json", path)
	case r.Format != format:
		return nil, fmt.Errorf("%s was written by another version of tidings (format %d, here %d): write it anew with this one", path, r.Format, format)
	}
	return r, nil
}

// A Difference is a fact, or the verdict of a check, that is not the same in both.
type Difference struct {
	What string `json:"what"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// absent is shown for what only the other has.
const absent = "-"

// Compare returns what differs, by name. Checks of things that have the name of a
// machine in them, and what was only found, are not compared.
func Compare(a, b *Report) []Difference {
	diffs := []Difference{}
	differ := func(what, x, y string) {
		if x != y {
			diffs = append(diffs, Difference{what, x, y})
		}
	}
	for _, k := range keys(a.Facts, b.Facts) {
		differ(k, cmp.Or(a.Facts[k], absent), cmp.Or(b.Facts[k], absent))
	}
	va, vb := verdicts(a), verdicts(b)
	for _, k := range keys(va, vb) {
		differ("verdict: "+k, cmp.Or(va[k], absent), cmp.Or(vb[k], absent))
	}
	return diffs
}

// verdicts are those of the checks that both environments have by the same name.
func verdicts(r *Report) map[string]string {
	all := map[string]string{}
	for _, c := range r.Checks {
		if !strings.HasPrefix(c.Name, ofServer) {
			all[c.Name] = string(c.Verdict)
		}
	}
	return all
}

func keys(a, b map[string]string) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// ErrNothing: no server could be reached, so that there is nothing to compare.
var ErrNothing = errors.New("no server was reached: there is nothing to compare")

// Reached reports whether a server was looked at.
func (r *Report) Reached() bool { return r.Facts["server.version"] != "" }
