package drill

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/supervisor"
)

// A play is a cell of the matrix: a signal, to somebody, in a state.
type play struct {
	state  *state
	signal string // of the table, or what is done instead
	to     string
	why    string // there is nothing to see
	short  bool
	alone  bool // somebody of the lineage serves all the time: nobody else has to
	cuts   bool // a worker may be ended with events in its hands
	effect effect
}

// An effect is what the table of signals promises: it says what was seen, and
// fails if that is not what was promised.
type effect func(*subject) (string, error)

func (p play) name() string {
	s := p.state.name + ": " + p.signal
	if p.to != toMaster {
		s += " to " + p.to
	}
	return s
}

// numbers are the signals of the master's table.
var numbers = map[string]unix.Signal{
	"CHLD": unix.SIGCHLD, "TERM": unix.SIGTERM, "INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "WINCH": unix.SIGWINCH, "HUP": unix.SIGHUP,
	"USR2": unix.SIGUSR2, "TTIN": unix.SIGTTIN, "TTOU": unix.SIGTTOU, "USR1": unix.SIGUSR1, "PIPE": unix.SIGPIPE,
}

// What signals do to a master that is not stopping.
var onMaster = map[string]effect{
	"CHLD": (*subject).staysAsItIs, "PIPE": (*subject).staysAsItIs, "USR1": (*subject).reopens,
	"TERM": (*subject).ends, "INT": (*subject).ends, "QUIT": (*subject).ends,
	"WINCH": (*subject).pauses, "HUP": (*subject).rolls, "USR2": (*subject).upgrades, "TTIN": (*subject).grows, "TTOU": (*subject).shrinks,
}

// What a worker does on its own signals.
var onWorker = []string{"QUIT", "TERM", "INT", "USR1"}

// plays is the whole matrix, state by state.
func plays() (all []play) {
	for i := range states {
		s := &states[i]
		for _, to := range s.masters {
			for _, row := range supervisor.Signals() {
				all = append(all, masterPlay(s, row.Name, to))
			}
		}
		for _, to := range s.workers {
			for _, name := range onWorker {
				all = append(all, workerPlay(s, name, to))
			}
		}
		if s.noWorkers != "" {
			for _, name := range onWorker {
				all = append(all, play{state: s, signal: name, to: toWorker, why: s.noWorkers})
			}
		}
		if s.name == "running" {
			all = append(all, bursts(s)...)
		}
	}
	for i := range all {
		all[i].short = slices.Contains(shortly, all[i].name())
	}
	return all
}

func masterPlay(s *state, name, to string) play {
	p := play{state: s, signal: name, to: to, effect: onMaster[name]}
	ends := name == "QUIT" || name == "TERM" || name == "INT" || name == "WINCH"
	switch s.name {
	case "running", "rolling":
		p.alone = !ends
	case "upgrading", "upgraded":
		p.alone = !ends || to == toNew || s.name == "upgraded"
		if name == "USR2" {
			p.effect = (*subject).refuses
		}
	case "draining":
		p.effect = map[string]effect{"USR2": (*subject).refuses, "USR1": (*subject).reopens}[name]
		switch {
		case p.effect != nil:
		case ends && name != "WINCH":
			p.effect = (*subject).ends
		default:
			p.effect = (*subject).ignores
		}
		// A worker that is asked a second time ends at once.
		p.cuts = name == "TERM" || name == "INT"
	case "a worker hangs":
		// Where the hung one has to go it is killed in the end.
		p.cuts = ends || name == "HUP" || name == "TTOU" || name == "USR2"
	case "crash loop":
		if name == "USR2" {
			p.effect = (*subject).givesUp
		}
	}
	return p
}

func workerPlay(s *state, name, to string) play {
	p := play{state: s, signal: name, to: to, effect: (*subject).isReplaced}
	p.alone = s.name == "running" || s.name == "rolling" || s.name == "upgrading" || s.name == "upgraded"
	switch {
	case name == "USR1":
		p.effect = (*subject).workerReopens
	case s.name == "draining":
		p.effect, p.cuts = (*subject).ends, true
	case s.name == "rolling" && to == toNewWorker:
		p.effect = (*subject).failsTheRoll
	case s.name == "upgrading" && to == toNewWorker:
		p.effect = (*subject).failsTheUpgrade
	}
	return p
}

// bursts are several signals at once.
func bursts(s *state) []play {
	burst := func(name, to string, e effect, cuts bool) play {
		return play{state: s, signal: name, to: to, effect: e, cuts: cuts}
	}
	all := []play{
		burst("a burst of USR1, TTIN, HUP, USR2", toMaster, (*subject).survivesBurst, false),
		burst("a burst of WINCH, HUP, TTIN, TTOU, USR1", toMaster, (*subject).survivesPause, false),
		burst("a burst with QUIT", toMaster, endsInBurst("HUP", "TTIN", "USR2", "USR1", "WINCH", "QUIT"), false),
		burst("a burst of all", toMaster, endsInBurst("USR1", "USR2", "HUP", "TTIN", "TTOU", "WINCH", "QUIT", "INT", "TERM"), true),
		burst("a burst of QUIT, TERM, INT, USR1", toWorker, (*subject).workerEndsInBurst, true),
		burst("1000 requests", toMaster, (*subject).counts, false),
	}
	all[0].alone, all[4].alone, all[5].alone = true, true, true
	return all
}

// shortly are the cells of a short run: each signal, and each state.
var shortly = []string{
	"starting: USR1",
	"running: HUP", "running: USR2", "running: TTIN", "running: TTOU", "running: USR1", "running: WINCH", "running: QUIT", "running: TERM",
	"running: QUIT to a worker", "running: USR1 to a worker",
	"running: a burst of USR1, TTIN, HUP, USR2", "running: a burst of all", "running: 1000 requests",
	"rolling: HUP", "rolling: TERM to a new worker",
	"upgrading: USR2 to the old master", "upgrading: INT to the new master",
	"upgraded: QUIT to the old master", "upgraded: WINCH to the old master", "upgraded: QUIT to the new master",
	"draining: TERM", "draining: TTIN",
	"a worker hangs: QUIT", "a worker hangs: TTIN",
	"crash loop: HUP", "crash loop: USR2",
	"paused: HUP",
}
