package tidings_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// entry is one line of a trace.
type entry map[string]any

func (e entry) is(names ...string) bool { return slices.Contains(names, e.str("ev")) }

func (e entry) str(key string) string { s, _ := e[key].(string); return s }

func (e entry) with(key string, v any) entry {
	out := maps.Clone(e)
	out[key] = v
	return out
}

// outcome reports whether e ends the operation.
func (e entry) outcome(op string) bool { return e.is("return", "raise") && e.str("op") == op }

func (e entry) String() string {
	data, err := json.Marshal(map[string]any(e)) // keys are sorted
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// plain is the trace as JSON has it, so that 1 and 1.0 are the same.
func plain(t *testing.T, trace []entry) (out []entry) {
	t.Helper()
	data, err := json.Marshal(trace)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// diff shows two traces line by line. What is in one of them only shifts nothing:
// lines are matched as far as they can be.
func diff(want, got []entry) (text string, same bool) {
	w, g := traceLines(want), traceLines(got)
	common := make([][]int, len(w)+1) // common[i][j]: how many of w[i:] and g[j:] can be matched
	for i := range common {
		common[i] = make([]int, len(g)+1)
	}
	for i := len(w) - 1; i >= 0; i-- {
		for j := len(g) - 1; j >= 0; j-- {
			if w[i] == g[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var b strings.Builder
	same = true
	for i, j := 0, 0; i < len(w) || j < len(g); {
		switch {
		case i < len(w) && j < len(g) && w[i] == g[j]:
			fmt.Fprintf(&b, "          %s\n", w[i])
			i, j = i+1, j+1
		case j == len(g) || i < len(w) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&b, " observed %s\n", w[i])
			i, same = i+1, false
		default:
			fmt.Fprintf(&b, "     here %s\n", g[j])
			j, same = j+1, false
		}
	}
	return b.String(), same
}

func traceLines(trace []entry) (out []string) {
	for _, e := range trace {
		out = append(out, e.String())
	}
	return out
}
