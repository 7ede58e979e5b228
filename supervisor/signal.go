//go:build unix

package supervisor

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
)

// Defects on purpose, for the drill; see package mutant.
const (
	// What comes just after a signal of another kind is lost, as with one channel for
	// all kinds and a master that is busy. CHLD is not: a master that does not reap
	// would stand still.
	mutantOneSignal = "burst-loses-kinds"
	// USR2 ends the old workers before the new ones are ready.
	mutantUpgradeStopsOld = "upgrade-stops-old-first"
)

// signalTable is the whole of what the master does on signals. When several
// kinds are pending they are applied in this order: the most final first, so
// that a burst which contains TERM does not start workers.
var signalTable = []signalRow{
	{unix.SIGCHLD, "CHLD", "reap workers and the re-executed master", (*master).reap},
	{unix.SIGTERM, "TERM", "stop quickly: TERM to workers, KILL after the stop timeout (graceful if so configured)", (*master).onTerm},
	{unix.SIGINT, "INT", "stop quickly, as TERM", (*master).onInt},
	{unix.SIGQUIT, "QUIT", "stop gracefully: QUIT to workers, KILL after the drain timeout", (*master).onQuit},
	{unix.SIGWINCH, "WINCH", "stop all workers gracefully, keep the master; ignored on a terminal", (*master).onWinch},
	{unix.SIGHUP, "HUP", "rolling restart: each new worker is ready before its old one is asked to go", (*master).onHup},
	{unix.SIGUSR2, "USR2", "execute the master again beside this one, with the same sockets", (*master).onUsr2},
	{unix.SIGTTIN, "TTIN", "one worker more", (*master).onTtin},
	{unix.SIGTTOU, "TTOU", "one worker less", (*master).onTtou},
	{unix.SIGUSR1, "USR1", "open log files again, in the master, then USR1 to workers", (*master).onUsr1},
	// Caught, not ignored: what is ignored would be inherited by workers.
	{unix.SIGPIPE, "PIPE", "nothing: a log whose reader is gone must not end the master", func(*master) {}},
}

// startsWork are the signals that mean nothing to a master that is stopping. USR2
// says itself why it is refused.
var startsWork = map[syscall.Signal]bool{unix.SIGWINCH: true, unix.SIGHUP: true, unix.SIGTTIN: true, unix.SIGTTOU: true}

type signalRow struct {
	signal syscall.Signal
	name   string
	does   string
	apply  func(m *master)
}

// A SignalHelp describes what the master does on one signal.
type SignalHelp struct{ Name, Does string }

// Signals returns the master's table of signals, for help texts. The slice is
// the caller's.
func Signals() []SignalHelp {
	help := make([]SignalHelp, len(signalTable))
	for i, row := range signalTable {
		help[i] = SignalHelp{row.name, row.does}
	}
	return help
}

func (m *master) onInt()  { m.stop(stopQuick, "INT") }
func (m *master) onQuit() { m.stop(stopGraceful, "QUIT") }

func (m *master) onUsr2() {
	err := m.reexec() // has said why not
	if err == nil && mutant.On(mutantUpgradeStopsOld) {
		m.pause()
	}
}

func (m *master) onTerm() {
	m.endWithChild()
	if m.cfg.TermGraceful {
		m.stop(stopGraceful, "TERM")
	} else {
		m.stop(stopQuick, "TERM")
	}
}

// onHup: HUP that come before the restart begins are one, as the kernel would have
// it anyway.
func (m *master) onHup() {
	m.restoreWorkers()
	m.rolls = max(m.rolls, 1)
}

// restoreWorkers is the way back after WINCH.
func (m *master) restoreWorkers() {
	if m.want == 0 {
		m.want = m.cfg.Workers
	}
}

func (m *master) onWinch() {
	// A terminal sends WINCH whenever its window is resized.
	if _, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		return
	}
	m.pause()
}

func (m *master) pause() {
	m.want, m.rolls = 0, 0
	m.failDeploy("the workers were paused")
	m.endRoll()
}

func (m *master) onTtin() { m.want++ }
func (m *master) onTtou() { m.want = max(m.want-1, 0) }

func (m *master) onUsr1() { _ = m.reopen() } // has said what failed

func (m *master) reopen() (err error) {
	if m.cfg.Reopen != nil {
		if err = m.cfg.Reopen(); err != nil {
			m.log.Error("log files were not opened again", "err", err)
		}
	}
	for _, w := range m.workers {
		if w.state == stateStarting {
			w.reopen = true // it may not catch USR1 yet, and would die of it
		} else {
			m.send(w, unix.SIGUSR1)
		}
	}
	return err
}

// A signalSet remembers which kinds of signal are pending. Each kind has a
// channel of its own: os/signal drops what does not fit, and one shared
// buffer filled by a burst of HUP would drop the QUIT behind it.
type signalSet struct {
	pending atomic.Uint32 // bit i: signalTable[i]
	wake    chan struct{} // holds one token while pending may be set
	chans   []chan os.Signal
	loops   []*loop.Loop
	last    atomic.Pointer[heard] // for mutantOneSignal alone
}

// heard is a kind of signal, and when it came.
type heard struct {
	kind int
	at   time.Time
}

func catchSignals() *signalSet {
	s := &signalSet{wake: make(chan struct{}, 1)}
	for i, row := range signalTable {
		s.chans = append(s.chans, make(chan os.Signal, 1))
		signal.Notify(s.chans[i], row.signal)
	}
	for i := range signalTable {
		s.loops = append(s.loops, loop.Go(func(ctx context.Context) { s.collect(ctx, i) }))
	}
	return s
}

func (s *signalSet) collect(ctx context.Context, i int) {
	for {
		select {
		case <-s.chans[i]:
			if mutant.On(mutantOneSignal) && s.follows(i) {
				continue
			}
			s.pending.Or(1 << i)
			select {
			case s.wake <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return
		}
	}
}

// follows reports whether another kind came less than half a second ago.
func (s *signalSet) follows(i int) bool {
	if signalTable[i].signal == unix.SIGCHLD {
		return false
	}
	now := &heard{i, time.Now()}
	for {
		last := s.last.Load()
		if last != nil && last.kind != i && now.at.Sub(last.at) < time.Second/2 {
			return true
		}
		if s.last.CompareAndSwap(last, now) {
			return false
		}
	}
}

// take returns the bits of pending kinds and clears them.
func (s *signalSet) take() uint32 { return s.pending.Swap(0) }

func (s *signalSet) close() {
	for i := range s.chans {
		signal.Stop(s.chans[i])
		s.loops[i].StopAndWait()
	}
}

// applySignals runs the rows of all pending kinds.
func (m *master) applySignals() {
	bits := m.signals.take()
	for i := range signalTable {
		if bits&(1<<i) == 0 {
			continue
		}
		row := &signalTable[i]
		if row.signal != unix.SIGCHLD && row.signal != unix.SIGPIPE {
			m.log.Info("signal", "signal", row.name)
			m.emit(Event{Event: EventSignal, Signal: row.name})
		}
		if m.stopping != running && startsWork[row.signal] {
			m.log.Info("signal ignored: this master is stopping", "signal", row.name)
			continue
		}
		row.apply(m)
		m.advance(time.Now())
	}
}
