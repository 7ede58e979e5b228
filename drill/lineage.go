package drill

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

// A lineage is a master with its workers, and the masters that replace it.
type lineage struct {
	*drill
	files   string // begin with that
	proc    *proc
	from    int   // its events begin here
	cell    *Cell // that it is for; nil for none
	stopped []int // pids that SIGSTOP holds
	hung    int   // the last of them
	since   Mono  // it is held
	checked Mono  // how workers ended before is known
}

// startLineage does not wait for its workers.
func (d *drill) startLineage(workers int, flags, worker []string) (*lineage, error) {
	d.lineages++
	l := &lineage{drill: d, files: fmt.Sprintf("m%d", d.lineages), from: len(d.m.events), checked: witness.Now()}
	// Nobody has to look at the log of a master that was never sent USR1.
	flags = append([]string{"--log", l.logFile(), "--log-prefix"}, flags...)
	var err error
	l.proc, err = d.startMaster(l.files, workers, flags, worker)
	return l, err
}

func (l *lineage) logFile() string { return filepath.Join(l.Dir, l.files+".master.log") }

// masters are the pids of the lineage's masters, the oldest first.
func (l *lineage) masters() []int {
	all := []int{l.proc.pid()}
	for _, e := range l.m.events[l.from:] {
		if e.Event == supervisor.EventReexecStarted && slices.Contains(all, e.Master) {
			all = append(all, e.PID)
		}
	}
	return all
}

// workersOf are the workers that a master has started and that have not ended, by
// slot and age.
func (d *drill) workersOf(master int) (ws []*workerState) {
	for _, w := range d.m.workers {
		if w.master == master && w.gone == 0 {
			ws = append(ws, w)
		}
	}
	slices.SortFunc(ws, func(a, b *workerState) int {
		return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.generation, b.generation), cmp.Compare(a.pid, b.pid))
	})
	return ws
}

// serving are the workers of a master that are ready and were not asked to go.
func (d *drill) serving(master int) []*workerState {
	return slices.DeleteFunc(d.workersOf(master), func(w *workerState) bool { return w.ready == 0 || w.asked != 0 })
}

func pidsOf(ws []*workerState) (pids []int) {
	for _, w := range ws {
		pids = append(pids, w.pid)
	}
	return pids
}

// announced: the master has said that all of its workers are ready, in a generation
// above the given one.
func (l *lineage) announced(master, above int) (at Mono, ok bool) {
	for _, e := range l.m.events[l.from:] {
		if e.Event == supervisor.EventGenerationReady && e.Master == master && e.Generation > above {
			return Mono(e.MonoNS), true
		}
	}
	return 0, false
}

// ended: the master is no more, and if that can be known its exit status is.
func (l *lineage) ended(pid int) bool {
	if l.masterGone(pid) {
		return true
	}
	// Elsewhere an orphan is not ours to wait for.
	return runtime.GOOS != "linux" && unix.Kill(pid, 0) != nil
}

// masterExit is how a master has ended; the zero Exit where that cannot be known.
func (l *lineage) masterExit(pid int) Exit {
	for _, p := range l.procs {
		if p.pid() == pid && p.exited() {
			return p.exit
		}
	}
	if i := slices.IndexFunc(l.m.exits, func(e Exit) bool { return e.PID == pid }); i >= 0 {
		return l.m.exits[i]
	}
	return Exit{PID: pid}
}

