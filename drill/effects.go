package drill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

// A subject is what gets a signal, as it was just before.
type subject struct {
	*lineage
	play
	master, other int // whose table of signals it is, and the other one in an upgrade
	pid           int // gets the signal
	before        []*workerState
	beside        []int // pids of the other master's workers
	want          int
	generation    int
	at            Mono // of the signal
	events        int  // later ones begin here
}

// meet looks at what will get the signal.
func (l *lineage) meet(p play) (*subject, error) {
	s := &subject{lineage: l, play: p}
	s.master, s.other, s.pid = l.find(p.to)
	now, err := l.status(s.master)
	if err != nil {
		return nil, err
	}
	s.want, s.generation, s.before = now.Want, now.Generation, l.workersOf(s.master)
	if s.other != 0 {
		s.beside = pidsOf(l.workersOf(s.other))
	}
	if p.signal == "USR1" { // to be made anew
		if err := os.Rename(l.logFile(), l.logFile()+".1"); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *subject) send(sig unix.Signal) error {
	s.at, s.events = witness.Now(), len(s.m.events)
	return unix.Kill(s.pid, sig)
}

// seen: an event of that kind came after the signal, of the master that got it.
func (s *subject) seen(kind string, ok func(supervisor.Event) bool) bool {
	return slices.ContainsFunc(s.m.events[s.events:], func(e supervisor.Event) bool {
		return e.Event == kind && e.Master == s.master && (ok == nil || ok(e))
	})
}

func (s *subject) anyReady(ws []*workerState) bool {
	return slices.ContainsFunc(ws, func(w *workerState) bool { return w.ready != 0 && w.ready < s.at+margin })
}

// took: the master has taken the signals. Of CHLD and PIPE it says nothing.
func (s *subject) took(names ...string) error {
	var missing []string
	err := s.awaitFor(takePatience, "a signal that is taken", func() bool {
		missing = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			return name == "CHLD" || name == "PIPE" || s.seen(supervisor.EventSignal, func(e supervisor.Event) bool { return e.Signal == name })
		})
		return len(missing) == 0
	})
	if len(missing) > 0 {
		err = fmt.Errorf("the master has not taken %s: %w", strings.Join(missing, ", "), err)
	}
	return err
}

// has waits until the master has n ready workers and no other.
func (s *subject) has(n int) error {
	return s.await(countWorkers(n), func() bool {
		return len(s.serving(s.master)) == n && len(s.workersOf(s.master)) == n
	})
}

func countWorkers(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return fmt.Sprintf("%d workers", n)
}

// wants is what the master says of itself.
func (s *subject) wants(n int) error {
	now, err := s.status(s.master)
	if err == nil && now.Want != n {
		err = fmt.Errorf("the master wants %d workers, not %d", now.Want, n)
	}
	return err
}

// untouched: workers that were there have not been asked to go, and have not gone.
func (s *subject) untouched(pids []int) error {
	for _, pid := range pids {
		if w := s.m.workers[pid]; w.asked != 0 || w.gone != 0 {
			return fmt.Errorf("worker %d of master %d was ended, too", pid, w.master)
		}
	}
	return nil
}

// names waits until the pid files are right: that of the master, and in an upgrade
// that of the old one; 0 for none.
func (s *subject) names(current, old int) error {
	var is, was int
	var failed error
	err := s.await(fmt.Sprintf("pid files with %d and %d", current, old), func() bool {
		var err error
		is, failed = s.pidIn("")
		was, err = s.pidIn(supervisor.OldSuffix)
		failed = errors.Join(failed, err)
		return failed != nil || is == current && was == old
	})
	if err != nil {
		err = fmt.Errorf("%w: they have %d and %d", err, is, was)
	}
	return errors.Join(err, failed)
}

// sameNames: they are as in the state.
func (s *subject) sameNames() error {
	all := append(s.masters(), 0)
	if all[1] == 0 || s.ended(all[1]) {
		return s.names(all[0], 0)
	}
	return s.names(all[1], all[0])
}

// staysAsItIs: nothing happens.
func (s *subject) staysAsItIs() (string, error) {
	if err := s.took(s.signal); err != nil {
		return "", err
	}
	now, err := s.status(s.master)
	if err != nil {
		return "", err
	}
	if now.Want != s.want || now.Generation != s.generation {
		err = fmt.Errorf("it wants %d workers of generation %d, and did %d of %d", now.Want, now.Generation, s.want, s.generation)
	}
	return "nothing", errors.Join(err, s.untouched(pidsOf(s.before)), s.untouched(s.beside), s.sameNames())
}

