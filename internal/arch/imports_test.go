package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/tidings-go/tidings"

// A pkg is what go list says of a package. Our own packages are named as the
// go command's patterns name them: "." and "./hub".
type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string // not those of tests
	Deps       []string // all of Imports, theirs, and so on
}

// A rule restricts what packages that match of may import. Patterns are
// the go command's; "./x/..." means x and everything below it, which may import
// each other.
type rule struct {
	of  string
	why string

	only  []string // of our own packages, import these alone; nil: any
	never []string // not even through other packages
	std   bool     // link the standard library and our own packages alone
}

// Planted defects are compiled in by a build tag only, and wherever the drill
// must be able to catch them.
const mutant = "./internal/mutant"

var rules = []rule{
	{
		of: ".", std: true, never: []string{"net/http"},
		only: []string{"./adapter/...", "./internal/..."},
		why:  "whoever imports the bus pays for all it links: net/http alone adds 4 MB, and a driver belongs to the program that chose it",
	},
	{
		of: "./adapter", only: []string{"./internal/topic"},
		why: "a third party's driver must compile against the driver side without the bus",
	},
	{
		of: "./adapter/...", never: []string{"."},
		why: "the bus imports the driver side, not the reverse; a driver that knows the bus would tie third parties to it",
	},
	{
		of: "./natsbus/...", only: []string{"./adapter", "./internal/topic", "./internal/loop", "./internal/bytesize", "./internal/spool", mutant},
		why: "the NATS driver gets what any third party's gets, or adapter would be no interface",
	},
	{
		of: "./hub/...", only: []string{"./adapter", "./natsbus/...", "./internal/loop", "./internal/topic", mutant}, never: []string{"."},
		why: "the broker must be able to outlive and to predate any version of the bus; to adapter it gives the scheme embed:",
	},
	{
		of: "./sdnotify/...", only: []string{"./internal/loop", mutant},
		why: "systemd's protocols are of use without the rest; both ends import them",
	},
	{
		of: "./supervisor/...", never: []string{".", "./natsbus/..."},
		why: "the master outlives all versions of the app and runs any program: it knows the process protocol, not the bus",
	},
	{
		of: "./worker/...", only: []string{".", "./sdnotify/...", "./internal/activity", "./internal/loop", mutant},
		why: "an app that is supervised must not link the supervisor, nor a driver it did not choose",
	},
	{
		of: "./redact/...", only: []string{"."}, std: true,
		why: "whoever filters links nothing but what the bus links anyway, and it is on the public API, as a user's own would be",
	},
	{
		of: "./metrics/...", only: []string{"."}, std: true,
		why: "every app may link it, whatever its monitoring is; Prometheus' own library is for its tests",
	},
	{
		of: "./subscriber/...", only: []string{".", "./internal/topic"}, std: true,
		why: "it is sugar on the public API: what it needs besides the grammar of names, users would need too",
	},
	{
		of: "./deadletter/...", only: []string{"./adapter", "./internal/tool", "./internal/topic"}, std: true,
		why: "it acts on a transport, of which the program chooses the driver, and works where no bus is",
	},
	{
		of: "./replay/...", only: []string{"./adapter", "./internal/tool", "./internal/topic"}, std: true,
		why: "it acts on a transport, of which the program chooses the driver, and works where no bus is",
	},
	{
		of: "./report/...", only: []string{".", "./redact", "./internal/topic"}, std: true,
		why: "it is sugar on the public API: what it needs besides the grammar of names, users would need too",
	},
	{
		of: "./idempotent", only: []string{"."}, std: true,
		why: "who keeps ids in a SQL database chose a driver, and needs nothing of NATS",
	},
	{
		of: "./idempotent/natskv", only: []string{".", "./internal/loop"},
		why: "it works on a connection of the application's own, beside whatever the bus has",
	},
	{
		of: "./...", never: []string{"modernc.org/sqlite"},
		why: "it is the real database of tests, 7 MB that nobody who imports us may link",
	},
	{
		of: "./...", never: []string{"go.etcd.io/bbolt"},
		why: "it is what the spool is measured against, in a benchmark",
	},
	{
		of: "./examples/...", only: []string{".", "./adapter/...", "./natsbus/...", "./hub/...", "./worker/...", "./sdnotify/...", "./supervisor/...", "./drill/...", "./tidingstest/...", "./bridge/...", "./dashboard/...", "./examples/..."},
		why: "an example shows what a user can write, and a user cannot import internal packages",
	},
	{
		of: "./tidingstest/...", only: []string{"."}, std: true,
		why: "it is linked by our users' tests: what it imports they download, and what it needs of the bus they may need too",
	},
	{
		of: "./internal/loop", only: []string{}, std: true,
		why: "everything imports it",
	},
	{
		of: "./internal/spool", only: []string{"./internal/loop", mutant},
		why: "it keeps bytes on a disk, for whatever driver, and for the command that looks at them",
	},
	{
		of: "./internal/activity", only: []string{}, std: true,
		why: "the bus links it, and so does the master, which knows nothing of the bus",
	},
	{
		of: mutant, only: []string{}, std: true,
		why: "everything may import it",
	},
	{
		of: "./...", never: []string{"./internal/testkit"},
		why: "it links package testing and nats-server: import it from _test.go files only",
	},
}

func TestImports(t *testing.T) {
	for _, v := range breaches(rules, packages(t)) {
		t.Error(v)
	}
}

// breaches returns a sentence for each import that a rule forbids.
func breaches(rules []rule, pkgs []pkg) []string {
	var out []string
	for _, p := range pkgs {
		for _, r := range rules {
			if !match(r.of, p.ImportPath) {
				continue
			}
			for _, what := range r.check(p) {
				out = append(out, fmt.Sprintf("%s %s\n\twhy not: %s", p.ImportPath, what, r.why))
			}
		}
	}
	return out
}

