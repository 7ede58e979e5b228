//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/sdnotify"
)

// maxPath is the longest path of a unix socket that every system takes.
const maxPath = 100

// A stopKind is how far the master has been asked to stop.
type stopKind int

const (
	running stopKind = iota
	stopGraceful
	stopQuick
)

// A master is the state of [Run]. One goroutine, that of Run, owns all of it:
// whatever happens outside reaches it over a channel, changes a fact, and then
// advance does what the facts call for.
type master struct {
	cfg    Config
	log    *slog.Logger
	origin origin
	parent reexecParent // the master that executed this one, if any
	pid    *pidFile

	control  *control
	hub      *companion // nil: none is kept
	asks     chan request
	good     *stateDir
	as       *identity
	requests uint64 // taken
	started  time.Time

	sockets []socket
	dir     string // private: the workers' notify sockets
	stdout  *lockedWriter
	stderr  *lockedWriter

	signals  *signalSet
	messages chan notice
	outputs  chan *worker // one for each stream of a worker that has ended

	generation int      // the latest number that was given away
	release    *release // the latest that was begun and has not failed
	announced  int      // the latest of which every worker was ready
	want       int
	slots      []*slot
	workers    map[int]*worker // by pid, until they are reaped and read out
	roll       *roll
	rolls      int // rolling restarts that were asked for and have not begun
	deploy     *deploy
	deploys    int      // that were begun
	deployed   *Receipt // the last one
	stopping   stopKind
	child      int  // pid of the re-executed master
	together   bool // it is to end before this one does
	failed     error

	askedAt      time.Time // for time, of the manager above
	needUntil    time.Time
	told         string        // to the manager above, as STATUS
	beat         time.Duration // of the watchdog of the manager above, if any
	beatAt       time.Time
	eventsFailed bool
}

// A slot is one of the places for a worker.
type slot struct {
	cur, next *worker  // next only while a rolling restart or a deploy replaces cur
	release   *release // of the latest cur
	deaths    int      // in a row
	retryAt   time.Time
	restarts  int // deaths in all
	lastDeath string
	diedAt    time.Time
}

// A notice is a datagram of a worker.
type notice struct {
	w *worker
	m sdnotify.Message
}

// Run is the master. It opens the sockets, starts the workers, serves signals
// (see [Signals]), and returns when all workers have ended: nil after QUIT,
// TERM, INT or the end of ctx, which means what QUIT does. It returns an error
// before anything was started if the configuration, the pid file or a socket
// is at fault; and, in a master that another one executed on USR2, if the
// first generation does not become ready while that other one still serves.
//
// A process can have one Run at a time, as it takes over the process's
// signals. It needs the subcommand that calls [ExecStub].
func Run(ctx context.Context, cfg Config) error {
	m, err := newMaster(cfg)
	if err != nil {
		return err
	}
	defer m.close()
	m.emit(Event{Event: EventMasterStarted, Generation: m.generation})
	m.log.Info("master started", "generation", m.generation, "workers", m.want, "command", m.release.command)
	m.serve(ctx)
	m.emit(Event{Event: EventStopped, Generation: m.release.generation})
	m.log.Info("master stopped")
	return m.failed
}