// reopens: the log is opened again, and no worker minds.
func (s *subject) reopens() (string, error) {
	if err := errors.Join(s.took("USR1"), s.reopened()); err != nil {
		return "", err
	}
	stopping := s.state.name == "draining"
	for _, w := range s.before {
		if w.gone != 0 && !stopping {
			return "", fmt.Errorf("worker %d ended", w.pid)
		}
	}
	var told []int
	for _, w := range s.before {
		if w.ready != 0 && !stopping && !slices.Contains(s.stopped, w.pid) {
			told = append(told, w.pid)
		}
	}
	err := s.await("that workers open their logs again", func() bool {
		return !slices.ContainsFunc(told, func(pid int) bool { return !s.logs(pid, "nothing to open again") })
	})
	text := "log opened again"
	if len(told) > 0 {
		text += ", told to " + countWorkers(len(told))
	}
	return text, errors.Join(err, s.untouched(s.beside))
}

func (s *subject) reopened() error {
	return s.await("a log that is opened again", func() bool { _, err := os.Stat(s.logFile()); return err == nil })
}

// logs: a worker has written a line with those words.
func (s *subject) logs(pid int, words string) bool {
	files, _ := filepath.Glob(s.logFile() + "*")
	for _, name := range files {
		b, _ := os.ReadFile(name)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, fmt.Sprintf(" %d] ", pid)) && strings.Contains(line, words) {
				return true
			}
		}
	}
	return false
}

// workerReopens: a worker opens its logs again, and goes on.
func (s *subject) workerReopens() (string, error) {
	s.resume() // a hanging one does so once it goes on
	err := s.await("that the worker opens its logs again", func() bool { return s.logs(s.pid, "nothing to open again") })
	if w := s.m.workers[s.pid]; w.gone != 0 && w.asked == 0 {
		err = errors.Join(err, errors.New("it ended"))
	}
	return "the worker opens its logs again", err
}

// ends: the master ends with all of its workers; in an upgrade the other one has
// the names.
func (s *subject) ends() (string, error) {
	if s.pid == s.master {
		if err := s.took(s.signal); err != nil {
			return "", err
		}
	}
	if err := s.await("the end of the master", func() bool { return s.ended(s.master) }); err != nil {
		return "", err
	}
	err := errors.Join(s.endedWell(s.master), s.names(s.other, 0), s.untouched(s.beside))
	if n := len(s.workersOf(s.master)); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d workers are left", n))
	}
	return fmt.Sprintf("status 0, after %s", countWorkers(len(s.before))), err
}

// pauses: all workers end, the master stays.
func (s *subject) pauses() (string, error) {
	if err := errors.Join(s.took("WINCH"), s.has(0), s.wants(0)); err != nil {
		return "", err
	}
	return "no workers", errors.Join(s.untouched(s.beside), s.sameNames())
}

// ignores: a master that is stopping goes on with that.
func (s *subject) ignores() (string, error) {
	if err := s.took(s.signal); err != nil {
		return "", err
	}
	if err := s.await("the end of the master", func() bool { return s.ended(s.master) }); err != nil {
		return "", err
	}
	err := s.endedWell(s.master)
	if s.seen(supervisor.EventWorkerStarted, nil) {
		err = errors.Join(err, errors.New("it started a worker"))
	}
	return "ignored: it ends, status 0", errors.Join(err, s.names(0, 0))
}

// rolls: every worker is replaced by one that was ready before.
func (s *subject) rolls() (string, error) {
	if err := s.took("HUP"); err != nil {
		return "", err
	}
	if err := s.rolled(); err != nil {
		return "", err
	}
	now, err := s.status(s.master)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("generation %d to %d, %s", s.generation, now.Ready, countWorkers(len(s.serving(s.master)))), errors.Join(s.untouched(s.beside), s.sameNames())
}

func (s *subject) rolled() error {
	want := s.want
	if want == 0 {
		want = signalWorkers // back from a pause
	}
	if err := s.await("a next generation", func() bool { _, ok := s.announced(s.master, s.generation); return ok }); err != nil {
		return err
	}
	err := s.has(want)
	for _, old := range s.before {
		if old.ready != 0 && !s.replaced(old) {
			err = errors.Join(err, fmt.Errorf("worker %d was ended before another of its slot was ready", old.pid))
		}
	}
	return err
}

// replaced: another worker of the slot was ready before this one was asked to go.
func (s *subject) replaced(old *workerState) bool {
	for _, w := range s.m.workers {
		if w.master == old.master && w.slot == old.slot && w.generation > old.generation && w.ready != 0 && w.ready < cmpOr(old.asked, old.gone) {
			return true
		}
	}
	return false
}

// cmpOr is the first that is not zero; never, if both are.
func cmpOr(at, or Mono) Mono {
	switch {
	case at != 0:
		return at
	case or != 0:
		return or
	}
	return 1<<63 - 1
}

