//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/sdnotify"
)

// lastWords is how long the output of an ended worker is waited for, if a
// child of its own keeps the pipe open.
const lastWords = 250 * time.Millisecond

type workerState int

const (
	stateStarting workerState = iota // until READY=1, bounded by ReadyTimeout
	stateReady                       // bounded by Watchdog, if set
	stateLeaving                     // QUIT sent, bounded by DrainTimeout
	stateStopped                     // TERM sent, bounded by StopTimeout
	stateHung                        // ABRT sent, bounded by StopTimeout
	stateKilled                      // KILL sent
)

// A worker is a process. The master's goroutine alone reaps and signals it,
// so a signal can never go to another process that got the same pid.
type worker struct {
	pid, slot, generation int
	state                 workerState
	readyAt               time.Time
	deadline              time.Time // of state; zero for none
	why                   string    // the master killed it

	receiver *sdnotify.Receiver
	gone     chan struct{} // closed when the master listens no more
	alive    *os.File      // write end of TIDINGS_PARENT_FD
	pipes    []*os.File    // read ends of its output
	streams  int           // of pipes, those that have not ended
	tail     tail

	reaped bool
	status unix.WaitStatus
}

// protocolVars are set for each worker, or for nobody: what the manager above
// gave to the master is not for workers.
var protocolVars = []string{
	"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
	"TIDINGS_PARENT_FD", "TIDINGS_GENERATION", "TIDINGS_WORKER", "TIDINGS_DRAIN_TIMEOUT", reexecEnv,
}

// environ is the process's environment without names.
func environ(without ...string) []string {
	var env []string
next:
	for _, v := range os.Environ() {
		for _, name := range without {
			if strings.HasPrefix(v, name+"=") {
				continue next
			}
		}
		env = append(env, v)
	}
	return env
}

// start starts a worker. If it cannot, it says so, counts it as a death of the
// slot, and returns nil.
func (m *master) start(slot, generation int, now time.Time) *worker {
	w := &worker{slot: slot, generation: generation, gone: make(chan struct{}), deadline: now.Add(m.cfg.ReadyTimeout)}
	if err := m.spawn(w); err != nil {
		m.log.Error("worker was not started", "slot", slot, "generation", generation, "err", err)
		m.died(m.slots[slot], w, now)
		m.giveUp(err.Error())
		return nil
	}
	m.workers[w.pid] = w
	m.emitWorker(EventWorkerStarted, w, Event{})
	m.log.Info("worker started", w.attrs()...)
	return w
}

func (w *worker) attrs(more ...any) []any {
	return append([]any{"pid", w.pid, "slot", w.slot, "generation", w.generation}, more...)
}

// spawn makes the process and all that belongs to it, or nothing.
func (m *master) spawn(w *worker) (err error) {
	var theirs []*os.File // closed here once the child has them
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			m.letGo(w)
		}
	}()
	path := filepath.Join(m.dir, fmt.Sprintf("%d.%d", w.generation, w.slot))
	for n := 0; ; n++ { // a worker of the same slot may not have ended yet
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			break
		}
		path = filepath.Join(m.dir, fmt.Sprintf("%d.%d.%d", w.generation, w.slot, n))
	}
	w.receiver, err = sdnotify.Receive(path, func(msg sdnotify.Message) {
		select {
		case m.messages <- notice{w, msg}:
		case <-w.gone:
		}
	})
	if err != nil {
		return err
	}
	files, err := m.stdio(w, &theirs)
	if err != nil {
		return err
	}
	for _, s := range m.sockets {
		files = append(files, s.file.Fd())
	}
	parent, alive, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	w.alive = alive
	theirs = append(theirs, parent)
	files = append(files, parent.Fd())
	argv := append([]string{m.origin.name, stubArg, "--"}, m.cfg.Command...)
	w.pid, err = syscall.ForkExec(m.origin.stub, argv, &syscall.ProcAttr{
		Env:   append(environ(protocolVars...), m.workerEnv(w, len(files)-1)...),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("execute %s: %w", m.origin.stub, err)
	}
	for i, r := range w.pipes {
		w.streams++
		to := []*lockedWriter{m.stderr, m.stdout}[i]
		loop.Go(func(context.Context) {
			copyLines(to, &w.tail, r)
			r.Close()
			m.outputs <- w // the master waits for each before it ends
		})
	}
	return nil
}

