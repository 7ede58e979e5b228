//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"io"
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

// crashLoop is how many deaths in a row are no accident any more.
const crashLoop = 3

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
	*release
	pid, slot int
	state     workerState
	since     time.Time // in state
	executed  string    // the file
	says      string    // STATUS
	reports   sdnotify.Reports
	report    sdnotify.Report // the last whole one
	toldAt    time.Time       // when it came
	toldSlot  int64           // the last of which it has told when events came
	readyAt   time.Time
	deadline  time.Time // of state; zero for none
	why       string    // the master killed it
	reopen    bool      // USR1 once it is ready

	receiver *sdnotify.Receiver
	gone     chan struct{} // closed when the master listens no more
	alive    *os.File      // write end of TIDINGS_PARENT_FD
	pipes    []*os.File    // read ends of its output
	streams  int           // of pipes and receiver, those that have not ended
	tail     tail

	reaped bool
	status unix.WaitStatus
}

// protocolVars are set for each worker, or for nobody: what the manager above
// gave to the master is not for workers.
var protocolVars = []string{
	"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
	"TIDINGS_PARENT_FD", "TIDINGS_GENERATION", "TIDINGS_WORKER", "TIDINGS_DRAIN_TIMEOUT", "TIDINGS_STOP_TIMEOUT",
	reexecEnv, ownedEnv, umaskEnv, programEnv,
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
func (m *master) start(slot int, r *release, now time.Time) *worker {
	w := &worker{release: r, slot: slot, gone: make(chan struct{})}
	w.enter(stateStarting, now, now.Add(m.cfg.ReadyTimeout))
	if err := m.spawn(w); err != nil {
		m.log.Error("worker was not started", "slot", slot, "generation", r.generation, "err", err)
		m.died(m.slots[slot], w, now, err.Error())
		m.giveUp(err.Error())
		return nil
	}
	m.workers[w.pid] = w
	m.join(w)
	m.emitWorker(EventWorkerStarted, w, Event{})
	m.log.Info("worker started", w.attrs()...)
	return w
}

// enter changes the state; a zero deadline means none.
func (w *worker) enter(s workerState, now, deadline time.Time) {
	w.state, w.since, w.deadline = s, now, deadline
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
	if err := m.as.give(path); err != nil {
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
	if w.dir != "" {
		if err := mayEnter(w.dir); err != nil {
			return err
		}
	}
	path, changed, err := w.release.executable()
	if err != nil {
		return err
	}
	if changed {
		m.log.Warn("the program has changed since this generation began, and was not kept: the worker is started from what is there now", w.attrs("program", path)...)
	}
	w.executed = programOf(path)
	w.alive = alive
	theirs = append(theirs, parent)
	files = append(files, parent.Fd())
	argv := append([]string{m.origin.name, stubArg, "--"}, w.command...)
	w.pid, err = syscall.ForkExec(m.origin.stub, argv, &syscall.ProcAttr{
		Dir:   w.dir,
		Env:   append(m.baseEnv(w.release), append(m.workerEnv(w, len(files)-1), programEnv+"="+path)...),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true, Credential: m.as.credential()},
	})
	if err != nil {
		return fmt.Errorf("execute %s: %w", m.origin.stub, err)
	}
	w.streams++
	loop.Go(func(context.Context) {
		<-w.receiver.Done()
		m.outputs <- w // as below
	})
	for i, r := range w.pipes {
		w.streams++
		var to io.Writer = []*lockedWriter{m.stderr, m.stdout}[i]
		if m.cfg.LogPrefix {
			to = &prefixWriter{w: to, prefix: fmt.Sprintf("[%d %d] ", w.slot, w.pid)}
		}
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
	if !isFile || m.cfg.LogPrefix {
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
		"TIDINGS_DRAIN_TIMEOUT="+m.cfg.DrainTimeout.String(),
		"TIDINGS_STOP_TIMEOUT="+m.cfg.StopTimeout.String())
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
	if m.workers[w.pid] != w {
		return
	}
	for _, line := range n.m.Bad {
		m.log.Warn("worker sent what NOTIFY_SOCKET does not know", w.attrs("line", line)...)
	}
	if r, err := w.reports.Take(n.m); err != nil {
		m.log.Warn("worker sent a report that cannot be read", w.attrs("err", err)...)
	} else if r != nil {
		w.told(r, now)
		if m.deploy != nil {
			if err := m.deploy.observe(r); err != nil {
				m.log.Warn("worker sent a report that cannot be read", w.attrs("err", err)...)
			}
		}
	}
	if n.m.HasStatus {
		w.says = n.m.Status
		m.log.Info("worker status", w.attrs("status", n.m.Status)...)
	}
	if w.reaped { // these were its last words
		if n.m.Ready && w.readyAt.IsZero() {
			w.readyAt = now // of its life it matters only that it had been ready
		}
		return
	}
	if n.m.Ready && w.state == stateStarting {
		w.enter(stateReady, now, time.Time{})
		w.readyAt, w.booted = now, true
		if m.cfg.Watchdog > 0 {
			w.deadline = now.Add(m.cfg.Watchdog)
		}
		m.emitWorker(EventWorkerReady, w, Event{})
		m.log.Info("worker ready", w.attrs()...)
		if w.reopen {
			m.send(w, unix.SIGUSR1)
		}
	}
	if n.m.Watchdog && w.state == stateReady && m.cfg.Watchdog > 0 {
		w.deadline = now.Add(m.cfg.Watchdog)
	}
	if n.m.WatchdogTrigger && w.state == stateReady {
		m.hang(w, now, "it asked for it by WATCHDOG=trigger: "+w.says)
	}
	if d := n.m.ExtendTimeout; d > 0 && (w.state == stateStarting || w.state == stateLeaving) {
		if until := now.Add(d); until.After(w.deadline) {
			w.deadline = until
			m.askForTime(d)
		}
	}
}

// told notes a whole report.
func (w *worker) told(r *sdnotify.Report, now time.Time) {
	w.report, w.toldAt, w.toldSlot = *r, now, slotNow()
	if r.Until > 0 {
		w.toldSlot = r.Until - 1 // what came since is told next time, and is no gap
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
	now := time.Now()
	w.enter(state, now, now.Add(bound))
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
	w.enter(stateHung, now, now.Add(m.cfg.StopTimeout))
	w.why = why
	m.emitWorker(EventWorkerKillSent, w, Event{Signal: "ABRT", Reason: why})
	m.log.Error("worker hangs", w.attrs("reason", why, "signal", "ABRT")...)
	m.send(w, unix.SIGABRT)
}

// kill ends the worker and what it has started in its process group: a
// grandchild left over would go on taking from the sockets.
func (m *master) kill(w *worker, why string) {
	w.enter(stateKilled, time.Now(), time.Time{})
	w.why = why
	m.emitWorker(EventWorkerKillSent, w, Event{Signal: "KILL", Reason: why})
	m.log.Error("worker killed", w.attrs("reason", why, "command", w.command)...)
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
// its output ends too, and that what it has sent is heard.
func (m *master) collected(w *worker, status unix.WaitStatus) {
	w.reaped, w.status = true, status
	w.receiver.Drain()
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
	if !w.toldAt.IsZero() {
		e.Report = &w.report
	}
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
	m.leave(w, words)
	for _, s := range m.slots {
		switch w {
		case s.next:
			s.next = nil
			m.failDeploy(words + w.tail.lastWords())
			m.failRoll(words)
		case s.cur:
			s.cur = nil
			m.died(s, w, now, words+w.tail.lastWords())
		}
	}
	if !asked && w.readyAt.IsZero() {
		m.giveUp(fmt.Sprintf("worker %d: %s: %s", w.slot, words, w.tail.String()))
	}
}

// died sets when the slot of a worker that ended unasked is filled again.
func (m *master) died(s *slot, w *worker, now time.Time, why string) {
	s.restarts++
	s.lastDeath, s.diedAt = why, now
	if !w.readyAt.IsZero() && now.Sub(w.readyAt) >= m.cfg.BackoffReset {
		s.deaths, s.retryAt = 0, now
		return
	}
	s.deaths++
	pause := m.backoff(s.deaths)
	s.retryAt = now.Add(pause)
	if m.stopping != running {
		return
	}
	m.emitWorker(EventWorkerBackoff, w, Event{Reason: why})
	if s.deaths < crashLoop {
		m.log.Info("worker will be started again", "slot", w.slot, "in", pause, "deaths_in_a_row", s.deaths)
		return
	}
	m.log.Error("worker keeps dying: it is started again ever more slowly", "slot", w.slot, "in", pause, "deaths_in_a_row", s.deaths, "reason", why)
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
