//go:build unix && mutants

package supervisor_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// The drill's mutants must really be some.
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

func TestMutantBurstLosesKinds(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start("TIDINGS_MUTANT=burst-loses-kinds")
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGSTOP)
	kinds := []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGUSR2, syscall.SIGWINCH}
	for _, sig := range kinds {
		r.signal(sig)
	}
	r.signal(syscall.SIGCONT)
	testkit.Until(t, patience, func() bool {
		_ = r.cmd.Process.Signal(syscall.SIGTERM) // may be lost, too, or come too late
		select {
		case <-r.exited:
			return true
		default:
			return false
		}
	})
	taken := map[string]bool{}
	for e := r.awaitKind(supervisor.EventSignal); e.Signal != "TERM"; e = r.awaitKind(supervisor.EventSignal) {
		taken[e.Signal] = true
	}
	if len(taken) == len(kinds) {
		t.Errorf("all kinds took effect: %v", taken)
	}
}

func TestMutantUpgradeStopsOldFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{}).start("TIDINGS_MUTANT=upgrade-stops-old-first")
	old := r.awaitKind(supervisor.EventWorkerReady).PID
	r.awaitKind(supervisor.EventGenerationReady)
	r.mode("silent")
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	r.await("the old worker's end", func(e supervisor.Event) bool { return e.Event == supervisor.EventWorkerExited && e.PID == old })
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	if err := syscall.Kill(next, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	r.await("the new master's stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
}