// stdio returns the worker's descriptors 0 to 2. Standard error goes through
// the master, which keeps the last lines to explain a death; standard output
// only if it is not a file.
func (m *master) stdio(w *worker, theirs *[]*os.File) ([]uintptr, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	*theirs = append(*theirs, null)
	pipe := func() (*os.File, error) {
		r, wr, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		w.pipes, *theirs = append(w.pipes, r), append(*theirs, wr)
		return wr, nil
	}
	errPipe, err := pipe()
	if err != nil {
		return nil, err
	}
	stdout, isFile := m.cfg.Stdout.(*os.File)
	if !isFile {
		if stdout, err = pipe(); err != nil {
			return nil, err
		}
	}
	return []uintptr{null.Fd(), stdout.Fd(), errPipe.Fd()}, nil
}

func (m *master) workerEnv(w *worker, parentFD int) []string {
	env := append(socketEnv(m.sockets),
		"NOTIFY_SOCKET="+w.receiver.Path(),
		"TIDINGS_PARENT_FD="+itoa(parentFD),
		"TIDINGS_GENERATION="+itoa(w.generation),
		"TIDINGS_WORKER="+itoa(w.slot),
		"TIDINGS_DRAIN_TIMEOUT="+m.cfg.DrainTimeout.String())
	if m.cfg.Watchdog > 0 {
		env = append(env, fmt.Sprintf("WATCHDOG_USEC=%d", m.cfg.Watchdog.Microseconds()))
	}
	return env
}

// letGo frees what the master holds for a worker, but for its output.
func (m *master) letGo(w *worker) {
	close(w.gone)
	if w.receiver != nil {
		if err := w.receiver.Close(); err != nil {
			m.log.Warn("notify socket", "err", err)
		}
	}
	if w.alive != nil {
		w.alive.Close()
	}
	if w.pid == 0 { // nobody reads them
		for _, r := range w.pipes {
			r.Close()
		}
	}
}

// hear applies a worker's datagram.
func (m *master) hear(n notice) {
	w, now := n.w, time.Now()
	if w.reaped || m.workers[w.pid] != w {
		return
	}
	for _, line := range n.m.Bad {
		m.log.Warn("worker sent what NOTIFY_SOCKET does not know", w.attrs("line", line)...)
	}
	if n.m.HasStatus {
		m.log.Info("worker status", w.attrs("status", n.m.Status)...)
	}
	if n.m.Ready && w.state == stateStarting {
		w.state, w.readyAt, w.deadline = stateReady, now, time.Time{}
		if m.cfg.Watchdog > 0 {
			w.deadline = now.Add(m.cfg.Watchdog)
		}
		m.emitWorker(EventWorkerReady, w, Event{})
		m.log.Info("worker ready", w.attrs()...)
	}
	if n.m.Watchdog && w.state == stateReady && m.cfg.Watchdog > 0 {
		w.deadline = now.Add(m.cfg.Watchdog)
	}
	if n.m.WatchdogTrigger && w.state == stateReady {
		m.hang(w, now, "it asked for it: WATCHDOG=trigger")
	}
	if d := n.m.ExtendTimeout; d > 0 && (w.state == stateStarting || w.state == stateLeaving) {
		if until := now.Add(d); until.After(w.deadline) {
			w.deadline = until
		}
	}
}

// end asks a worker to go: QUIT for graceful, TERM for quick. It is not asked
// twice the same, nor more gently than before.
func (m *master) end(w *worker, kind stopKind) {
	state, sig, name, bound := stateLeaving, unix.SIGQUIT, "QUIT", m.cfg.DrainTimeout
	if kind == stopQuick {
		state, sig, name, bound = stateStopped, unix.SIGTERM, "TERM", m.cfg.StopTimeout
	}
	if w.state >= state || w.reaped {
		return
	}
	w.state, w.deadline = state, time.Now().Add(bound)
	m.emitWorker(EventWorkerQuitSent, w, Event{Signal: name})
	m.log.Info("worker asked to go", w.attrs("signal", name, "within", bound)...)
	m.send(w, sig)
}

