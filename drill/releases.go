package drill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

// Exit statuses of tidings deploy.
const (
	exitGood       = 0
	exitUnknown    = 1 // the master is gone
	exitRolledBack = 4
	exitLost       = 5 // or unaccounted for
)

// Some planted failures more than the old workers have had must not take a good
// version back; that of a bad one is that every event fails.
const allowedErrors = "50"

// release deploys by tidings deploy, bad versions and good ones.
func (d *drill) release() error {
	// A master that is killed cannot remove what it has there: it is to stay in the
	// run's folder.
	d.tmp = filepath.Join(d.Dir, "tmp")
	if err := os.Mkdir(d.tmp, 0o700); err != nil {
		return err
	}
	if err := d.install("first", d.Worker...); err != nil {
		return err
	}
	flags := []string{"--state", filepath.Join(d.Dir, "state")}
	if err := d.startWith(flags, []string{d.program()}); err != nil {
		return err
	}
	each := d.For / 6
	for _, step := range []struct {
		name   string
		kind   Kind
		damage func() error
	}{
		{"warm-up", Steady, nil},
		{"no start", Deploys, d.deployBroken},
		{"failing", Deploys, d.deployRefusing},
		{"good", Deploys, d.deployGood},
		{"kill -9", Kills, d.killDuringDeploy},
		{"no master", Masters, d.killMasterDuringDeploy},
		{"after", Steady, nil},
	} {
		if err := d.enter(step.name, step.kind, each, step.damage); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	d.ev.WantDeploys, d.ev.WantReleases = 2, 5
	return d.coolDown()
}

// program is what the workers run. Each release is put there by rename, as
// docs/deploying.md says.
func (d *drill) program() string { return filepath.Join(d.Dir, "app", "billing") }

// install makes a release the program: it writes down who runs it, and becomes the
// given command.
func (d *drill) install(release string, command ...string) error {
	return d.installScript(release, "exec "+quoted(command)+` "$@"`)
}

func (d *drill) installScript(release, does string) error {
	text := fmt.Sprintf("#!/bin/sh\necho $$ %s >> %s\n%s\n", release, quoted([]string{d.startsFile()}), does)
	next := d.program() + ".new"
	if err := os.MkdirAll(filepath.Dir(next), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(next, []byte(text), 0o700); err != nil {
		return err
	}
	return os.Rename(next, d.program())
}

func quoted(words []string) string {
	var out []string
	for _, w := range words {
		out = append(out, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(out, " ")
}

func (d *drill) startsFile() string { return filepath.Join(d.Dir, "starts") }

// noteStarts makes evidence of which release each of the workers was started as.
func (d *drill) noteStarts(want string, pids ...int) error {
	text, err := os.ReadFile(d.startsFile())
	if err != nil {
		return err
	}
	for _, pid := range pids {
		s := Start{PID: pid, Want: want}
		for line := range strings.Lines(string(text)) {
			if who, release, _ := strings.Cut(strings.TrimSpace(line), " "); who == strconv.Itoa(pid) {
				s.Is = release
			}
		}
		d.ev.Starts = append(d.ev.Starts, s)
	}
	return nil
}

// A deployment is a tidings deploy that runs.
type deployment struct {
	*drill
	Release
	proc       *proc
	master     int
	from       int // the master's events begin here
	generation int // of its new workers; 0 until it has begun
}

// deploy starts tidings deploy, and waits until the master has begun.
func (d *drill) deploy(want int, probation time.Duration, flags ...string) (*deployment, error) {
	x := &deployment{drill: d, from: len(d.m.events), master: d.m.current,
		Release: Release{Name: d.phase, Want: want, Start: witness.Now(), Old: d.m.live(0)}}
	argv := slices.Concat(d.Deploy, []string{"--pid-file", d.pidFile("master"), "--json", "--probation", probation.String()}, flags)
	var err error
	if x.proc, err = d.launch("deploy-"+strconv.Itoa(len(d.ev.Releases)+1), d.env(), argv); err != nil {
		return nil, err
	}
	e, err := x.await(supervisor.EventDeployStarted)
	x.Begun, x.generation = Mono(e.MonoNS), e.Generation
	return x, err
}

// await waits for an event of the deploy.
func (x *deployment) await(kind string) (found supervisor.Event, err error) {
	err = x.until(patience, func() bool {
		i := slices.IndexFunc(x.m.events[x.from:], func(e supervisor.Event) bool { return e.Event == kind && e.Master == x.master })
		if i >= 0 {
			found = x.m.events[x.from+i]
		}
		return i >= 0 || x.proc.exited()
	})
	if err == nil && found.Event == "" {
		return found, x.proc.died()
	}
	if err != nil {
		return found, fmt.Errorf("%s of %s: %w", kind, x.proc.name, err)
	}
	return found, nil
}

// end waits for the end of the command, and makes evidence of it.
func (x *deployment) end() error {
	err := x.until(patience, x.proc.exited)
	if err != nil {
		return fmt.Errorf("%s: %w", x.proc.name, err)
	}
	x.End, x.Exit = x.proc.exit.At, x.proc.exit.Code
	for _, w := range x.m.workers {
		isNew := w.generation == x.generation
		if w.master == x.master && isNew {
			x.New = append(x.New, w.pid)
		}
		if w.master == x.master && isNew == (x.Exit == exitRolledBack) {
			x.Gone = max(x.Gone, w.gone)
		}
	}
	slices.Sort(x.New)
	if err := x.read(); err != nil {
		return err
	}
	x.ev.Releases = append(x.ev.Releases, x.Release)
	return nil
}

// read reads the receipt, which follows what the command said meanwhile.
func (x *deployment) read() error {
	text, err := os.ReadFile(x.proc.out)
	if err != nil {
		return err
	}
	i := bytes.Index(text, []byte("\n{\n"))
	if i < 0 {
		return nil // the rules know whether it must have one
	}
	x.Receipt = &supervisor.Receipt{}
	if err := json.Unmarshal(text[i:], x.Receipt); err != nil {
		return fmt.Errorf("%s: the receipt: %w", x.proc.name, err)
	}
	return nil
}

// replaced makes the deploy one that the rules for all deploys look at. The pids are
// those that went by themselves.
func (x *deployment) replaced(old []int) {
	dep := Deploy{Name: x.Name, Signal: "tidings deploy", Start: x.Start, OldGone: x.Gone, Old: old, New: x.New}
	for _, pid := range x.New {
		dep.NewReady = max(dep.NewReady, x.m.workers[pid].ready)
	}
	x.ev.Deploys = append(x.ev.Deploys, dep)
}

// deployBroken deploys a version that does not start.
func (d *drill) deployBroken() error {
	if err := d.installScript("broken", "echo 'no such database' >&2; exit 3"); err != nil {
		return err
	}
	x, err := d.deploy(exitRolledBack, time.Minute)
	if err != nil {
		return err
	}
	return x.end()
}

// deployRefusing deploys a version that starts well and fails with every event of a
// group.
func (d *drill) deployRefusing() error {
	if err := d.install("refusing", append(slices.Clone(d.Worker), "--refuse")...); err != nil {
		return err
	}
	x, err := d.deploy(exitRolledBack, time.Minute)
	if err != nil {
		return err
	}
	x.Refuses = d.Refusable
	return x.end()
}

func (d *drill) deployGood() error {
	if err := d.install("second", d.Worker...); err != nil {
		return err
	}
	x, err := d.deploy(exitGood, 2*time.Second, "--max-errors", allowedErrors)
	if err != nil {
		return err
	}
	if err := x.end(); err != nil {
		return err
	}
	x.replaced(x.Old)
	return d.noteStarts("second", x.New...)
}

// killDuringDeploy kills an old worker while new ones serve, too. What is started in
// its place is what it was. The deploy is committed all the same, as the new workers
// have nothing to do with it; and it says that one is unaccounted for.
func (d *drill) killDuringDeploy() error {
	if err := d.install("third", d.Worker...); err != nil {
		return err
	}
	x, err := d.deploy(exitLost, 5*time.Second, "--max-errors", allowedErrors)
	if err != nil {
		return err
	}
	if _, err := x.await(supervisor.EventDeployReady); err != nil {
		return err
	}
	victim := d.m.workers[x.Old[0]]
	if err := d.killWorker(victim.pid); err != nil {
		return err
	}
	var again *workerState
	if err := d.until(patience, func() bool {
		for _, w := range d.m.workers {
			if w.master == victim.master && w.slot == victim.slot && w.generation == victim.generation && w.gone == 0 && w.ready != 0 {
				again = w
			}
		}
		return again != nil || x.proc.exited()
	}); err != nil {
		return err
	}
	if err := x.end(); err != nil {
		return err
	}
	if again == nil {
		return fmt.Errorf("worker %d was killed during the probation, and nothing was ready in its place before its end", victim.pid)
	}
	x.replaced(append(slices.Clone(x.Old[1:]), again.pid))
	return errors.Join(d.noteStarts("second", again.pid), d.noteStarts("third", x.New...))
}

// killMasterDuringDeploy kills the master while new workers serve, and starts it
// again, with the candidate at the program's path. Its workers end by themselves,
// and until there are others nobody is there.
func (d *drill) killMasterDuringDeploy() error {
	if err := d.install("fourth", d.Worker...); err != nil {
		return err
	}
	x, err := d.deploy(exitUnknown, time.Hour, "--max-errors", allowedErrors)
	if err != nil {
		return err
	}
	if _, err := x.await(supervisor.EventDeployReady); err != nil {
		return err
	}
	i := slices.IndexFunc(d.procs, func(p *proc) bool { return p.pid() == x.master })
	away := Span{From: witness.Now()}
	d.m.orphans = true
	if err := unix.Kill(x.master, unix.SIGKILL); err != nil {
		return err
	}
	if err := d.until(patience, func() bool { return len(d.m.live(0)) == 0 && d.procs[i].exited() }); err != nil {
		return fmt.Errorf("workers of the killed master: %w", err)
	}
	if err := x.end(); err != nil {
		return err
	}
	p, err := d.executeMaster("master-again", d.procs[i].cmd.Args)
	if err != nil {
		return err
	}
	if err := d.until(patience, func() bool { return len(d.m.live(0)) == d.sc.workers || p.exited() }); err != nil {
		return err
	}
	if p.exited() {
		return p.died()
	}
	for i, pid := range d.m.live(0) {
		if ready := d.m.workers[pid].ready; i == 0 || ready < away.To {
			away.To = ready // one is enough
		}
	}
	d.ev.Away = append(d.ev.Away, away)
	return errors.Join(d.noteStarts("third", d.m.live(0)...), d.noteStarts("fourth", x.New...))
}
