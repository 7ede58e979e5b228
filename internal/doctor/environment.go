package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tidings-go/tidings/natsbus"
)

// variables are those that Tidings reads, and whether their values may be shown.
var variables = map[string]bool{
	"TIDINGS_URL": false, "TIDINGS_PREFIX": true, "TIDINGS_APP": true, "TIDINGS_ROUTES": true,
	"TIDINGS_SPOOL_DIR": true, "TIDINGS_SPOOL_MAX": true, "TIDINGS_CONTROL": true, "TIDINGS_PID_FILE": true,
	// The master's, for its workers.
	"TIDINGS_GENERATION": true, "TIDINGS_WORKER": true, "TIDINGS_PARENT_FD": true, "TIDINGS_DRAIN_TIMEOUT": true, "TIDINGS_STOP_TIMEOUT": true,
	"TIDINGS_REPORT": true, "TIDINGS_OWNED_SOCKETS": true, "TIDINGS_REEXEC": true, "TIDINGS_EXEC_PROGRAM": true, "TIDINGS_EXEC_UMASK": true,
	// For those who develop Tidings.
	"TIDINGS_DRILL_DIR": true, "TIDINGS_MUTANT": true,
}

// environment looks at what TIDINGS_* there is. Values that nobody knows are not shown:
// they may be secrets under a name of somebody's own.
func (e *exam) environment() {
	const name = "environment"
	var set, unknown, bad []string
	for _, v := range e.o.Environ {
		key, value, _ := strings.Cut(v, "=")
		shown, known := variables[key]
		switch {
		case !strings.HasPrefix(key, "TIDINGS_"):
			continue
		case !known:
			unknown = append(unknown, fmt.Sprintf("%s (nearest: %s)", key, nearest(key)))
			continue
		case key == "TIDINGS_URL":
			target, err := natsbus.ParseTarget(value)
			if err != nil {
				bad = append(bad, fmt.Sprintf("%s: %v", key, err))
				continue
			}
			value = target.String()
		case key == "TIDINGS_ROUTES":
			if _, err := readRoutes(value); err != nil {
				bad = append(bad, fmt.Sprintf("%s: %v", key, err))
			}
		}
		if shown {
			e.fact("environment."+key, value)
		}
		set = append(set, key+"="+value)
	}
	slices.Sort(set)
	switch {
	case bad != nil:
		e.fail(name, "correct them", "%s", strings.Join(bad, "; "))
	case unknown != nil:
		e.warn(name, "correct the names, or give your own another prefix", "nothing reads %s", strings.Join(unknown, ", "))
	case set == nil:
		e.ok(name, "no TIDINGS_ variable is set")
	default:
		e.ok(name, "%s", strings.Join(set, " "))
	}
}

// nearest is the known variable that shares the longest beginning.
func nearest(key string) string {
	shared := func(s string) (n int) {
		for n < min(len(s), len(key)) && s[n] == key[n] {
			n++
		}
		return n
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(variables)), func(a, b string) int { return shared(a) - shared(b) })
}
