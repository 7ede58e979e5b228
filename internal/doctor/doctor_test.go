//go:build unix

package doctor

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestClocks(t *testing.T) {
	for _, c := range []struct {
		off, within time.Duration
		want        Verdict
		says        string
	}{
		{0, time.Millisecond, OK, "0s ahead"},
		{-900 * time.Millisecond, 0, OK, "900ms behind"},
		{1500 * time.Millisecond, time.Millisecond, Warn, "1.5s ahead"},
		{1500 * time.Millisecond, time.Second, OK, "known to 1s"}, // it may be less
		{-2 * time.Minute, time.Second, Fail, "2m0s behind"},
		{61 * time.Second, 2 * time.Second, Warn, "1m1s ahead"},
	} {
		v, do, found := judgeClock(c.off, c.within)
		if v != c.want || !strings.Contains(found, c.says) || (do == "") != (v == OK) {
			t.Errorf("%v within %v: %s, %q, %q", c.off, c.within, v, found, do)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		version string
		want    []int
		is      bool
	}{
		{"2.15.2", []int{2, 15, 2}, true}, {"2.15.1", []int{2, 15, 2}, false}, {"2.10.29", []int{2, 10}, true}, {"2.9.0", []int{2, 10}, false},
		{"3.0.0", []int{2, 99}, true}, {"2.16.0-RC.1", []int{2, 16}, true}, {"2.15", []int{2, 15, 2}, false}, {"nonsense", []int{2}, false}, {"", []int{2}, false},
	} {
		if got := isAtLeast(c.version, c.want...); got != c.is {
			t.Errorf("%q is at least %v: %v", c.version, c.want, got)
		}
	}
}

func TestComparing(t *testing.T) {
	a := &Report{Facts: map[string]string{"same": "1", "other": "1", "gone": "1"}, Checks: []Check{{Name: "x", Verdict: OK}, {Name: ofServer + "a", Verdict: OK}}}
	b := &Report{Facts: map[string]string{"same": "1", "other": "2", "new": "1"}, Checks: []Check{{Name: "x", Verdict: Fail}, {Name: ofServer + "b", Verdict: Warn}}}
	want := []Difference{{"gone", "1", "-"}, {"new", "-", "1"}, {"other", "1", "2"}, {"verdict: x", "ok", "fail"}}
	if got := Compare(a, b); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := Compare(a, a); len(got) != 0 {
		t.Errorf("of one and the same: %v", got)
	}
}

// What others have written is not taken for a report, and a report is for its owner.
func TestReadingReports(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := (&Report{Format: format, Facts: map[string]string{"a": "1"}}).Write(path); err != nil {
		t.Fatal(err)
	}
	if r, err := Read(path); err != nil || r.Facts["a"] != "1" {
		t.Errorf("%v, %v", r, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	for text, says := range map[string]string{"": "no report", "[]": "no report", "{}": "no report", `{"format":99,"facts":{}}`: "another version"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The child says which signals it gets, and ends with its parent.
func TestListening(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var out bytes.Buffer
	if err := Listen(r, &out); err != nil || out.String() != "ready\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestNearestVariable(t *testing.T) {
	for key, want := range map[string]string{"TIDINGS_ROUTE": "TIDINGS_ROUTES", "TIDINGS_SPOOLDIR": "TIDINGS_SPOOL_DIR", "TIDINGS_URLS": "TIDINGS_URL"} {
		if got := nearest(key); got != want {
			t.Errorf("nearest to %s is %s", key, got)
		}
	}
}