func newMaster(cfg Config) (_ *master, err error) {
	// Before anything that can fail, so that a signal never meets its default.
	m := &master{signals: catchSignals(), workers: map[int]*worker{}, pid: &pidFile{}, control: &control{}, asks: make(chan request), started: time.Now()}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	m.parent = takeReexecParent()
	inherited := sdnotify.Files()
	if m.cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	m.log = m.cfg.Logger.With("master", os.Getpid())
	m.askForTime(m.cfg.ReadyTimeout) // before what may take long: to keep the program
	m.stdout, m.stderr = &lockedWriter{w: m.cfg.Stdout}, &lockedWriter{w: m.cfg.Stderr}
	m.messages, m.outputs = make(chan notice), make(chan *worker)
	m.generation, m.want = m.parent.generation+1, m.cfg.Workers
	if m.origin, err = findOrigin(m.cfg.Argv); err != nil {
		return nil, err
	}
	if m.as, err = identityOf(m.cfg.User); err != nil {
		return nil, err
	}
	if m.pid, err = claimPIDFile(m.cfg.PIDFile); err != nil {
		m.pid = &pidFile{}
		return nil, err
	}
	if m.control, err = openControl(m.cfg.Control, m.asks, m.log); err != nil {
		m.control = &control{}
		return nil, err
	}
	if m.good, err = openState(m.cfg.State); err != nil {
		return nil, err
	}
	if m.release, err = m.first(); err != nil {
		return nil, err
	}
	if m.sockets, err = openSockets(m.cfg.Listen, inherited); err != nil {
		return nil, err
	}
	if m.hub, err = m.openHub(); err != nil {
		return nil, err
	}
	if m.dir, err = privateDir(); err != nil {
		return nil, err
	}
	if err = m.as.give(m.dir); err != nil {
		return nil, err
	}
	interval, err := sdnotify.WatchdogInterval()
	if err != nil {
		return nil, err
	}
	m.beat = interval / 2
	return m, nil
}

// privateDir makes a directory whose sockets have paths that fit.
func privateDir() (string, error) {
	parent := os.TempDir()
	if len(parent)+len("/tidings-1234567890/1234567890") > maxPath {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "tidings-") // mode 0700
	if err != nil {
		return "", fmt.Errorf("supervisor: directory for the workers' NOTIFY_SOCKET: set TMPDIR to one that can be written: %w", err)
	}
	return dir, nil
}

func (m *master) close() {
	m.signals.close()
	// The sockets' paths and the other master's names are left alone while
	// another master lives to use them.
	closeSockets(m.sockets, m.child == 0 && !m.parent.alive())
	if m.dir != "" {
		os.RemoveAll(m.dir)
	}
	m.control.close()
	m.hub.close()
	m.pid.release()
}

// serve is the master's loop. It ends when it was asked to and no worker is
// left.
func (m *master) serve(ctx context.Context) {
	done := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		m.advance(now)
		m.tellStatus()
		if m.stopping != running && len(m.workers) == 0 && (m.child == 0 || !m.together) && m.endHub(now) {
			return
		}
		timer.Reset(m.nextDeadline(now))
		select {
		case <-done:
			done = nil
			m.stop(stopGraceful, "end of context")
		case <-m.signals.wake:
			m.applySignals()
		case r := <-m.asks:
			m.respond(r)
		case n := <-m.messages:
			m.hear(n)
		case w := <-m.outputs:
			w.streams--
		case <-timer.C:
		}
	}
}

// advance does what is due: it is called after every change and may be called
// at any time.
func (m *master) advance(now time.Time) {
	for _, w := range m.workers {
		if w.reaped && w.streams == 0 {
			m.finish(w, now)
		} else if !w.reaped && !w.deadline.IsZero() && !now.Before(w.deadline) {
			m.expire(w, now)
		}
	}
	if m.beat > 0 && !now.Before(m.beatAt) {
		m.beatAt = now.Add(m.beat)
		m.tellManager(sdnotify.Watchdog)
	}
	m.advanceHub(now) // workers that drain need it, too
	if m.stopping != running {
		return
	}
	for len(m.slots) < m.want {
		m.slots = append(m.slots, &slot{})
	}
	m.askAgain(now)
	m.lookForParent()
	if !m.hub.ready() {
		return
	}
	m.advanceDeploy(now)
	m.advanceRoll(now)
	if m.stopping == running { // a failed start may have ended it
		m.fill(now)
		m.announce()
	}
}

