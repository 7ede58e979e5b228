//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/sdnotify"
)

// parentLook is how often a re-executed master looks whether the old one is there.
const parentLook = 100 * time.Millisecond

// askEvery is how often the time that a reload takes is asked for.
const askEvery = time.Second / 4

// tellManager speaks to the manager above, if there is one.
func (m *master) tellManager(state ...string) {
	if err := sdnotify.Notify(state...); err != nil {
		m.log.Warn("the manager above was not told", "state", state, "err", err)
	}
}

// askForTime has the manager above wait for as long as is waited for here, whatever
// its own bounds on a start, reload or stop.
func (m *master) askForTime(d time.Duration) {
	d += m.cfg.StopTimeout
	m.tellManager(sdnotify.ExtendTimeout(d))
	m.askedAt = time.Now()
	if until := m.askedAt.Add(d); until.After(m.needUntil) {
		m.needUntil = until
	}
}

// askAgain is due during a rolling restart. systemd begins to measure a reload anew
// when it has collected the process of ExecReload, and forgets what was asked until
// then.
func (m *master) askAgain(now time.Time) {
	if m.roll != nil && !now.Before(m.askedAt.Add(askEvery)) {
		m.askedAt = now
		m.tellManager(sdnotify.ExtendTimeout(m.needUntil.Sub(now)))
	}
}

// tellManagerServing makes this master the manager's, and ends a start or reload.
// While the old master is there the service is that one's: it is the manager's own
// child, as this one is not yet, and hands the service over when it is told to go.
func (m *master) tellManagerServing() {
	if m.parent.alive() {
		return
	}
	m.told = m.statusLine()
	m.tellManager(sdnotify.Ready, sdnotify.MainPID(os.Getpid()), sdnotify.Status(m.told))
}

// tellManagerStopping is told once for each kind of stop.
func (m *master) tellManagerStopping(kind stopKind) {
	if m.child != 0 && !m.together {
		m.tellManager(sdnotify.MainPID(m.child)) // the service goes on
		return
	}
	m.tellManager(sdnotify.Stopping)
	if kind == stopGraceful {
		m.askForTime(m.cfg.DrainTimeout)
	}
}

// endWithChild: a manager that sends TERM means the service, of which the new master
// is part. Without a manager TERM is for one master, as in Unicorn.
func (m *master) endWithChild() {
	if m.child == 0 || m.stopping != running || os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	m.together = true
	m.log.Info("the manager above stops the service: the new master is asked to go, too", "pid", m.child)
	if err := unix.Kill(m.child, unix.SIGTERM); err != nil {
		m.log.Warn("the new master was not asked to go", "pid", m.child, "err", err)
	}
}

// tellStatus keeps the manager's line for people up to date.
func (m *master) tellStatus() {
	if m.stopping != running && m.child != 0 && !m.together {
		return // the service goes on in the new master, which has a line of its own
	}
	if line := m.statusLine(); line != m.told {
		m.told = line
		m.tellManager(sdnotify.Status(line))
	}
}

// statusLine says how the workers are, and first what somebody may have to repair.
func (m *master) statusLine() string {
	if m.stopping != running {
		return fmt.Sprintf("stopping, %d workers left", len(m.workers))
	}
	ready, trouble, waits := 0, "", ""
	for i, s := range m.slots[:min(m.want, len(m.slots))] {
		switch {
		case s.cur != nil && s.cur.state == stateReady:
			ready++
		case s.deaths >= crashLoop || s.deaths > 0 && m.announced == 0:
			if trouble == "" {
				trouble = fmt.Sprintf("; worker %d has died%s: %s", i, inARow(s.deaths), s.lastDeath)
			}
		case waits == "" && s.cur != nil && s.cur.says != "":
			waits = fmt.Sprintf("; worker %d: %s", i, s.cur.says)
		}
	}
	if trouble == "" {
		trouble = waits + m.hub.says()
	}
	switch {
	case m.parent.alive() && m.announced == 0:
		return fmt.Sprintf("upgrade: new master %d has %d of %d workers ready%s", os.Getpid(), ready, m.want, trouble)
	case m.parent.alive():
		return fmt.Sprintf("upgrade: new master %d has %d of %d workers ready%s: QUIT %d to go on, or QUIT %d to go back", os.Getpid(), ready, m.want, trouble, m.parent.pid, os.Getpid())
	case m.announced == 0 || ready < m.want:
		return fmt.Sprintf("%d of %d workers ready%s", ready, m.want, trouble)
	case m.roll != nil:
		return fmt.Sprintf("rolling restart, %d of %d workers replaced", m.roll.slot, m.want)
	}
	return fmt.Sprintf("%d workers of generation %d ready", m.want, m.announced)
}

func inARow(deaths int) string {
	if deaths == 1 {
		return ""
	}
	return fmt.Sprintf(" %d times in a row", deaths)
}

// lookForParent is due while the old master is there. When it has gone, this one has
// become the manager's own child, but systemd looks at that only when it is told
// another MAINPID than before. Not to know it is not harmless: a stop would not wait
// for this master, but kill it at once. So a worker is named in between.
func (m *master) lookForParent() {
	if m.parent.pid == 0 || m.parent.alive() {
		return
	}
	m.parent = reexecParent{}
	if m.announced == 0 || m.stopping != running {
		return
	}
	for pid, w := range m.workers {
		if !w.reaped {
			m.tellManager(sdnotify.MainPID(pid))
			break
		}
	}
	m.tellManagerServing()
}
