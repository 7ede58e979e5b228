//go:build unix

package supervisor_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// reports has workers that start from now on tell this of their only subscription.
func (r *rig) reports(s sdnotify.SubscriptionReport) {
	r.t.Helper()
	s.Pattern, s.Group, s.Ready = "order.*", "billing", true
	text, err := json.Marshal(s)
	check(r.t, err)
	check(r.t, os.WriteFile(filepath.Join(r.dir, "report.new"), text, 0o600))
	check(r.t, os.Rename(filepath.Join(r.dir, "report.new"), filepath.Join(r.dir, "report")))
}

func (r *rig) deploy(ask supervisor.DeployRequest) supervisor.Done {
	r.t.Helper()
	d, err := r.control().Deploy(r.t.Context(), ask)
	check(r.t, err)
	return d
}

// awaitDeploy returns the receipt of the deploy, once it is over.
func (r *rig) awaitDeploy() *supervisor.Receipt {
	r.t.Helper()
	r.awaitKind(supervisor.EventDeployEnded)
	return r.status().Deploy
}

func pidsOf(s supervisor.Status) (pids []int) {
	for _, w := range s.Workers {
		pids = append(pids, w.PID)
	}
	return pids
}

// refused checks that err is there and says so.
func refused(t *testing.T, err error, why string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("refused with %v, want %q", err, why)
	}
}

// All new workers serve before the first old one is asked to go, no connection is
// refused, and the receipt has what the workers have told.
func TestDeployHandsOver(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"tcp://" + addr}})
	r.reports(sdnotify.SubscriptionReport{Durable: true, Received: 12, Handled: 10, Acked: 10, Failed: 2})
	startReady(r)
	old := pidsOf(r.status())
	c := startClient(addr)
	defer c.loop.StopAndWait()
	<-c.first
	r.reports(sdnotify.SubscriptionReport{Durable: true, Received: 3, Handled: 3, Acked: 3})
	d := r.deploy(supervisor.DeployRequest{Probation: 100 * time.Millisecond})
	receipt := r.awaitDeploy()
	c.loop.StopAndWait()
	if len(c.failed) > 0 {
		t.Errorf("%d connections failed, the first: %v", len(c.failed), c.failed[0])
	}
	if !receipt.Good() || !receipt.Over() || receipt.Generation != 2 || receipt.Deploy != d.Deploy || len(receipt.Generations) != 2 {
		t.Fatalf("receipt: %+v", receipt)
	}
	was, is := receipt.Generations[0], receipt.Generations[1]
	if s := was.Subscriptions[0]; was.New || s.Received != 24 || s.Handled != 20 || s.Acked != 20 || s.Failed != 4 {
		t.Errorf("old generation: %+v", was)
	}
	for _, k := range was.Workers {
		if k.Ended != "exit status 0" || !k.Counted || !slices.Contains(old, k.PID) {
			t.Errorf("old worker: %+v", k)
		}
	}
	if s := is.Subscriptions[0]; !is.New || s.Received != 6 || is.Workers[0].Ended != "" {
		t.Errorf("new generation: %+v", is)
	}
	ready := 0
	for _, e := range r.seen {
		switch {
		case e.Event == supervisor.EventWorkerReady && e.Generation == 2:
			ready++
		case e.Event == supervisor.EventWorkerQuitSent && ready < 2:
			t.Error("an old worker was asked to go before all new ones were ready")
		}
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// A version that does not prove itself takes itself back, whatever it fails at, and
// the old workers never stop.
func TestDeployRollsBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mode string
		old        sdnotify.SubscriptionReport
		new        sdnotify.SubscriptionReport
		ask        supervisor.DeployRequest
		probation  bool // reached
		atOnce     bool // or not: it ends so soon that its READY is heard after
		why        string
	}{
		{name: "does not boot", mode: "crash", why: "it ended before READY=1, exit status 3, with the last words: cannot reach the database"},
		{name: "is never ready", mode: "silent", why: "no READY=1 within 1s"},
		{name: "dies", mode: "dies", atOnce: true, why: "it ended unasked, exit status 4"},
		{name: "fails every event", mode: "ok", probation: true, old: sdnotify.SubscriptionReport{Handled: 100},
			new: sdnotify.SubscriptionReport{Failed: 1}, why: "order.* (group billing): "},
		{name: "fails more than the old", mode: "ok", probation: true, old: sdnotify.SubscriptionReport{Handled: 900, Failed: 100},
			new: sdnotify.SubscriptionReport{Handled: 50, Failed: 50}, ask: supervisor.DeployRequest{MaxErrors: 5}, why: "errors in "},
		{name: "drops", mode: "ok", probation: true, new: sdnotify.SubscriptionReport{Dropped: 1}, why: "1 errors in 0 attempts"},
		{name: "hangs", mode: "ok", probation: true, new: sdnotify.SubscriptionReport{Running: 1, Hung: 1}, why: "1 handlers hang"},
		{name: "finishes nothing", mode: "ok", probation: true, old: sdnotify.SubscriptionReport{Handled: 9},
			new: sdnotify.SubscriptionReport{Running: 1, Queued: 2}, ask: supervisor.DeployRequest{Probation: 200 * time.Millisecond}, why: "took 3 events and finished none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testConfig{ReadyTimeout: time.Second})
			r.cfg.State = filepath.Join(r.dir, "state")
			r.runInstalled()
			r.reports(c.old)
			startReady(r)
			before := r.status()
			testkit.Until(t, patience, func() bool { before = r.status(); return len(before.Workers[0].Subscriptions) == 1 })
			r.mode(c.mode)
			r.reports(c.new)
			r.install("2")
			if c.ask.Probation == 0 {
				c.ask.Probation = time.Hour
			}
			r.deploy(c.ask)
			receipt := r.awaitDeploy()
			if receipt.State != supervisor.DeployRolledBack || !strings.Contains(receipt.Reason, c.why) || receipt.Good() || !c.atOnce && (receipt.Ready != nil) != c.probation {
				t.Errorf("receipt: %+v, want the reason %q", receipt, c.why)
			}
			after := r.status()
			if !slices.Equal(pidsOf(after), pidsOf(before)) || after.State != "running" || after.Generation != 1 {
				t.Errorf("before: %+v, after: %+v", before, after)
			}
			// The one that serves dies: it is started again as it was.
			r.mode("ok")
			check(t, syscall.Kill(after.Workers[0].PID, syscall.SIGKILL))
			r.awaitKind(supervisor.EventWorkerReady)
			r.awaitSaid("version 1", 2)
			r.signal(syscall.SIGTERM)
			r.awaitExit(0)
		})
	}
}

