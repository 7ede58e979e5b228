//go:build unix

package supervisor

import (
	"errors"
	"os"
	"time"
)

// requestTable is what the control socket can ask for. Those that have the effect of
// a signal are counted: two reloads are two rolling restarts, where two HUP that meet
// are one.
var requestTable = []requestRow{
	{"reload", "HUP", func(m *master, _ []byte) (Done, error) {
		m.restoreWorkers()
		m.rolls++
		return Done{Generation: m.generation + m.rolls}, nil
	}},
	{"upgrade", "USR2", func(m *master, _ []byte) (Done, error) {
		err := m.reexec()
		return Done{Generation: m.generation, PID: m.child}, err
	}},
	{"scale-up", "TTIN", func(m *master, _ []byte) (Done, error) { m.onTtin(); return Done{}, nil }},
	{"scale-down", "TTOU", func(m *master, _ []byte) (Done, error) {
		if m.want == 0 {
			return Done{}, errors.New("there is no worker to take away")
		}
		m.onTtou()
		return Done{}, nil
	}},
	{"reopen", "USR1", func(m *master, _ []byte) (Done, error) { return Done{}, m.reopen() }},
	{"pause", "WINCH", func(m *master, _ []byte) (Done, error) { m.pause(); return Done{}, nil }},
	{"deploy", "", (*master).onDeploy},
	{"abort", "", func(m *master, _ []byte) (Done, error) { return m.onAbort() }},
	{"quit", "QUIT", func(m *master, _ []byte) (Done, error) { m.stop(stopGraceful, "asked to quit"); return Done{}, nil }},
	{"stop", "INT", func(m *master, _ []byte) (Done, error) { m.stop(stopQuick, "asked to stop"); return Done{}, nil }},
}

type requestRow struct {
	name   string
	signal string // whose effect it has
	apply  func(m *master, body []byte) (Done, error)
}

// A RequestHelp describes what can be asked over the control socket.
type RequestHelp struct{ Name, Signal string }

// Requests returns what [Control.Request] takes, each with the signal that has the
// same effect. The slice is the caller's.
func Requests() []RequestHelp {
	var help []RequestHelp
	for _, row := range requestTable {
		if row.signal != "" {
			help = append(help, RequestHelp{row.name, row.signal})
		}
	}
	return help
}

func requestNames() []string {
	var names []string
	for _, row := range requestTable {
		names = append(names, row.name)
	}
	return names
}

// Done is the answer to a request that the master has begun.
type Done struct {
	Master     int    `json:"master"`
	Requests   uint64 `json:"requests"`             // how many it has taken, this one included
	Workers    int    `json:"workers"`              // how many there shall be
	Generation int    `json:"generation,omitempty"` // that a reload, upgrade or deploy will make
	PID        int    `json:"pid,omitempty"`        // of the new master
	Deploy     int    `json:"deploy,omitempty"`     // its number
}

// respond does what a request asks for. A master that is stopping can only be
// stopped more quickly.
func (m *master) respond(r request) {
	if r.row == nil {
		r.answer <- answer{status: m.status(time.Now())}
		return
	}
	var d Done
	var err error
	if name := r.row.name; m.stopping != running && name != "quit" && name != "stop" && name != "reopen" {
		err = errors.New("this master is stopping")
	} else if d, err = r.row.apply(m, r.body); err == nil {
		m.requests++
	}
	e := Event{Event: EventRequest, Request: r.row.name, Signal: r.row.signal}
	if err != nil {
		e.Reason = err.Error()
	}
	m.emit(e)
	m.log.Info("request", "request", r.row.name, "err", err)
	d.Master, d.Requests, d.Workers = os.Getpid(), m.requests, m.want
	r.answer <- answer{done: d, err: err}
}