// expire is called when the deadline of the worker's state has passed.
func (m *master) expire(w *worker, now time.Time) {
	switch w.state {
	case stateStarting:
		m.kill(w, fmt.Sprintf("no READY=1 within %v", m.cfg.ReadyTimeout))
	case stateReady:
		m.hang(w, now, fmt.Sprintf("no WATCHDOG=1 within %v", m.cfg.Watchdog))
	case stateLeaving:
		m.kill(w, fmt.Sprintf("not gone within %v of QUIT", m.cfg.DrainTimeout))
	case stateStopped:
		m.kill(w, fmt.Sprintf("not gone within %v of TERM", m.cfg.StopTimeout))
	case stateHung:
		m.kill(w, w.why+", nor gone after ABRT")
	case stateKilled:
		w.deadline = time.Time{}
	}
}

// hang has a worker dump its stacks, which ABRT does in most runtimes.
func (m *master) hang(w *worker, now time.Time, why string) {
	w.state, w.deadline, w.why = stateHung, now.Add(m.cfg.StopTimeout), why
	m.emitWorker(EventWorkerKillSent, w, Event{Signal: "ABRT", Reason: why})
	m.log.Error("worker hangs", w.attrs("reason", why, "signal", "ABRT")...)
	m.send(w, unix.SIGABRT)
}

// kill ends the worker and what it has started in its process group: a
// grandchild left over would go on taking from the sockets.
func (m *master) kill(w *worker, why string) {
	w.state, w.deadline, w.why = stateKilled, time.Time{}, why
	m.emitWorker(EventWorkerKillSent, w, Event{Signal: "KILL", Reason: why})
	m.log.Error("worker killed", w.attrs("reason", why, "command", m.cfg.Command)...)
	if err := unix.Kill(-w.pid, unix.SIGKILL); err != nil {
		m.send(w, unix.SIGKILL)
	}
}

func (m *master) send(w *worker, sig syscall.Signal) {
	if w.reaped {
		return // its pid may be another's by now
	}
	if err := unix.Kill(w.pid, sig); err != nil {
		m.log.Warn("worker was not signalled", w.attrs("signal", sig, "err", err)...)
	}
}

// collected notes the status of a worker that has ended, and sees to it that
// its output ends too.
func (m *master) collected(w *worker, status unix.WaitStatus) {
	w.reaped, w.status = true, status
	for _, r := range w.pipes {
		// Fails if the pipe was read out and closed, which is as well.
		_ = r.SetReadDeadline(time.Now().Add(lastWords))
	}
}

// finish draws the consequences of a worker's end.
func (m *master) finish(w *worker, now time.Time) {
	delete(m.workers, w.pid)
	m.letGo(w)
	e := Event{Reason: w.why}
	words := exitOf(w.status, &e)
	m.emitWorker(EventWorkerExited, w, e)
	asked := w.state == stateLeaving || w.state == stateStopped
	if asked {
		m.log.Info("worker gone", w.attrs("status", words)...)
	} else {
		why := w.why
		if why == "" && w.readyAt.IsZero() {
			why = "it ended before READY=1"
		} else if why == "" {
			why = "it ended unasked"
		}
		m.log.Error("worker died", w.attrs("reason", why, "status", words, "last_lines", w.tail.String())...)
		words = why + ", " + words
	}
	for _, s := range m.slots {
		switch w {
		case s.next:
			s.next = nil
			m.failRoll(words)
		case s.cur:
			s.cur = nil
			m.died(s, w, now)
		}
	}
	if !asked && w.readyAt.IsZero() {
		m.giveUp(fmt.Sprintf("worker %d: %s: %s", w.slot, words, w.tail.String()))
	}
}

// died sets when the slot of a worker that ended unasked is filled again.
func (m *master) died(s *slot, w *worker, now time.Time) {
	if !w.readyAt.IsZero() && now.Sub(w.readyAt) >= m.cfg.BackoffReset {
		s.deaths, s.retryAt = 0, now
		return
	}
	s.deaths++
	pause := m.backoff(s.deaths)
	s.retryAt = now.Add(pause)
	if m.stopping == running {
		m.log.Info("worker will be started again", "slot", w.slot, "in", pause, "deaths_in_a_row", s.deaths)
	}
}

// giveUp ends a re-executed master whose first generation fails while the old
// master still serves: a failed upgrade must leave things as they were. Any
// other master goes on trying, since nobody else would.
func (m *master) giveUp(reason string) {
	if m.stopping != running || m.announced > 0 || !m.parent.alive() {
		return
	}
	m.failed = fmt.Errorf("supervisor: upgrade given up, master %d goes on: %s", m.parent.pid, reason)
	m.stop(stopQuick, "upgrade given up")
}