// An app that fails now and then does so after a deploy, too.
func TestDeployPutsUpWithWhatTheOldOnesDo(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.reports(sdnotify.SubscriptionReport{Handled: 900, Failed: 100})
	startReady(r)
	testkit.Until(t, patience, func() bool { return len(r.status().Workers[0].Subscriptions) == 1 })
	r.reports(sdnotify.SubscriptionReport{Handled: 85, Failed: 15})
	r.deploy(supervisor.DeployRequest{Probation: 100 * time.Millisecond})
	if receipt := r.awaitDeploy(); !receipt.Good() {
		t.Errorf("receipt: %+v", receipt)
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// What a deploy has made good is what HUP, a dead worker and the next master start.
func TestDeployOfAnotherCommand(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	r.cfg.State = filepath.Join(r.dir, "state")
	r.runInstalled()
	startReady(r)
	other := filepath.Join(r.dir, "other")
	writeProgram(t, other, "#!/bin/sh\necho the other one\nexec \"$@\"\n")
	command := append([]string{other}, r.cfg.Command[1:]...)
	r.deploy(supervisor.DeployRequest{Command: command})
	if receipt := r.awaitDeploy(); !receipt.Good() || !slices.Equal(receipt.Command, command) {
		t.Errorf("receipt: %+v", receipt)
	}
	r.awaitSaid("the other one", 1)
	check(t, syscall.Kill(r.status().Workers[0].PID, syscall.SIGKILL))
	r.awaitSaid("the other one", 2)
	r.awaitKind(supervisor.EventWorkerReady)
	r.signal(syscall.SIGHUP)
	r.await("generation 3", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventGenerationReady && e.Generation == 3
	})
	r.awaitSaid("the other one", 3)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
	r.start()
	r.awaitKind(supervisor.EventGenerationReady)
	r.awaitSaid("the other one", 4)
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// While a deploy is under way nothing else is begun; an old worker that dies is
// started again, since the deploy may be taken back.
func TestDeployIsAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	startReady(r)
	_, err := r.control().Abort(t.Context())
	refused(t, err, "no deploy is under way")
	_, err = r.control().Deploy(t.Context(), supervisor.DeployRequest{Command: []string{"/no/such/program"}})
	refused(t, err, "/no/such/program")
	d := r.deploy(supervisor.DeployRequest{Probation: time.Hour})
	r.awaitKind(supervisor.EventDeployReady)
	_, err = r.control().Deploy(t.Context(), supervisor.DeployRequest{})
	refused(t, err, fmt.Sprintf("deploy %d is not over: it is probation", d.Deploy))
	_, err = r.control().Request(t.Context(), "upgrade")
	refused(t, err, fmt.Sprintf("deploy %d is not over", d.Deploy))
	old := r.status().Workers[0]
	check(t, syscall.Kill(old.PID, syscall.SIGKILL))
	again := r.awaitKind(supervisor.EventWorkerReady)
	if again.Generation != 1 {
		t.Errorf("generation %d was started for a dead worker of the first", again.Generation)
	}
	reload, err := r.control().Request(t.Context(), "reload") // has its turn after
	check(t, err)
	_, err = r.control().Abort(t.Context())
	check(t, err)
	receipt := r.awaitDeploy()
	if receipt.State != supervisor.DeployRolledBack || receipt.Reason != "it was aborted on request" {
		t.Errorf("receipt: %+v", receipt)
	}
	// One was killed, and it told no counts: whatever it had is not known.
	if len(receipt.Unaccounted) != 1 || !strings.Contains(receipt.Unaccounted[0], fmt.Sprint(old.PID)) {
		t.Errorf("unaccounted for: %q", receipt.Unaccounted)
	}
	if e := r.awaitKind(supervisor.EventGenerationReady); e.Generation != reload.Generation || e.Generation != 3 {
		t.Errorf("generation %d is ready, want %d", e.Generation, reload.Generation)
	}
	_, err = r.control().Request(t.Context(), "pause")
	check(t, err)
	_, err = r.control().Deploy(t.Context(), supervisor.DeployRequest{})
	refused(t, err, "the workers are paused")
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

// A master that is stopped takes both generations with it, and says what became of
// the deploy.
func TestStopDuringADeploy(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	startReady(r)
	r.deploy(supervisor.DeployRequest{Probation: time.Hour})
	r.awaitKind(supervisor.EventDeployReady)
	r.signal(syscall.SIGTTIN)
	r.await("the third worker of the new generation", func(e supervisor.Event) bool {
		return e.Event == supervisor.EventWorkerReady && e.Generation == 2 && *e.Slot == 1
	})
	r.signal(syscall.SIGQUIT)
	if e := r.awaitKind(supervisor.EventDeployEnded); e.Reason != "the master was stopped: QUIT" {
		t.Errorf("it ended with %+v", e)
	}
	r.awaitKind(supervisor.EventStopped)
	r.awaitExit(0)
	if n := len(r.living()); n != 0 { // stopped is the last that the master says
		t.Errorf("%d workers are left", n)
	}
}

// The receipt tells what an old worker could not finish: what is lost, what comes
// again, and who did not say.
func TestReceiptTellsWhatIsLost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mode string
		report     sdnotify.SubscriptionReport
		lost       uint64
		left, gone int
	}{
		{name: "live", mode: "ok", report: sdnotify.SubscriptionReport{Left: 2, Dropped: 7}, lost: 2},
		{name: "durable", mode: "ok", report: sdnotify.SubscriptionReport{Durable: true, Left: 3000}, left: 3000},
		{name: "killed", mode: "stubborn", report: sdnotify.SubscriptionReport{}, gone: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testConfig{DrainTimeout: time.Second})
			if c.mode == "ok" {
				r.cfg.DrainTimeout = patience
			}
			r.mode(c.mode)
			r.reports(c.report)
			startReady(r)
			testkit.Until(t, patience, func() bool { return len(r.status().Workers[0].Subscriptions) == 1 })
			r.reports(sdnotify.SubscriptionReport{Durable: c.report.Durable})
			r.mode("ok")
			r.deploy(supervisor.DeployRequest{})
			receipt := r.awaitDeploy()
			named := 0
			for _, l := range receipt.Generations[0].Workers[0].Left {
				named += len(l.IDs)
			}
			if receipt.State != supervisor.DeployCommitted || receipt.Lost != c.lost || named != c.left || len(receipt.Unaccounted) != c.gone || receipt.Good() != (c.lost == 0 && c.gone == 0) {
				t.Errorf("receipt: %+v, %d events named", receipt, named)
			}
			r.signal(syscall.SIGTERM)
			r.awaitExit(0)
		})
	}
}
