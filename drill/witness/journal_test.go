package witness

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func lines(t *testing.T, dir string) []Line {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "ledger", "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatalf("journals: %v, %v", files, err)
	}
	st, err := os.Stat(files[0])
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("journal mode: %v, %v", st.Mode(), err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var out []Line
	for s := range strings.Lines(string(b)) {
		l, err := Parse(strings.TrimSuffix(s, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestOutsideADrillNothingHappens(t *testing.T) {
	t.Setenv(EnvDir, "")
	w := FromEnv("publisher", "shop")
	if w != nil {
		t.Fatal("a witness without a drill")
	}
	w.Intent("a", "x:1", 0)
	w.Accept("a", "x:1")
	w.Begin("a", "x:1", "a", "g", 1)
	w.Ack("a", "x:1", "a", "g", nil)
	w.Close()
}

func TestEveryLineIsNumberedAndTimed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(EnvDir, dir)
	t.Setenv("TIDINGS_GENERATION", "7")
	w := FromEnv("subscriber", "billing")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				w.Begin("order.placed", ID("shop", i*50+n), "order.*", "billing", 1)
			}
		})
	}
	wg.Wait()
	w.End("order.placed", "shop:1", "order.*", "billing", errors.New("with\ttab and \"quote\"\n"))
	w.Ack("order.placed", "shop:1", "order.*", "billing", nil)
	w.Ack("order.placed", "shop:2", "order.*", "billing", errors.New("closed"))
	w.Close()
	w.Close()

	got := lines(t, dir)
	for i, l := range got {
		if l.N != uint64(i+1) || i > 0 && l.At < got[i-1].At {
			t.Fatalf("line %d has number %d and time %v after %v", i+1, l.N, l.At, got[max(i-1, 0)].At)
		}
	}
	if h := got[0]; h.Kind != Header || h.Fields[0] != "subscriber" || h.Fields[2] != "billing" || h.Fields[3] != "7" {
		t.Errorf("header: %+v", h)
	}
	if e := got[401]; e.Kind != End || e.Fields[4] != "with\ttab and \"quote\"\n" {
		t.Errorf("end: %+v", e)
	}
	if last := got[len(got)-1]; last.Kind != Closed || last.Fields[0] != "405" || len(got) != 405 {
		t.Errorf("last of %d: %+v", len(got), last)
	}
	if got[402].Kind != Ack || got[403].Kind != Nack {
		t.Errorf("acks: %+v", got[402:404])
	}
}

func TestRecordingThatFailsIsFatal(t *testing.T) {
	var failed []error
	defer func(f func(error)) { fail = f }(fail)
	fail = func(err error) { failed = append(failed, err) }

	w, err := Open(t.TempDir(), "publisher", "shop")
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	w.Accept("a", "x:1")
	if len(failed) != 1 || !strings.Contains(failed[0].Error(), "after Close") {
		t.Errorf("after Close: %v", failed)
	}

	w, err = Open(t.TempDir(), "publisher", "shop")
	if err != nil {
		t.Fatal(err)
	}
	_ = w.f.Close()
	w.Accept("a", "x:1")
	if len(failed) != 2 || !errors.Is(failed[1], os.ErrClosed) {
		t.Errorf("a write that fails: %v", failed)
	}
}

func TestFieldsSurvive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOfN(rapid.String(), 2, 2).Draw(t, "fields")
		b := []byte("1\t2\tA")
		for _, s := range in {
			b = appendField(append(b, '\t'), s)
		}
		l, err := Parse(string(b))
		if err != nil || !slices.Equal(l.Fields, in) {
			t.Fatalf("%q came back as %q, %v", in, l.Fields, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("1\t2\tA\torder.placed\tshop:1")
	f.Add("1\t2\tR\ta\tx:1\t\"why\\t\"")
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := Parse(s); err == nil && len(l.Fields) != widths[l.Kind] {
			t.Errorf("%q: %d fields", s, len(l.Fields))
		}
	})
}

func TestIDs(t *testing.T) {
	if p, n, ok := SplitID(ID("shop:a", 12)); p != "shop:a" || n != 12 || !ok {
		t.Errorf("got %q, %d, %v", p, n, ok)
	}
	for _, bad := range []string{"", "x", ":1", "x:", "x:y"} {
		if _, _, ok := SplitID(bad); ok {
			t.Errorf("%q was taken for an id", bad)
		}
	}
}
