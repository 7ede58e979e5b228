package arch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxLines is what one can read in one sitting.
const maxLines = 600

// A source is one Go file of the module, whatever its build tags say.
type source struct {
	path  string // relative to the module
	text  []byte
	fset  *token.FileSet
	ast   *ast.File
	tests bool
}

// sources parses every Go file of the packages that exist. Reading the files
// here, and not in a child process, also tells go test when its cached result
// is out of date.
func sources(t *testing.T) []source {
	t.Helper()
	pkgs := packages(t)
	if len(pkgs) == 0 {
		t.Fatal("go list found no packages")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out []source
	for _, p := range pkgs {
		files, err := os.ReadDir(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f.Name(), ".go") {
				continue
			}
			name := filepath.Join(p.Dir, f.Name())
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parse(rel, text)
			if err != nil {
				t.Error(err)
				continue
			}
			out = append(out, s)
		}
	}
	return out
}

func parse(path string, text []byte) (source, error) {
	s := source{path: path, text: text, fset: token.NewFileSet(), tests: strings.HasSuffix(path, "_test.go")}
	var err error
	s.ast, err = parser.ParseFile(s.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	return s, err
}

func (s source) at(n ast.Node) string { return s.fset.Position(n.Pos()).String() }

func TestGoroutinesHaveOwners(t *testing.T) {
	for _, s := range sources(t) {
		for _, at := range bareGo(s) {
			t.Errorf("%s: go statement\n\twhy not: use internal/loop: its goroutines can be stopped and waited for, so a drain can promise that nothing runs on", at)
		}
	}
}

func bareGo(s source) (at []string) {
	if s.tests || filepath.ToSlash(filepath.Dir(s.path)) == "internal/loop" {
		return nil
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if g, ok := n.(*ast.GoStmt); ok {
			at = append(at, s.at(g))
		}
		return true
	})
	return at
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, s := range sources(t) {
		for _, at := range sleeps(s) {
			t.Errorf("%s: time.Sleep in a test\n\twhy not: too short it fails on a busy machine, too long it wastes everybody's time; wait for a channel, use testing/synctest, or poll with testkit.Until", at)
		}
	}
}

// sleeps finds the calls of time.Sleep in tests, except within a call of
// synctest.Test, where time is simulated and a sleep is exact.
func sleeps(s source) (at []string) {
	if !s.tests {
		return nil
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if calls(call, "synctest", "Test") {
			return false
		}
		if calls(call, "time", "Sleep") {
			at = append(at, s.at(call))
		}
		return true
	})
	return at
}

func calls(c *ast.CallExpr, pkg, name string) bool {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}

func TestFilesAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !ast.IsGenerated(s.ast) {
			t.Errorf("%s: %d lines, more than %d\n\twhy not: a file is one noun that can be read in one sitting; split it by what it is about", s.path, n, maxLines)
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for _, what := range docs(sources(t)) {
		t.Error(what)
	}
}

// docs returns a sentence for each package without exactly one doc comment.
func docs(all []source) (out []string) {
	found := map[string][]string{}
	for _, s := range all {
		dir := filepath.Dir(s.path)
		if _, ok := found[dir]; !ok {
			found[dir] = nil
		}
		if s.tests || s.ast.Doc == nil {
			continue
		}
		found[dir] = append(found[dir], s.path)
		want := "Package " + s.ast.Name.Name + " "
		if s.ast.Name.Name != "main" && !strings.HasPrefix(s.ast.Doc.Text(), want) {
			out = append(out, fmt.Sprintf("%s: the package comment does not begin with %q, so that tools do not take it for one", s.at(s.ast), want))
		}
	}
	for dir, files := range found {
		if len(files) != 1 {
			out = append(out, fmt.Sprintf("package in %s has %d package comments %q, want one\n\twhy: it states what the package promises, in one place", dir, len(files), files))
		}
	}
	return out
}

func TestNoReplace(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s\n\twhy not: a replace counts in this repository only, so users would build something else than we test; and go install refuses it", r.Old.Path)
	}
}

func TestSourceChecksBite(t *testing.T) {
	file := func(path, text string) source {
		s, err := parse(path, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const goes = "package p\nfunc f() { go f() }\n"
	const dozes = "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n"
	const simulated = "package p\nimport (\"time\"; \"testing/synctest\")\nfunc f() { synctest.Test(nil, func() { time.Sleep(1) }) }\n"
	for _, c := range []struct {
		what string
		got  []string
		want int
	}{
		{"go statement", bareGo(file("hub/a.go", goes)), 1},
		{"go statement in a test", bareGo(file("hub/a_test.go", goes)), 0},
		{"go statement in internal/loop", bareGo(file("internal/loop/a.go", goes)), 0},
		{"sleep in a test", sleeps(file("hub/a_test.go", dozes)), 1},
		{"sleep in the code", sleeps(file("hub/a.go", dozes)), 0},
		{"simulated sleep", sleeps(file("hub/a_test.go", simulated)), 0},
		{"no doc", docs([]source{file("p/a.go", "package p"), file("p/b_test.go", "// Package p is.\npackage p")}), 1},
		{"one doc", docs([]source{file("p/a.go", "package p"), file("p/b.go", "// Package p is.\npackage p")}), 0},
		{"two docs", docs([]source{file("p/a.go", "// Package p is.\npackage p"), file("p/b.go", "// Package p is.\npackage p")}), 1},
		{"doc of another name", docs([]source{file("p/a.go", "// Some words.\npackage p")}), 1},
		{"command", docs([]source{file("p/a.go", "// Some words.\npackage main")}), 0},
	} {
		if len(c.got) != c.want {
			t.Errorf("%s: %d complaints %q, want %d", c.what, len(c.got), c.got, c.want)
		}
	}
}