func (r rule) check(p pkg) (out []string) {
	for _, i := range p.Imports {
		if r.only != nil && ours(i) && !match(r.of, i) && !matchAny(r.only, i) {
			out = append(out, fmt.Sprintf("imports %s; of this module it may import only %q", i, r.only))
		}
	}
	for _, d := range p.Deps {
		through := ""
		if !slices.Contains(p.Imports, d) {
			through = " through another package (go list -deps shows which)"
		}
		if matchAny(r.never, d) {
			out = append(out, "imports "+d+through)
		}
		if r.std && !ours(d) && !std(d) {
			out = append(out, "imports "+d+through+", which is not of the standard library")
		}
	}
	return out
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

func match(pattern, path string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == tree || strings.HasPrefix(path, tree+"/")
	}
	return pattern == path
}

func ours(path string) bool { return match("./...", path) }

func std(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first == "vendor" || !strings.Contains(first, ".")
}

// packages lists the module's packages. One that does not compile is listed
// too: that is for the compiler to say.
var list = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Imports,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", cmd, err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, fmt.Errorf("%v: %w", cmd, err)
		}
		p.ImportPath = shorten(p.ImportPath)
		for _, names := range [][]string{p.Imports, p.Deps} {
			for i := range names {
				names[i] = shorten(names[i])
			}
		}
		pkgs = append(pkgs, p)
	}
})

func packages(t *testing.T) []pkg {
	t.Helper()
	pkgs, err := list()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

func shorten(path string) string {
	if path == module {
		return "."
	}
	if rest, ok := strings.CutPrefix(path, module+"/"); ok {
		return "./" + rest
	}
	return path
}

// A rule that catches nothing looks like one that is kept.
func TestRulesBite(t *testing.T) {
	for _, c := range []struct {
		breach  string
		pkg     string
		imports string
		through string
	}{
		{breach: "net/http", pkg: ".", imports: "net/http"},
		{breach: "net/http", pkg: ".", imports: "expvar", through: "net/http"},
		{breach: "github.com/nats-io/nats.go", pkg: ".", imports: "./adapter", through: "github.com/nats-io/nats.go"},
		{breach: "./natsbus", pkg: ".", imports: "./natsbus"},
		{breach: ".", pkg: "./adapter", imports: "."},
		{breach: "./internal/loop", pkg: "./adapter", imports: "./internal/loop"},
		{breach: ".", pkg: "./adapter/memory", imports: "./adapter", through: "."},
		{breach: ".", pkg: "./natsbus", imports: "."},
		{breach: "./worker", pkg: "./natsbus/spool", imports: "./worker"},
		{breach: ".", pkg: "./hub", imports: "."},
		{breach: ".", pkg: "./sdnotify", imports: "."},
		{breach: ".", pkg: "./supervisor", imports: "./drill", through: "."},
		{breach: "./natsbus", pkg: "./supervisor", imports: "./natsbus"},
		{breach: "./natsbus", pkg: "./worker", imports: "./natsbus"},
		{breach: "./natsbus", pkg: "./deadletter", imports: "./natsbus"},
		{breach: "./natsbus", pkg: "./replay", imports: "./natsbus"},
		{breach: "./internal/loop", pkg: "./examples/shop", imports: "./internal/loop"},
		{breach: "./internal/loop", pkg: "./tidingstest", imports: "./internal/loop"},
		{breach: "go.uber.org/goleak", pkg: "./tidingstest", imports: "go.uber.org/goleak"},
		{breach: "./hub", pkg: "./internal/loop", imports: "./hub"},
		{breach: "./natsbus", pkg: "./internal/spool", imports: "./natsbus"},
		{breach: "./internal/loop", pkg: "./internal/mutant", imports: "./internal/loop"},
		{breach: "github.com/nats-io/nats.go", pkg: "./idempotent", imports: "./idempotent/natskv", through: "github.com/nats-io/nats.go"},
		{breach: "./natsbus", pkg: "./idempotent/natskv", imports: "./natsbus"},
		{breach: "modernc.org/sqlite", pkg: "./idempotent", imports: "modernc.org/sqlite"},
		{breach: "modernc.org/sqlite", pkg: "./natsbus", imports: "./adapter", through: "modernc.org/sqlite"},
		{breach: "go.etcd.io/bbolt", pkg: "./internal/spool", imports: "go.etcd.io/bbolt"},
		{breach: "./internal/testkit", pkg: "./hub", imports: "./natsbus", through: "./internal/testkit"},

		{pkg: ".", imports: "./adapter", through: "vendor/golang.org/x/sys/cpu"},
		{pkg: "./natsbus/spool", imports: "./natsbus", through: "github.com/nats-io/nats.go"},
		{pkg: "./worker", imports: ".", through: "./adapter"},
		{pkg: "./examples/shop", imports: "./natsbus", through: "./internal/topic"},
	} {
		p := pkg{ImportPath: c.pkg, Imports: []string{c.imports}, Deps: []string{c.imports}}
		if c.through != "" {
			p.Deps = append(p.Deps, c.through)
		}
		got := strings.Join(breaches(rules, []pkg{p}), "\n")
		if c.breach == "" && got != "" {
			t.Errorf("%s may import %s and, through it, %s, but:\n%s", c.pkg, c.imports, c.through, got)
		}
		if c.breach != "" && !strings.Contains(got, "imports "+c.breach) {
			t.Errorf("%s imports %s and, through it, %q: no rule minds %s:\n%s", c.pkg, c.imports, c.through, c.breach, got)
		}
	}
}
