package drill

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
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
	own     []int // those of them that the drill has started, and waits for elsewhere
	quits   []Quit
	exits   []Exit
	reports []Told
	hubs    []int // pids of those that masters have started
	orphans bool  // a master has died, and its workers are ours to wait for
	problem string
}

type workerState struct {
	pid, slot, generation, master int
	ready, asked, gone            Mono // asked: to go, or killed
	exit                          Exit
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
		m.workers[e.PID] = &workerState{pid: e.PID, slot: *e.Slot, generation: e.Generation, master: e.Master}
	case supervisor.EventWorkerReady:
		w.ready = at
	case supervisor.EventWorkerQuitSent:
		m.quits = append(m.quits, Quit{PID: e.PID, At: at})
		w.leave(at)
	case supervisor.EventWorkerKillSent:
		w.leave(at)
	case supervisor.EventWorkerExited:
		w.gone, w.exit = at, exitIn(e)
		m.exits = append(m.exits, w.exit)
		if e.Report != nil && e.Report.Final {
			m.reports = append(m.reports, Told{e.PID, *e.Report})
		}
	case supervisor.EventHubStarted:
		m.hubs = append(m.hubs, e.PID)
	case supervisor.EventHubExited:
		m.exits = append(m.exits, exitIn(e))
	case supervisor.EventGenerationReady:
		m.ready = max(m.ready, e.Generation)
	case supervisor.EventReexecDied:
		m.exits = append(m.exits, exitIn(e))
		m.problem = e.Event
	case supervisor.EventRollFailed, supervisor.EventReexecRefused:
		m.problem = e.Event + " " + e.Reason
	}
}

func (w *workerState) leave(at Mono) {
	if w.asked == 0 {
		w.asked = at
	}
}

func exitIn(e supervisor.Event) Exit {
	x := Exit{PID: e.PID, At: Mono(e.MonoNS), Signal: e.Signal}
	if e.ExitCode != nil {
		x.Code = *e.ExitCode
	}
	return x
}

// announced: the master has said that all of its workers are ready.
func (m *masters) announced(master int) bool {
	return slices.ContainsFunc(m.events, func(e supervisor.Event) bool {
		return e.Event == supervisor.EventGenerationReady && e.Master == master
	})
}

// reap sees the end of masters, and of their hubs, that became ours when the one before
// them ended, and of workers whose master has died.
func (m *masters) reap() error {
	for _, w := range m.workers {
		if m.orphans && w.gone == 0 {
			m.reapOrphan(w)
		}
	}
	for _, pid := range slices.Concat(m.all, m.hubs) {
		if slices.Contains(m.own, pid) || m.gone(pid) {
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

// reapOrphan does nothing about a worker whose master lives, and waits for it.
func (m *masters) reapOrphan(w *workerState) {
	var ws unix.WaitStatus
	x := Exit{PID: w.pid, At: witness.Now()}
	switch got, err := unix.Wait4(w.pid, &ws, unix.WNOHANG, nil); {
	case err == nil && got == w.pid:
		if x.Code = ws.ExitStatus(); ws.Signaled() {
			x.Signal = ws.Signal().String()
		}
	case runtime.GOOS == "linux" || unix.Kill(w.pid, 0) == nil:
		return
	}
	w.gone, w.exit = x.At, x
	m.exits = append(m.exits, x)
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
