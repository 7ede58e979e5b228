package drill

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/supervisor"
)

// Who gets a signal.
const (
	toMaster    = "the master"
	toOld       = "the old master"
	toNew       = "the new master"
	toWorker    = "a worker"
	toOldWorker = "an old worker"
	toNewWorker = "a new worker"
)

// A state is one that a master is in when it gets a signal.
type state struct {
	name           string
	master, worker []string // flags
	broken         bool     // workers do not start until they are mended
	masters        []string // who gets signals for masters
	workers        []string // who gets those for workers
	noWorkers      string   // why nobody does
	enter          func(*lineage) error
	passes         func(*subject) bool // it is over, for a state that ends by itself
}

const (
	signalWorkers = 2
	// How long a start, or an end, takes where the matrix acts while it lasts; and
	// how long before its end a signal must be sent for the end not to matter.
	slowBoot = 800 * time.Millisecond
	margin   = 150 * time.Millisecond
)

var (
	slowly = []string{"--boot=" + slowBoot.String()}
	// What a worker may take to drain is half of that of the master, see package
	// worker: still much more than it needs.
	hurriedly = []string{"--drain-timeout=3s", "--stop-timeout=1500ms"}
)

// states are all of them, in the order of the table.
var states = []state{
	{name: "starting", worker: slowly, masters: []string{toMaster}, workers: []string{toWorker},
		enter: func(l *lineage) error {
			if err := l.await("started workers", func() bool { return len(l.workersOf(l.proc.pid())) == signalWorkers }); err != nil {
				return err
			}
			return l.caught(l.proc.pid(), func(supervisor.WorkerStatus) bool { return true })
		},
		passes: func(s *subject) bool { return s.anyReady(s.before) }},
	{name: "running", masters: []string{toMaster}, workers: []string{toWorker}, enter: (*lineage).settle},
	{name: "rolling", worker: slowly, masters: []string{toMaster}, workers: []string{toOldWorker, toNewWorker},
		enter: func(l *lineage) error {
			if err := l.settle(); err != nil {
				return err
			}
			if err := unix.Kill(l.proc.pid(), unix.SIGHUP); err != nil {
				return err
			}
			return l.caught(l.proc.pid(), func(w supervisor.WorkerStatus) bool { return w.Generation == 2 })
		},
		passes: func(s *subject) bool {
			return s.anyReady(slices.DeleteFunc(slices.Clone(s.before), func(w *workerState) bool { return w.generation == 1 }))
		}},
	{name: "upgrading", worker: slowly, masters: []string{toOld, toNew}, workers: []string{toOldWorker, toNewWorker},
		enter: func(l *lineage) error {
			next, err := l.upgrade()
			if err != nil {
				return err
			}
			if err := l.await("workers of the new master", func() bool { return len(l.workersOf(next)) == signalWorkers }); err != nil {
				return err
			}
			return l.caught(next, func(supervisor.WorkerStatus) bool { return true })
		},
		passes: func(s *subject) bool { return s.anyReady(s.workersOf(s.masters()[1])) }},
	{name: "upgraded", masters: []string{toOld, toNew}, workers: []string{toOldWorker, toNewWorker},
		enter: func(l *lineage) error {
			next, err := l.upgrade()
			if err != nil {
				return err
			}
			if err := l.await("ready workers of the new master", func() bool { _, ok := l.announced(next, 0); return ok }); err != nil {
				return err
			}
			return l.atWork(pidsOf(l.serving(next)))
		}},
	{name: "draining", worker: []string{"--linger=" + slowBoot.String()}, masters: []string{toMaster}, workers: []string{toWorker},
		enter: func(l *lineage) error {
			if err := l.settle(); err != nil {
				return err
			}
			if err := unix.Kill(l.proc.pid(), unix.SIGQUIT); err != nil {
				return err
			}
			return l.await("draining workers", func() bool { return len(l.serving(l.proc.pid())) == 0 })
		},
		passes: func(s *subject) bool {
			return slices.ContainsFunc(s.before, func(w *workerState) bool { return w.asked+slowBoot < s.at+margin })
		}},
	{name: "a worker hangs", master: hurriedly, masters: []string{toMaster}, workers: []string{toWorker},
		enter: func(l *lineage) error {
			if err := l.settle(); err != nil {
				return err
			}
			ws := l.workersOf(l.proc.pid())
			return l.stop(ws[len(ws)-1].pid)
		}},
	{name: "crash loop", broken: true, masters: []string{toMaster}, noWorkers: "no worker lives long enough to be sent a signal",
		enter: func(l *lineage) error {
			return l.await("workers that die again and again", func() bool {
				deaths := map[int]int{}
				for _, e := range l.m.events[l.from:] {
					if e.Event == supervisor.EventWorkerBackoff && e.Master == l.proc.pid() {
						deaths[*e.Slot]++
					}
				}
				return deaths[0] >= 2 && deaths[1] >= 2
			})
		}},
	{name: "paused", masters: []string{toMaster}, noWorkers: "there is no worker",
		enter: func(l *lineage) error {
			if err := l.settle(); err != nil {
				return err
			}
			if err := unix.Kill(l.proc.pid(), unix.SIGWINCH); err != nil {
				return err
			}
			return l.await("the end of all workers", func() bool { return len(l.workersOf(l.proc.pid())) == 0 })
		}},
}

// settle waits until the workers are ready and have work.
func (l *lineage) settle() error {
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.handOver(); err != nil {
		return err
	}
	return l.atWork(pidsOf(l.serving(l.proc.pid())))
}

// upgrade has the first master execute another.
func (l *lineage) upgrade() (next int, err error) {
	if err := l.settle(); err != nil {
		return 0, err
	}
	if err := unix.Kill(l.proc.pid(), unix.SIGUSR2); err != nil {
		return 0, err
	}
	err = l.await("a new master", func() bool { return len(l.masters()) == 2 })
	if err != nil {
		return 0, err
	}
	return l.masters()[1], nil
}

// find says who is meant: the master whose table counts, the other one of an
// upgrade, and the process that gets the signal.
func (l *lineage) find(to string) (master, other, pid int) {
	all := append(l.masters(), 0)
	master, other = all[0], all[1]
	if to == toNew || to == toNewWorker && other != 0 {
		master, other = other, master
	}
	switch ws := l.workersOf(master); {
	case to == toMaster || to == toOld || to == toNew || len(ws) == 0:
		return master, other, master
	case to == toNewWorker && other == 0: // of the slot that is being replaced
		return master, other, ws[1].pid
	case to == toOldWorker && other == 0:
		return master, other, ws[0].pid
	default:
		return master, other, ws[len(ws)-1].pid
	}
}
