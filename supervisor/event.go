//go:build unix

package supervisor

import (
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/sdnotify"
)

// Kinds of [Event].
const (
	EventMasterStarted    = "master_started"
	EventWorkerStarted    = "worker_started"
	EventWorkerReady      = "worker_ready"
	EventWorkerQuitSent   = "worker_quit_sent" // QUIT or TERM, as Signal says
	EventWorkerKillSent   = "worker_kill_sent" // it did not go, start or answer in time
	EventWorkerExited     = "worker_exited"
	EventWorkerBackoff    = "worker_backoff"   // it died, and is started again after a pause
	EventGenerationReady  = "generation_ready" // every worker is ready and of this generation
	EventRollFailed       = "roll_failed"      // a rolling restart ended early; old workers stay
	EventReexecStarted    = "reexec_started"
	EventReexecRefused    = "reexec_refused"
	EventReexecDied       = "reexec_died"
	EventDeployStarted    = "deploy_started"
	EventDeployReady      = "deploy_ready"       // every new worker is; the probation begins
	EventDeployCommitted  = "deploy_committed"   // old workers are asked to go
	EventDeployRolledBack = "deploy_rolled_back" // new workers are asked to go
	EventDeployEnded      = "deploy_ended"       // and are gone
	EventSignal           = "signal"
	EventRequest          = "request"     // over the control socket; Signal, if any, has the same effect, Reason is why it was refused
	EventHubStarted       = "hub_started" // this master's, see Config.Hub
	EventHubReady         = "hub_ready"   // whoever's it is
	EventHubExited        = "hub_exited"  // this master's
	EventStopped          = "stopped"
)

// An Event is one line of [Config.Events], as JSON.
type Event struct {
	Time       time.Time `json:"time"`
	MonoNS     int64     `json:"mono_ns"` // CLOCK_MONOTONIC: comparable between processes of a machine
	Event      string    `json:"event"`
	Master     int       `json:"master"`
	PID        int       `json:"pid,omitempty"` // of the worker or the new master
	Generation int       `json:"generation,omitempty"`
	Slot       *int      `json:"slot,omitempty"`      // which of the workers, from 0
	ExitCode   *int      `json:"exit_code,omitempty"` // absent if a signal ended it
	Signal     string    `json:"signal,omitempty"`    // what ended it ("killed"), was sent to it ("QUIT") or was received ("HUP")
	Request    string    `json:"request,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	// Report is the last that a worker that exited has sent, if any. After a drain it
	// is Final: what the worker took, and what became of it.
	Report *sdnotify.Report `json:"report,omitempty"`
}

// emit completes e and writes it as one write, so that the lines of two
// masters that append to one file do not mix.
func (m *master) emit(e Event) {
	if m.cfg.Events == nil || m.eventsFailed {
		return
	}
	e.Time = time.Now()
	e.Master = os.Getpid()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err == nil {
		e.MonoNS = ts.Nano()
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = m.cfg.Events.Write(append(line, '\n'))
	}
	if err != nil {
		// Workers matter more than their record; but whoever relies on it must
		// learn that it has a hole.
		m.eventsFailed = true
		m.log.Error("the event stream has ended: it cannot be written", "err", err)
	}
}

// emitWorker is emit for what concerns a worker.
func (m *master) emitWorker(kind string, w *worker, e Event) {
	e.Event, e.PID, e.Generation, e.Slot = kind, w.pid, w.generation, &w.slot
	m.emit(e)
}

// exitOf puts a wait status into the fields of e, and words.
func exitOf(status unix.WaitStatus, e *Event) string {
	if status.Signaled() {
		e.Signal = status.Signal().String()
		return "signal: " + e.Signal
	}
	code := status.ExitStatus()
	e.ExitCode = &code
	return "exit status " + itoa(code)
}
