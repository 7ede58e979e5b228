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
func (m *master) onUsr2() { m.reexec() }

func (m *master) onTerm() {
	if m.cfg.TermGraceful {
		m.stop(stopGraceful, "TERM")
	} else {
		m.stop(stopQuick, "TERM")
	}
}

func (m *master) onHup() {
	if m.want == 0 {
		m.want = m.cfg.Workers // after WINCH: the way back
	}
	m.rollRequested = true
}

func (m *master) onWinch() {
	// A terminal sends WINCH whenever its window is resized.
	if _, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		return
	}
	m.want, m.rollRequested = 0, false
	m.endRoll()
}

func (m *master) onTtin() { m.want++ }
func (m *master) onTtou() { m.want = max(m.want-1, 0) }

func (m *master) onUsr1() {
	if m.cfg.Reopen != nil {
		if err := m.cfg.Reopen(); err != nil {
			m.log.Error("log files were not opened again", "err", err)
		}
	}
	for _, w := range m.workers {
		m.send(w, unix.SIGUSR1)
	}
}

// A signalSet remembers which kinds of signal are pending. Each kind has a
// channel of its own: os/signal drops what does not fit, and one shared
// buffer filled by a burst of HUP would drop the QUIT behind it.
type signalSet struct {
	pending atomic.Uint32 // bit i: signalTable[i]
	wake    chan struct{} // holds one token while pending may be set
	chans   []chan os.Signal
	loops   []*loop.Loop
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
		row.apply(m)
		m.advance(time.Now())
	}
}
