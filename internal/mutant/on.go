//go:build mutants

package mutant

import (
	"fmt"
	"os"
)

var wanted = os.Getenv("TIDINGS_MUTANT")

func init() {
	if wanted != "" {
		fmt.Fprintln(os.Stderr, "WARNING: this process runs with the defect", wanted, "on purpose")
	}
}

// On reports whether TIDINGS_MUTANT names the defect.
func On(name string) bool { return name == wanted }
