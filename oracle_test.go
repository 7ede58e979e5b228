package tidings_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var oracleDir = flag.String("oracle", "testdata/oracle", "folder with the scenarios and expected of the oracle")

// TestOracle replays scenarios that were run on the real
// ActiveSupport::Notifications, and compares what was observed there with what
// happens here. docs/oracle-differences.md lists every difference that is allowed,
// with its reason; -v shows which scenario needs which. For another folder:
//
//	go test -run Oracle . -oracle DIR
func TestOracle(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(*oracleDir, "scenarios", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in %s (%v)", *oracleDir, err)
	}
	used := map[string]int{}
	same := 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			differences := replayFile(t, file, filepath.Join(*oracleDir, "expected", filepath.Base(file)))
			for _, d := range differences {
				used[d]++
			}
			if len(differences) > 0 {
				t.Logf("allowed differences: %s", strings.Join(differences, ", "))
			} else {
				same++
			}
		})
	}
	t.Logf("%d scenarios, %d without any difference; %v", len(files), same, used)
	documented, err := os.ReadFile("docs/oracle-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for d := range used {
		if !strings.Contains(string(documented), "`"+d+"`") {
			t.Errorf("the difference %q is not in docs/oracle-differences.md", d)
		}
	}
}

// What the scenarios at hand do not use of the language, with what the rules of
// docs/notifications.md say of it.
func TestOracleLanguage(t *testing.T) {
	files, err := filepath.Glob("testdata/oracle-derived/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Logf("allowed differences: %s", strings.Join(replayFile(t, file, file), ", "))
		})
	}
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// replayFile returns the differences that the comparison needed.
func replayFile(t *testing.T, scenario, expected string) []string {
	t.Helper()
	var s struct {
		Ops      []op
		Expected []entry // in the same file
	}
	readJSON(t, scenario, &s)
	want := s.Expected
	if expected != scenario {
		readJSON(t, expected, &want)
	}
	r := newReplay(t)
	r.top(s.Ops)
	if r.declined != "" {
		return []string{r.declined}
	}
	var got []entry
	data, err := json.Marshal(r.trace)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want, got = r.allow(want), r.allow(got)
	if !reflect.DeepEqual(got, want) {
		// Listeners are not grouped by their kind here.
		same := reflect.DeepEqual(inRuns(got), inRuns(want))
		// What a listener of another kind does comes at another moment, too.
		same = same || len(r.kinds) > 1 && slices.Equal(slices.Sorted(entryLines(got)), slices.Sorted(entryLines(want)))
		if !same {
			t.Errorf("%s: differs from what was observed:\n%s", scenario, diff(want, got))
		}
		r.differ("order")
	}
	return slices.Sorted(maps.Keys(r.differences))
}

// entry is one line of a trace.
type entry map[string]any

func (e entry) is(names ...string) bool {
	ev, _ := e["ev"].(string)
	return slices.Contains(names, ev)
}

func (e entry) String() string {
	data, err := json.Marshal(map[string]any(e)) // keys are sorted
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// listenerEntries are what listeners of one event write.
var listenerEntries = []string{"call", "event", "start", "finish", "publish", "publish_event", "method", "log_error"}

// inRuns sorts what listeners have written one after the other.
func inRuns(trace []entry) []entry {
	out := slices.Clone(trace)
	for i := 0; i < len(out); {
		j := i
		for j < len(out) && out[j].is(listenerEntries...) {
			j++
		}
		slices.SortFunc(out[i:j], func(a, b entry) int { return strings.Compare(a.String(), b.String()) })
		i = max(j, i+1)
	}
	return out
}

func entryLines(trace []entry) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, e := range trace {
			if !yield(e.String()) {
				return
			}
		}
	}
}

func diff(want, got []entry) string {
	var b strings.Builder
	for i := range max(len(want), len(got)) {
		w, g := "(nothing)", "(nothing)"
		if i < len(want) {
			w = want[i].String()
		}
		if i < len(got) {
			g = got[i].String()
		}
		if w == g {
			fmt.Fprintf(&b, "   %s\n", w)
		} else {
			fmt.Fprintf(&b, " observed %s\n     here %s\n", w, g)
		}
	}
	return b.String()
}