// upgrades: a new master has its workers ready beside the old one, which then is
// sent QUIT, as one does by hand.
func (s *subject) upgrades() (string, error) {
	if err := s.took("USR2"); err != nil {
		return "", err
	}
	next, err := s.upgraded()
	if err != nil {
		return "", err
	}
	if err := s.crowdFor(pidsOf(s.serving(s.master))); err != nil {
		return "", err
	}
	if err := unix.Kill(s.master, unix.SIGQUIT); err != nil {
		return "", err
	}
	if err := s.await("the end of the old master", func() bool { return s.ended(s.master) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("a new master with %s; QUIT to the old one: status 0", countWorkers(len(s.serving(next)))),
		errors.Join(s.endedWell(s.master), s.names(next, 0), s.untouched(pidsOf(s.serving(next))))
}

func (s *subject) upgraded() (next int, err error) {
	if err := s.await("a new master", func() bool { return s.seen(supervisor.EventReexecStarted, nil) }); err != nil {
		return 0, err
	}
	all := s.masters()
	next = all[len(all)-1]
	if err := s.await("ready workers of the new master", func() bool { _, ok := s.announced(next, 0); return ok }); err != nil {
		return 0, err
	}
	at, _ := s.announced(next, 0)
	for _, w := range s.before {
		if w.ready != 0 && cmpOr(w.asked, w.gone) < at && !s.replaced(w) {
			err = errors.Join(err, fmt.Errorf("worker %d was ended before the new master's were ready", w.pid))
		}
	}
	return next, errors.Join(err, s.names(next, s.master))
}

// refuses: no second upgrade begins.
func (s *subject) refuses() (string, error) {
	if err := s.took("USR2"); err != nil {
		return "", err
	}
	var why string
	if err := s.await("a refusal", func() bool {
		return s.seen(supervisor.EventReexecRefused, func(e supervisor.Event) bool { why = e.Reason; return true })
	}); err != nil {
		return "", err
	}
	var err error
	if s.seen(supervisor.EventReexecStarted, nil) {
		err = errors.New("it was said to be refused, and a master was executed")
	}
	if s.state.name == "draining" {
		_, end := s.ignores()
		return "refused: " + why, errors.Join(err, end)
	}
	return "refused: " + why, errors.Join(err, s.untouched(pidsOf(s.before)), s.untouched(s.beside), s.sameNames())
}

// givesUp: the new master's workers do not live, so it ends; the old one goes on.
func (s *subject) givesUp() (string, error) {
	if err := s.took("USR2"); err != nil {
		return "", err
	}
	if err := s.await("a new master", func() bool { return s.seen(supervisor.EventReexecStarted, nil) }); err != nil {
		return "", err
	}
	all := s.masters()
	return s.gaveUp(s.master, all[len(all)-1])
}

func (s *subject) gaveUp(old, next int) (string, error) {
	if err := s.await("the end of the new master", func() bool { return s.ended(next) }); err != nil {
		return "", err
	}
	x := s.masterExit(next)
	if x.Code != 1 {
		return "", fmt.Errorf("the new master ended with status %d %s, not with 1", x.Code, x.Signal)
	}
	now, err := s.status(old)
	if err == nil && now.NewMaster != 0 {
		err = fmt.Errorf("master %d still waits for %d", old, now.NewMaster)
	}
	return "the new master gives up, status 1; the old one goes on", errors.Join(err, s.names(old, 0))
}

// grows: one worker more.
func (s *subject) grows() (string, error) {
	n := s.want + 1
	err := errors.Join(s.took("TTIN"), s.wants(n))
	if s.state.broken {
		return countWorkers(n) + " wanted", errors.Join(err, s.await("a start of the new one", func() bool {
			return s.seen(supervisor.EventWorkerStarted, func(e supervisor.Event) bool { return *e.Slot == n-1 })
		}))
	}
	return countWorkers(n), errors.Join(err, s.has(n), s.untouched(s.beside), s.sameNames())
}

// shrinks: one worker less.
func (s *subject) shrinks() (string, error) {
	n := max(s.want-1, 0)
	err := errors.Join(s.took("TTOU"), s.wants(n))
	if s.state.broken {
		return countWorkers(n) + " wanted", err
	}
	return countWorkers(n), errors.Join(err, s.has(n), s.untouched(s.beside), s.sameNames())
}

// isReplaced: a worker ends, and another takes its place.
func (s *subject) isReplaced() (string, error) {
	s.resume() // a hanging one ends once it goes on
	w := s.m.workers[s.pid]
	if err := s.await("the worker's end", func() bool { return w.gone != 0 }); err != nil {
		return "", err
	}
	err := s.has(s.want)
	return fmt.Sprintf("it ends, status %d; %s again", w.exit.Code, countWorkers(s.want)), errors.Join(err, s.untouched(s.beside), s.sameNames())
}

// failsTheRoll: the worker was to replace another, which stays.
func (s *subject) failsTheRoll() (string, error) {
	if err := s.await("the end of the rolling restart", func() bool { return s.seen(supervisor.EventRollFailed, nil) }); err != nil {
		return "", err
	}
	var old []int
	for _, w := range s.before {
		if w.generation == 1 {
			old = append(old, w.pid)
		}
	}
	return "the restart fails, the old workers stay", errors.Join(s.has(s.want), s.untouched(old), s.sameNames())
}

// failsTheUpgrade: a first worker of the new master came to nothing, so that gives up.
func (s *subject) failsTheUpgrade() (string, error) {
	text, err := s.gaveUp(s.other, s.master)
	return text, errors.Join(err, s.untouched(s.beside))
}
