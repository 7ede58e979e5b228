//go:build unix

package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tidings-go/tidings/internal/activity"
)

// A DeployRequest is what [Control.Deploy] asks for.
type DeployRequest struct {
	// Command is the argv of the new workers, and of all later ones if the deploy
	// succeeds. Empty: the present one, which is looked up anew.
	Command []string `json:"command,omitempty"`
	// Probation is how long new and old workers serve side by side before the old
	// ones are asked to go; 0: not at all. In JSON it is in nanoseconds.
	Probation time.Duration `json:"probation_ns"`
	// MaxErrors is how many errors of handlers the new workers may have in each
	// subscription, beyond what chance explains at the rate of the old ones.
	MaxErrors uint64 `json:"max_errors"`
	// MaxLag is how many events more than at the beginning may wait at the broker
	// for a durable group.
	MaxLag uint64 `json:"max_lag"`
}

// Phases of a deploy, in [Receipt.State]. The last three are final.
const (
	DeployStarting    = "starting"     // until all new workers are ready
	DeployProbation   = "probation"    // old and new ones serve
	DeployDraining    = "draining"     // committed: old ones drain
	DeployRollingBack = "rolling back" // new ones drain
	DeployCommitted   = "committed"
	DeployRolledBack  = "rolled back"
	DeployStopped     = "stopped" // the master was asked to end meanwhile
)

// A deploy replaces all workers at once: new ones are started beside the old ones
// and serve with them for a while, until those or these are asked to go.
type deploy struct {
	*release
	DeployRequest
	number   int
	phase    string
	reason   string // of the rollback
	began    time.Time
	ready    time.Time
	decided  time.Time
	gone     time.Time // all that had to go were
	goneSlot int64
	ended    time.Time
	members  []*member
	leaving  []*worker // asked to go, and waited for
	lagging  time.Time // since when a group lags
	lag      map[subscription]uint64
	active   map[subscription]*activity.Timeline
	from     int64 // the slot in which it began
}

// lastReports is how long is waited at the end for the new workers to tell how
// events came to them until then.
const lastReports = 3 * time.Second

// onDeploy begins one. The error says why it cannot be.
func (m *master) onDeploy(body []byte) (Done, error) {
	var ask DeployRequest
	if err := json.Unmarshal(body, &ask); err != nil {
		return Done{}, fmt.Errorf("deploy: %w", err)
	}
	if err := m.mayDeploy(); err != nil {
		return Done{}, err
	}
	if ask.Probation < 0 {
		return Done{}, fmt.Errorf("deploy: the probation is %v: give a duration that is not negative", ask.Probation)
	}
	command := ask.Command
	if len(command) == 0 {
		command = m.release.command
	}
	r, err := m.resolve(m.generation+1, command)
	if err == nil {
		err = m.keep(r)
	}
	if err != nil {
		return Done{}, err
	}
	m.generation++
	m.deploys++
	m.deploy = &deploy{release: r, DeployRequest: ask, number: m.deploys, phase: DeployStarting, began: time.Now(), from: slotNow(),
		lag: map[subscription]uint64{}, active: map[subscription]*activity.Timeline{}}
	for _, w := range m.workers {
		m.join(w)
	}
	m.log.Info("deploy", "deploy", m.deploys, "generation", r.generation, "command", r.command, "probation", ask.Probation)
	m.emit(Event{Event: EventDeployStarted, Generation: r.generation})
	return Done{Generation: r.generation, Deploy: m.deploys}, nil
}

func (m *master) mayDeploy() error {
	switch d := m.deploy; {
	case d != nil:
		return fmt.Errorf("deploy %d is not over: it is %s, since %v", d.number, d.phase, time.Since(d.began).Round(time.Second))
	case m.roll != nil || m.rolls > 0:
		return errors.New("a rolling restart is under way: deploy when it is over")
	case m.child != 0:
		return fmt.Errorf("the upgrade to master %d is not over: QUIT %d or %d", m.child, m.child, os.Getpid())
	case m.parent.alive():
		return fmt.Errorf("the upgrade from master %d is not over: QUIT it first", m.parent.pid)
	case m.want == 0:
		return errors.New("the workers are paused: reload has them back")
	}
	return nil
}

