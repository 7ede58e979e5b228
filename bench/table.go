package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// report is all that a run has to say.
type report struct {
	Go       string        `json:"go"`
	Platform string        `json:"platform"`
	CPUs     int           `json:"cpus"`
	Rounds   int           `json:"rounds"`
	Slice    time.Duration `json:"slice_ns"`
	Rows     []result      `json:"rows"`
}

var columns = []string{"row", "cpu", "what", "ns/op", "median", "B/op", "allocs", "/floor", "/peer", "goal", "reached"}

// left is which columns hold words.
var left = map[string]bool{"row": true, "what": true, "goal": true, "reached": true}

// print writes the table, with what is needed to read it.
func (r report) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, %d CPUs; %d rounds, slices of %v, all candidates of a row in turns.\n", r.Go, r.Platform, r.CPUs, r.Rounds, r.Slice)
	b.WriteString("cpu is the GOMAXPROCS of the row: 1, so that one publisher's own cost is seen; rows with queues at 1 and at 2,\n" +
		"since there publisher and subscriber may run side by side; row 8 at 2. Change it with -cpu N.\n" +
		"ns/op is the fastest slice, median the median of all: far apart, the machine was busy. /floor and /peer are ours\n" +
		"divided by that line's; on our own line, by the floor's and by the fastest peer's. Compare within a row only.\n\n")
	lines := [][]string{columns}
	for _, res := range r.Rows {
		lines = append(lines, res.lines()...)
	}
	align(&b, lines)
	if r.has(standInName) {
		b.WriteString("\n" + standInNote + "\n")
	}
	for _, res := range r.Rows {
		for _, n := range res.Notes {
			fmt.Fprintf(&b, "row %s: %s\n", res.Row, n)
		}
		if res.Error != "" {
			fmt.Fprintf(&b, "row %s FAILED: %s\n", res.Row, res.Error)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r report) has(candidate string) bool {
	for _, res := range r.Rows {
		for _, f := range res.Figures {
			if f.Candidate == candidate {
				return true
			}
		}
	}
	return false
}

// lines is the row's own line, and one for each it is compared with.
func (r result) lines() [][]string {
	head := []string{r.Row, fmt.Sprint(r.CPU), r.Name, "", "", "", "", ratio(r.ToFloor), ratio(r.ToPeer), r.Goal, r.Reached}
	if r.Error != "" {
		head[len(head)-1] = "FAILED"
	}
	var own float64
	var rest [][]string
	for _, f := range r.Figures {
		if f.Kind == ours {
			own = f.Ns
			copy(head[3:], f.cells())
		}
	}
	for _, f := range r.Figures {
		if f.Kind == ours {
			continue
		}
		line := []string{"", "", fmt.Sprintf("  %s: %s", f.Kind, f.Candidate)}
		line = append(line, f.cells()...)
		toFloor, toPeer := "", ""
		if f.Kind == floor {
			toFloor = ratio(own / f.Ns)
		} else {
			toPeer = ratio(own / f.Ns)
		}
		rest = append(rest, append(line, toFloor, toPeer, "", ""))
	}
	return append([][]string{head}, rest...)
}

func (f figure) cells() []string {
	bytes, allocs := number(math.Round(f.Bytes)), "0"
	if f.Allocs >= someAllocs {
		allocs = number(f.Allocs)
	}
	if f.Noisy {
		bytes, allocs = "-", "-"
	}
	return []string{number(f.Ns), number(f.Median), bytes, allocs}
}

// number has as many digits as mean something.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func ratio(v float64) string {
	if v == 0 || math.IsNaN(v) {
		return ""
	}
	return fmt.Sprintf("%.2fx", v)
}

// align writes the lines as columns, with a rule under the first.
func align(b *strings.Builder, lines [][]string) {
	widths := make([]int, len(columns))
	for _, l := range lines {
		for i, cell := range l {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, l := range lines {
		var s strings.Builder
		for i, cell := range l {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if left[columns[i]] {
				s.WriteString(cell + pad + "  ")
			} else {
				s.WriteString(pad + cell + "  ")
			}
		}
		b.WriteString(strings.TrimRight(s.String(), " ") + "\n")
		if n == 0 {
			rule := ""
			for _, w := range widths {
				rule += strings.Repeat("-", w) + "  "
			}
			b.WriteString(strings.TrimRight(rule, " ") + "\n")
		}
	}
}
