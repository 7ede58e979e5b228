//go:build unix && mutants

package supervisor_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/supervisor"
)

// The drill's mutant must really be one.
func TestMutantStopsBeforeReady(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start("TIDINGS_MUTANT=stop-before-ready")
	old := r.awaitKind(supervisor.EventWorkerReady).PID
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGHUP)
	next := r.awaitKind(supervisor.EventWorkerStarted).PID
	if r.index(supervisor.EventWorkerExited, old) > r.index(supervisor.EventWorkerStarted, next) {
		t.Error("the old worker was still there")
	}
	if !strings.Contains(r.stderr.String(), "on purpose") {
		t.Error("no warning")
	}
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}