// advanceDeploy goes as far with the deploy as it can without waiting.
func (m *master) advanceDeploy(now time.Time) {
	d := m.deploy
	if d == nil {
		return
	}
	if d.phase == DeployStarting || d.phase == DeployProbation {
		if !m.startNew(now) {
			return // still starting, or failed
		}
		if d.phase == DeployStarting {
			d.phase, d.ready = DeployProbation, now
			m.emit(Event{Event: EventDeployReady, Generation: d.generation})
			m.log.Info("deploy: all new workers are ready", "deploy", d.number, "generation", d.generation, "probation", d.Probation)
		}
		over := !now.Before(d.ready.Add(d.Probation))
		if why := d.judge(now, over); why != "" {
			m.failDeploy(why)
		} else if over {
			m.commitDeploy(now)
		}
	}
	m.endDeploy(now)
}

// startNew starts what is missing of the new generation, and reports whether all
// of it is ready.
func (m *master) startNew(now time.Time) bool {
	d, ready := m.deploy, true
	for i, s := range m.slots[:m.want] {
		if s.next == nil {
			if s.next = m.start(i, d.release, now); s.next == nil {
				m.failDeploy("a worker could not be started: " + s.lastDeath)
				return false
			}
		}
		ready = ready && s.next.state == stateReady
	}
	return ready
}

// commitDeploy makes the new workers the ones that serve.
func (m *master) commitDeploy(now time.Time) {
	d := m.deploy
	d.phase, d.decided = DeployDraining, now
	m.release = d.release
	for _, s := range m.slots[:m.want] {
		old := s.cur
		s.cur, s.next, s.release = s.next, nil, d.release
		s.deaths, s.retryAt = 0, time.Time{}
		m.retire(old)
	}
	m.emit(Event{Event: EventDeployCommitted, Generation: d.generation})
	m.log.Info("deploy committed: old workers are asked to go", "deploy", d.number, "generation", d.generation)
}

// failDeploy goes back: the new workers drain, and the old ones never stopped.
func (m *master) failDeploy(why string) {
	d := m.deploy
	if d == nil || !d.decided.IsZero() {
		return
	}
	d.phase, d.reason, d.decided = DeployRollingBack, why, time.Now()
	for _, s := range m.slots {
		next := s.next
		s.next = nil
		m.retire(next)
	}
	m.emit(Event{Event: EventDeployRolledBack, Generation: d.generation, Reason: why})
	m.log.Error("deploy rolled back: old workers stay", "deploy", d.number, "generation", d.generation, "reason", why)
}

// retire asks a worker to go; the deploy is over when it is gone.
func (m *master) retire(w *worker) {
	if w != nil {
		m.deploy.leaving = append(m.deploy.leaving, w)
		m.end(w, stopGraceful)
	}
}

// endDeploy ends the deploy once all that leave are gone, and the others have told
// of the time until then.
func (m *master) endDeploy(now time.Time) {
	d := m.deploy
	if d.decided.IsZero() {
		return
	}
	for _, w := range d.leaving {
		if m.workers[w.pid] == w {
			return
		}
	}
	if d.gone.IsZero() {
		d.gone, d.goneSlot = now, slotNow()
	}
	if now.Before(d.gone.Add(lastReports)) && d.untold() {
		return
	}
	d.ended = now
	d.phase = map[string]string{DeployDraining: DeployCommitted, DeployRollingBack: DeployRolledBack}[d.phase]
	m.concludeDeploy()
}

// stopDeploy is for a master that ends: whatever the deploy came to, it has the
// last word.
func (m *master) stopDeploy(why string) {
	if d := m.deploy; d != nil {
		d.phase, d.ended = DeployStopped, time.Now()
		if d.reason == "" {
			d.reason = "the master was stopped: " + why
		}
		m.concludeDeploy()
	}
}

func (m *master) concludeDeploy() {
	r := m.deploy.receipt()
	m.deployed, m.deploy = &r, nil
	m.emit(Event{Event: EventDeployEnded, Generation: r.Generation, Reason: r.Reason})
	m.log.Info("deploy over", "deploy", r.Deploy, "state", r.State, "reason", r.Reason, "lost", r.Lost, "unaccounted", r.Unaccounted)
}

// onAbort takes the deploy back on request.
func (m *master) onAbort() (Done, error) {
	switch d := m.deploy; {
	case d == nil:
		return Done{}, errors.New("no deploy is under way")
	case !d.decided.IsZero():
		return Done{}, fmt.Errorf("deploy %d is %s: it is too late to go back", d.number, d.phase)
	default:
		m.failDeploy("it was aborted on request")
		return Done{Generation: d.generation, Deploy: d.number}, nil
	}
}