// status asks one of the lineage's masters, at whichever name it has.
func (l *lineage) status(master int) (s supervisor.Status, err error) {
	for _, suffix := range []string{"", supervisor.OldSuffix} {
		c := supervisor.Control{Path: supervisor.ControlPath(l.pidFile(l.files)) + suffix}
		if s, err = c.Status(l.ctx); err == nil && s.Master == master {
			return s, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("master %d does not answer: master %d has its name", master, s.Master)
	}
	return supervisor.Status{}, err
}

// pidIn is the pid in the lineage's pid file, or the one with a suffix; 0 if there
// is no such file.
func (l *lineage) pidIn(suffix string) (int, error) {
	b, err := os.ReadFile(l.pidFile(l.files) + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// await waits for what must happen now.
func (l *lineage) await(what string, ok func() bool) error {
	return l.awaitFor(cellPatience, what, ok)
}

func (l *lineage) awaitFor(limit time.Duration, what string, ok func() bool) error {
	err := l.poll(5*time.Millisecond, limit, ok)
	if errors.Is(err, errVain) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// ready waits until every worker of the first master is.
func (l *lineage) ready() error {
	master := l.proc.pid()
	err := l.await("ready workers", func() bool {
		_, ok := l.announced(master, 0)
		return ok || l.ended(master)
	})
	if err == nil && l.ended(master) {
		return l.proc.died()
	}
	return err
}

// caught waits until a starting worker has told something: it catches signals then.
func (l *lineage) caught(master int, which func(w supervisor.WorkerStatus) bool) error {
	return l.await("a starting worker", func() bool {
		s, err := l.status(master)
		if err != nil {
			return false
		}
		// One that starts no more is for the state to notice.
		meant := slices.DeleteFunc(s.Workers, func(w supervisor.WorkerStatus) bool { return !which(w) })
		return len(meant) > 0 && !slices.ContainsFunc(meant, func(w supervisor.WorkerStatus) bool { return w.State == "starting" && w.Status == "" })
	})
}

// atWork waits until each of the workers has begun some events.
func (l *lineage) atWork(pids []int) error {
	var failed error
	err := l.await("events in the hands of workers", func() bool {
		var led *Ledger
		if led, failed = l.reader.Poll(); failed != nil {
			return true
		}
		busy := 0
		for _, r := range led.Reporters {
			if slices.Contains(pids, r.PID) && len(r.Entries) >= 10 {
				busy++
			}
		}
		return busy == len(pids)
	})
	return errors.Join(err, failed)
}

// stop holds a process until resume.
func (l *lineage) stop(pid int) error {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return err
	}
	<-time.After(2 * time.Millisecond) // until its threads have really stopped
	l.stopped, l.hung, l.since = append(l.stopped, pid), pid, witness.Now()
	return nil
}

func (l *lineage) resume() {
	for _, pid := range l.stopped {
		_ = unix.Kill(pid, unix.SIGCONT) // it may have been killed
	}
	l.stopped = nil
}

// retire ends all masters of the lineage gracefully, and sees that nothing is left
// of it.
func (l *lineage) retire() error {
	l.resume()
	asked := slices.DeleteFunc(l.masters(), l.ended)
	for _, pid := range asked {
		_ = unix.Kill(pid, unix.SIGQUIT) // it may end by itself
	}
	gone := func(pid int) bool { return unix.Kill(pid, 0) != nil }
	var left []int
	err := l.await("the end of everything", func() bool {
		left = slices.DeleteFunc(l.pids(), gone)
		return len(left) == 0 && !slices.ContainsFunc(l.masters(), func(pid int) bool { return !l.ended(pid) })
	})
	if err != nil {
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return fmt.Errorf("%w: %v had to be killed", err, left)
	}
	errs := []error{l.unclean(func(*workerState) bool { return false })}
	for _, pid := range asked {
		errs = append(errs, l.endedWell(pid))
	}
	return errors.Join(append(errs, l.await("the removal of "+l.pidFile(l.files)+"*", func() bool {
		files, _ := filepath.Glob(l.pidFile(l.files) + "*")
		return len(files) == 0
	}))...)
}

// unclean names the workers that have ended since the last call, and not by
// themselves. Those that may be cut off are noted as such.
func (l *lineage) unclean(mayBeCut func(*workerState) bool) error {
	since := l.checked
	l.checked = witness.Now()
	masters := l.masters()
	var errs []error
	var seen Mono // by the broker
	for _, w := range l.m.workers {
		x := w.exit
		switch {
		case w.gone == 0 || w.gone < since || w.gone >= l.checked || w.ready == 0 || !slices.Contains(masters, w.master):
		case x.Code == 0 && x.Signal == "":
		case mayBeCut(w):
			if seen == 0 {
				seen = l.brokerNotices()
			}
			k := Kill{PID: w.pid, Sent: w.asked, Noticed: max(w.gone, seen)}
			if w.pid == l.hung {
				k.Sent = l.since
			}
			l.ev.CutOff = append(l.ev.CutOff, k)
		default:
			errs = append(errs, fmt.Errorf("worker %d ended with status %d %s", w.pid, x.Code, x.Signal))
		}
	}
	return errors.Join(errs...)
}

// brokerNotices waits until the broker has no more clients than there are processes,
// and says when that was: until then it goes on sending to one that is dead.
func (l *lineage) brokerNotices() Mono {
	_ = l.awaitFor(2*time.Second, "the end of a connection", func() bool { // or less is forgiven
		alive := publishers
		for _, w := range l.m.workers {
			if w.gone == 0 {
				alive++
			}
		}
		return l.hub.clients() <= alive
	})
	return witness.Now()
}

func (l *lineage) endedWell(master int) error {
	if x := l.masterExit(master); x.Code != 0 || x.Signal != "" {
		return fmt.Errorf("master %d ended with status %d %s", master, x.Code, x.Signal)
	}
	return nil
}

// pids are all processes that the lineage ever had.
func (l *lineage) pids() []int {
	all := l.masters()
	for _, e := range l.m.events[l.from:] {
		if e.Event == supervisor.EventWorkerStarted && slices.Contains(all, e.Master) {
			all = append(all, e.PID)
		}
	}
	return all
}
