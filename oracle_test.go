package tidings_test

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var oracleDir = flag.String("oracle", "testdata/oracle", "folder with the scenarios and expected of the oracle")

// derivedDir holds scenarios of our own, for what the observed ones do not use of
// the language, with what the rules say.
const derivedDir = "testdata/oracle-derived"

// TestOracle replays scenarios that were run on the real
// ActiveSupport::Notifications, and compares what was observed there with what
// happens here. docs/oracle-differences.md lists every difference that is allowed,
// with its reason; -v shows which scenario needs which. For another folder:
//
//	go test -run Oracle . -oracle DIR
//
// Our own scenarios run in any case: each difference is needed by one of them or
// of the others, or it has no place in the list.
func TestOracle(t *testing.T) {
	used := map[string]int{}
	observed := scenarios(t, filepath.Join(*oracleDir, "scenarios"))
	same := 0
	for _, file := range observed {
		t.Run(nameOf(file), func(t *testing.T) {
			same += note(t, used, replayFile(t, file, filepath.Join(*oracleDir, "expected", filepath.Base(file))))
		})
	}
	t.Logf("%d observed scenarios, %d without any difference; differences and how many need them: %v", len(observed), same, used)
	for _, file := range scenarios(t, derivedDir) {
		t.Run("derived/"+nameOf(file), func(t *testing.T) { note(t, used, replayFile(t, file, file)) })
	}
	if f := flag.Lookup("test.run"); strings.Contains(f.Value.String(), "/") {
		return // not all have run
	}
	for _, d := range differences {
		if used[d.id] == 0 {
			t.Errorf("no scenario needs the difference %q: take it out of the list", d.id)
		}
	}
}

func nameOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".json") }

func scenarios(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in %s (%v)", dir, err)
	}
	return files
}

// note returns 1 if the scenario needed nothing.
func note(t *testing.T, used map[string]int, needed []string) int {
	for _, d := range needed {
		used[d]++
	}
	if len(needed) == 0 {
		return 1
	}
	t.Logf("differences: %s", strings.Join(needed, ", "))
	return 0
}

// replayFile returns the ids of the differences that the comparison needed.
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
	// Strict, so that what subscribers fail with is the caller's, as there. Where
	// none fails, a bus that is not strict must give the same, by faster ways.
	r := newReplay(t, true)
	needed := r.compare(s.Ops, want)
	if r.failures == 0 && !t.Failed() {
		relaxed := newReplay(t, false)
		maps.Copy(needed, relaxed.compare(s.Ops, want))
	}
	return slices.Sorted(maps.Keys(needed))
}

func (r *replay) compare(ops []op, want []entry) map[string]bool {
	r.t.Helper()
	r.top(ops)
	x := &comparison{r: r, want: plain(r.t, want), got: plain(r.t, r.trace)}
	x.allow()
	if d, same := diff(x.want, x.got); !same {
		r.t.Errorf("differs from what was observed (strict bus: %v; differences allowed here: %q):\n%s",
			r.strict, slices.Sorted(maps.Keys(r.used)), d)
	}
	return r.used
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

// The document and the list in the code are one: same ids, same order, each with
// its reason.
func TestOracleDifferencesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("docs/oracle-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, documented []string
	for _, d := range differences {
		listed = append(listed, d.id)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(string(doc), -1) {
		documented = append(documented, m[1])
	}
	if !slices.Equal(listed, documented) {
		t.Errorf("the code lists %q\nthe document  %q", listed, documented)
	}
}
