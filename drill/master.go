package drill

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

// masters follows the event stream of the master and of those that replace it.
type masters struct {
	file    string
	off     int64
	events  []supervisor.Event
	current int // pid of the newest master
	ready   int // newest generation that was announced ready
	workers map[int]*workerState
	all     []int // pids of all masters
	quits   []Quit
	exits   []Exit
	problem string
}

type workerState struct {
	pid, generation, master int
	ready, gone             Mono
}

func (m *masters) poll() error {
	f, err := os.Open(m.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, m.off, 1<<40))
	if err != nil {
		return err
	}
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return m.reap()
		}
		var e supervisor.Event
		if err := json.Unmarshal(b[:i], &e); err != nil {
			return err
		}
		m.take(e)
		b, m.off = b[i+1:], m.off+int64(i)+1
	}
}

func (m *masters) take(e supervisor.Event) {
	m.events = append(m.events, e)
	at := Mono(e.MonoNS)
	w := m.workers[e.PID]
	switch e.Event {
	case supervisor.EventMasterStarted:
		m.current = e.Master
		m.all = append(m.all, e.Master)
	case supervisor.EventWorkerStarted:
		m.workers[e.PID] = &workerState{pid: e.PID, generation: e.Generation, master: e.Master}
	case supervisor.EventWorkerReady:
		w.ready = at
	case supervisor.EventWorkerQuitSent:
		m.quits = append(m.quits, Quit{PID: e.PID, At: at})
	case supervisor.EventWorkerExited:
		w.gone = at
		x := Exit{PID: e.PID, At: at, Signal: e.Signal}
		if e.ExitCode != nil {
			x.Code = *e.ExitCode
		}
		m.exits = append(m.exits, x)
	case supervisor.EventGenerationReady:
		m.ready = max(m.ready, e.Generation)
	case supervisor.EventRollFailed, supervisor.EventReexecDied, supervisor.EventReexecRefused:
		m.problem = e.Event + " " + e.Reason
	}
}

// reap sees the end of masters that became ours when the one before them ended.
func (m *masters) reap() error {
	for _, pid := range m.all[min(1, len(m.all)):] {
		if m.gone(pid) {
			continue
		}
		var ws unix.WaitStatus
		if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil || got != pid {
			continue
		}
		x := Exit{PID: pid, At: witness.Now(), Code: ws.ExitStatus()}
		if ws.Signaled() {
			x.Signal = ws.Signal().String()
		}
		m.exits = append(m.exits, x)
	}
	return nil
}

func (m *masters) gone(pid int) bool {
	return slices.ContainsFunc(m.exits, func(e Exit) bool { return e.PID == pid })
}

// live are the ready workers that have not exited, in order of pid.
func (m *masters) live(generation int) (pids []int) {
	for pid, w := range m.workers {
		if w.ready != 0 && w.gone == 0 && (generation == 0 || w.generation == generation) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}