// nextDeadline is how long advance has nothing to do unless something happens.
func (m *master) nextDeadline(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	for _, w := range m.workers {
		if !w.reaped {
			sooner(w.deadline)
		} else if w.streams == 0 {
			sooner(now)
		}
	}
	if m.beat > 0 {
		sooner(m.beatAt)
	}
	if m.hub != nil {
		sooner(m.hub.lookAt)
	}
	if !m.hub.ready() {
		return max(next.Sub(now), 0)
	}
	if m.roll != nil {
		sooner(m.askedAt.Add(askEvery))
	}
	if m.parent.alive() {
		sooner(now.Add(parentLook))
	}
	if m.stopping == running {
		for i := range m.want {
			if s := m.slots[i]; m.lacks(s) {
				sooner(s.retryAt)
			}
		}
		if d := m.deploy; d != nil && d.phase == DeployProbation {
			sooner(d.ready.Add(d.Probation))
		} else if d != nil && !d.gone.IsZero() {
			sooner(d.gone.Add(lastReports))
		}
	}
	return max(next.Sub(now), 0)
}

// fill starts workers where one is missing, and ends those that are too many.
func (m *master) fill(now time.Time) {
	for i, s := range m.slots {
		if i >= m.want {
			for _, w := range []*worker{s.cur, s.next} {
				if w != nil {
					m.end(w, stopGraceful)
				}
			}
			*s = slot{}
			continue
		}
		if m.lacks(s) && !now.Before(s.retryAt) {
			r := m.toStart(s)
			s.cur, s.release = m.start(i, r, now), r
		}
	}
}

// lacks reports whether a slot waits for a worker. During a rolling restart its next
// one is enough; a deploy may be taken back.
func (m *master) lacks(s *slot) bool {
	if m.roll != nil && m.roll.mutant {
		return false
	}
	return s.cur == nil && (s.next == nil || m.deploy != nil)
}

// announce makes it known once when all workers are ready and of the latest
// generation.
func (m *master) announce() {
	if m.announced == m.release.generation || m.roll != nil || m.want == 0 {
		return
	}
	for _, s := range m.slots[:m.want] {
		if s.cur == nil || s.cur.state != stateReady || s.cur.generation != m.release.generation {
			return
		}
	}
	m.announced = m.release.generation
	m.proven(m.release)
	m.emit(Event{Event: EventGenerationReady, Generation: m.announced})
	m.log.Info("generation ready", "generation", m.announced, "workers", m.want)
	m.tellManagerServing()
}

// stop asks all workers to end. A quicker kind overrides a slower one.
func (m *master) stop(kind stopKind, why string) {
	if kind <= m.stopping {
		return
	}
	m.stopping = kind
	m.roll, m.rolls = nil, 0
	m.stopDeploy(why)
	m.log.Info("stopping", "why", why, "graceful", kind == stopGraceful, "workers", len(m.workers))
	m.tellManagerStopping(kind)
	// Whoever comes once the workers accept no more is refused at once. He would wait
	// for all of the drain, and then be cut off.
	for _, s := range m.sockets {
		s.file.Close()
	}
	for _, w := range m.workers {
		m.end(w, kind)
	}
}

// reap collects the ended children. It asks for each by its pid, so that it
// does not take those of others in this process; as pid 1 it takes all, since
// it inherits the orphans.
func (m *master) reap() {
	for pid, w := range m.workers {
		if status, ended := reapOne(pid); ended && !w.reaped {
			m.collected(w, status)
		}
	}
	if m.child != 0 {
		if status, ended := reapOne(m.child); ended {
			m.reexecDied(status)
		}
	}
	if m.hub != nil && m.hub.child != 0 {
		if status, ended := reapOne(m.hub.child); ended {
			m.hubReaped(status, time.Now())
		}
	}
	if os.Getpid() == 1 {
		m.reapOrphans()
	}
}

func (m *master) reapOrphans() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if w := m.workers[pid]; w != nil && !w.reaped {
			m.collected(w, status)
		} else if pid == m.child {
			m.reexecDied(status)
		} else if m.hub != nil && pid == m.hub.child {
			m.hubReaped(status, time.Now())
		}
	}
}

func reapOne(pid int) (unix.WaitStatus, bool) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err != unix.EINTR {
			return status, err == nil && got == pid
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
