//go:build unix

package supervisor

import (
	"math/rand/v2"
	"time"

	"github.com/tidings-go/tidings/sdnotify"

	"github.com/tidings-go/tidings/internal/mutant"
)

// A roll is a rolling restart: slot by slot a new worker is started, becomes
// ready, and only then the old one is asked to go and waited for.
type roll struct {
	*release
	slot    int     // being replaced
	leaving *worker // the old one of slot, once it was asked to go
	mutant  bool    // stop-before-ready: all old ones leave first
}

// advanceRoll goes as far with the rolling restart as it can without waiting.
func (m *master) advanceRoll(now time.Time) {
	// One that was asked for meanwhile begins here: nothing else may happen that
	// would bring us back.
	for m.roll != nil || m.rolls > 0 && m.deploy == nil {
		if m.roll == nil {
			m.beginRoll()
			if m.roll == nil {
				continue // it has failed
			}
		}
		if m.roll.mutant {
			m.advanceMutantRoll()
			return
		}
		for m.roll != nil && m.roll.slot < m.want {
			if !m.advanceSlot(now) && m.roll != nil {
				return
			}
		}
		if m.roll != nil {
			m.release = m.roll.release
			m.endRoll()
		}
	}
}

func (m *master) beginRoll() {
	m.rolls--
	m.generation++
	m.roll = &roll{release: &release{generation: m.generation}, mutant: mutant.On(mutantStopBeforeReady)}
	m.log.Info("rolling restart", "generation", m.generation, "workers", m.want)
	m.tellManager(sdnotify.Reloading())
	r, err := m.resolve(m.generation, m.release.command)
	if err == nil {
		err = m.keep(r)
	}
	if err != nil {
		m.failRoll(err.Error())
		return
	}
	m.roll.release = r
	for _, s := range m.slots {
		s.deaths, s.retryAt = 0, time.Time{} // what kept dying may be repaired
	}
}

// endRoll is for a roll that is complete, failed or overtaken.
func (m *master) endRoll() {
	if m.roll == nil {
		return
	}
	m.roll = nil
	if m.announced > 0 {
		m.tellManagerServing() // ends the reload, whatever came of it
	}
}

// advanceSlot reports whether there may be more to do at once.
func (m *master) advanceSlot(now time.Time) bool {
	r := m.roll
	if r.leaving != nil {
		if m.workers[r.leaving.pid] == r.leaving {
			return false
		}
		r.leaving = nil
		r.slot++
		return true
	}
	s := m.slots[r.slot]
	if s.next == nil && s.cur != nil && s.cur.generation == r.generation {
		// It died after the roll had begun and was started again since.
		if s.cur.state == stateReady {
			r.slot++
		}
		return s.cur.state == stateReady
	}
	if s.next == nil {
		m.askForTime(m.cfg.ReadyTimeout + m.cfg.DrainTimeout)
		if s.next = m.start(r.slot, r.release, now); s.next == nil {
			m.failRoll("a worker could not be started")
			return false
		}
	}
	if s.next.state != stateReady {
		return false
	}
	old := s.cur
	s.cur, s.next, s.release = s.next, nil, r.release
	if old == nil {
		r.slot++
		return true
	}
	r.leaving = old
	m.end(old, stopGraceful)
	return true
}

// failRoll ends the roll because a new worker came to nothing. Slots that were
// replaced before stay replaced; the others keep their old workers.
func (m *master) failRoll(reason string) {
	if m.roll == nil {
		return
	}
	old := 0
	for _, s := range m.slots[:min(m.want, len(m.slots))] {
		if s.cur != nil && s.cur.generation != m.roll.generation {
			old++
		}
	}
	m.emit(Event{Event: EventRollFailed, Generation: m.roll.generation, Reason: reason})
	m.log.Error("rolling restart failed: old workers stay; repair the command and send HUP again",
		"generation", m.roll.generation, "reason", reason, "old_workers", old, "workers", m.want)
	m.endRoll()
}

// advanceMutantRoll is the defect mutantStopBeforeReady.
func (m *master) advanceMutantRoll() {
	left := false
	for _, w := range m.workers {
		if w.generation < m.roll.generation {
			left = true
			m.end(w, stopGraceful)
		}
	}
	if left {
		return
	}
	for _, s := range m.slots {
		*s = slot{}
	}
	m.release = m.roll.release
	m.endRoll() // fill starts the new ones
}

// backoff is the pause after so many deaths in a row. The random part keeps
// workers that died together, of a broker's restart say, from returning
// together.
func (m *master) backoff(deaths int) time.Duration {
	d := m.cfg.BackoffMin
	for range deaths - 1 {
		if d > m.cfg.BackoffMax/2 {
			d = m.cfg.BackoffMax
			break
		}
		d *= 2
	}
	d = min(d, m.cfg.BackoffMax)
	return d - rand.N(d/2+1)
}
