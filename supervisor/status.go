//go:build unix

package supervisor

import (
	"cmp"
	"os"

	"runtime/debug"
	"slices"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
)

// A Status is how a master is, as `tidings status` shows it.
type Status struct {
	Master     int            `json:"master"` // pid
	State      string         `json:"state"`  // "starting", "running", "rolling", "deploying", "paused", "stopping"
	Since      time.Time      `json:"since"`  // it started
	Version    string         `json:"version"`
	Command    []string       `json:"command"`
	Generation int            `json:"generation"`           // the latest that was begun
	Ready      int            `json:"ready,omitempty"`      // the latest of which every worker was ready
	Want       int            `json:"want"`                 // how many workers there shall be
	Reloads    int            `json:"reloads,omitempty"`    // rolling restarts that wait for their turn
	NewMaster  int            `json:"new_master,omitempty"` // that this one has executed, while it lives
	OldMaster  int            `json:"old_master,omitempty"` // that has executed this one, while it lives
	PIDFile    string         `json:"pid_file,omitempty"`
	Control    string         `json:"control"`
	Sockets    []string       `json:"sockets,omitempty"` // their names
	Requests   uint64         `json:"requests"`          // taken over the control socket
	Workers    []WorkerStatus `json:"workers"`
	Hub        *HubStatus     `json:"hub,omitempty"`    // that this master keeps
	Deploy     *Receipt       `json:"deploy,omitempty"` // that is under way, or the last one
}

// A WorkerStatus is a worker, or the place of one that has died.
type WorkerStatus struct {
	Slot       int        `json:"slot"`
	PID        int        `json:"pid,omitempty"`
	Generation int        `json:"generation,omitempty"`
	State      string     `json:"state"` // "starting", "ready", "draining", "stopping", "hung", "killed", "waiting" to be started again
	Since      time.Time  `json:"since,omitzero"`
	Deadline   *time.Time `json:"deadline,omitempty"` // when the state ends, if nothing happens
	Restarts   int        `json:"restarts"`           // deaths in this slot that nobody had asked for
	LastDeath  string     `json:"last_death,omitempty"`
	Program    string     `json:"program,omitempty"`      // the file it was started from, with symbolic links followed
	Memory     int64      `json:"memory_bytes,omitempty"` // resident; 0 if not known
	Status     string     `json:"status,omitempty"`       // what it says of itself
	sdnotify.Report
}

func (s workerState) String() string {
	return [...]string{"starting", "ready", "draining", "stopping", "hung", "killed"}[s]
}

// status is a copy of what the master knows.
func (m *master) status(now time.Time) Status {
	s := Status{
		Master: os.Getpid(), State: m.state(), Since: m.started, Version: buildVersion(), Command: slices.Clone(m.release.command),
		Generation: m.release.generation, Ready: m.announced, Want: m.want, Reloads: m.rolls, NewMaster: m.child,
		PIDFile: m.pid.path, Control: m.control.path, Requests: m.requests, Workers: []WorkerStatus{}, Hub: m.hub.status(),
	}
	if m.parent.alive() {
		s.OldMaster = m.parent.pid
	}
	if s.Deploy = m.deployed; m.deploy != nil {
		r := m.deploy.receipt()
		s.Deploy = &r
	}
	for _, socket := range m.sockets {
		s.Sockets = append(s.Sockets, socket.name)
	}
	for _, w := range m.workers {
		s.Workers = append(s.Workers, m.workerStatus(w))
	}
	for i, slot := range m.slots {
		if slot.cur == nil && slot.next == nil && i < m.want && m.stopping == running {
			at := slot.retryAt
			s.Workers = append(s.Workers, WorkerStatus{Slot: i, State: "waiting", Since: slot.diedAt, Deadline: &at, Restarts: slot.restarts, LastDeath: slot.lastDeath})
		}
	}
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.PID, b.PID))
	})
	return s
}

func (m *master) state() string {
	switch {
	case m.stopping != running:
		return "stopping"
	case m.deploy != nil:
		return "deploying"
	case m.roll != nil:
		return "rolling"
	case m.want == 0:
		return "paused"
	case m.announced != m.release.generation:
		return "starting"
	}
	return "running"
}

func (m *master) workerStatus(w *worker) WorkerStatus {
	s := WorkerStatus{Slot: w.slot, PID: w.pid, Generation: w.generation, State: w.state.String(), Since: w.since, Program: w.executed, Status: w.says, Report: w.report}
	if !w.deadline.IsZero() {
		at := w.deadline
		s.Deadline = &at
	}
	if w.slot < len(m.slots) {
		s.Restarts, s.LastDeath = m.slots[w.slot].restarts, m.slots[w.slot].lastDeath
	}
	return s
}

// programOf is the file that path leads to: a release, where path is a symbolic
// link to the current one.
func programOf(path string) string {
	if real, err := realPath(path); err == nil {
		return real
	}
	return path
}

func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
