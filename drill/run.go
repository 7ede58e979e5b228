package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/proxy"
)

// Config says what to drill and how hard. Commands are argv lists to which Run
// appends flags.
type Config struct {
	Dir      string // journals and logs; a new temporary folder if empty
	Rate     int    // events per second over both publishers
	For      time.Duration
	Deploys  int
	Mutant   string
	Scenario string // one of Scenarios; the first if empty
	Short    bool   // plays some cells of the matrix of signals; no long absence of the hub
	Seed     uint64 // of the random instants; one is drawn if it is 0
	Cells    string // a regular expression for the names of cells to play, instead
	Progress io.Writer

	Hub    []string // gets --dir, --listen, --monitor
	Master []string // gets -n, --events, --pid-file, --, and Worker
	Worker []string
	Deploy []string // gets --pid-file, --probation, --max-errors and --json
	Shop   []string // gets --name, --rate and --plant
	// Refusable is the group whose handlers fail when Worker gets --refuse.
	Refusable string
	Expect    []Expectation
}

const (
	publishers = 2
	patience   = 30 * time.Second // with one step of a scenario
)

type drill struct {
	Config
	sc     Scenario
	ctx    context.Context
	ev     Evidence
	reader *Reader
	led    *Ledger
	m      masters
	hub    broker
	procs  []*proc
	hubs   *proc
	nodes  []*node // instead, in the scenario cluster
	shops  []*shop
	rng    *rand.Rand
	proxy  *proxy.Proxy // of the first publisher, in scenarios with spools
	tmp    string       // the masters' temporary folder; "": the usual one

	embedded bool // the hub is in one of the programs

	phase string
	said  time.Time

	lineages int      // of the matrix, ever
	previous *lineage // serves until the next one does
}

// Run drills the given commands and judges the result. It leaves no process
// behind, however it ends; Dir stays, and holds the verdict too. An interrupt
// tears everything down in order, a second one kills it.
func Run(ctx context.Context, cfg Config) (*Verdict, error) {
	sc, err := scenarioOf(cfg.Scenario)
	if err != nil {
		return nil, err
	}
	if sc.traced {
		if err := canTrace(); err != nil {
			return nil, err
		}
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := makeDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = dir
	adoptOrphans()
	d := &drill{Config: cfg, sc: sc, ctx: ctx, reader: NewReader(dir), led: &Ledger{}}
	d.m = masters{file: filepath.Join(dir, "master.events"), workers: map[int]*workerState{}}
	d.sow()
	d.ev.Expect, d.ev.WantFates, d.ev.WantKills, d.ev.WantOutages = cfg.Expect, sc.fates, sc.kills, sc.outages
	if sc.rate > 0 {
		d.Rate = min(d.Rate, sc.rate)
	}
	err = sc.run(d)
	impatient := d.killOnSecondInterrupt()
	down := d.tearDown()
	impatient.StopAndWait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("interrupted; journals and logs are in %s", dir)
	}
	if err != nil {
		d.ev.Broken = append(d.ev.Broken, err.Error())
	}
	if down != nil {
		d.ev.Broken = append(d.ev.Broken, down.Error())
	}
	return d.verdict()
}

func makeDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "tidings-drill-")
	}
	if old, _ := filepath.Glob(filepath.Join(dir, "ledger", "*")); len(old) > 0 {
		return "", fmt.Errorf("%s holds the journals of another run: name a new folder", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

func (d *drill) verdict() (*Verdict, error) {
	led, err := d.reader.Finish()
	if err != nil {
		return nil, err
	}
	d.ev.Quits, d.ev.Exits, d.ev.Reports = d.m.quits, d.m.exits, d.m.reports
	for _, p := range d.procs {
		if p.exited() {
			d.ev.Exits = append(d.ev.Exits, p.exit)
		}
	}
	v := Judge(led, &d.ev, DefaultLimits())
	v.Dir = d.Dir
	f, err := os.OpenFile(filepath.Join(d.Dir, "verdict.json"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return v, errors.Join(v.WriteJSON(f), f.Close())
}

// scenario is the run: quiet, deploy, kill, deploy, restart of the hub, deploys,
// quiet.
func (d *drill) scenario() error {
	if err := d.start(); err != nil {
		return err
	}
	steps := []func() error{d.deployUSR2, d.kill, d.deployHUP, d.restartHub, d.deployBusy}
	d.ev.WantDeploys = d.Deploys
	names := []string{"deploy 1", "kill -9", "deploy 2", "hub restart", "deploy 3"}
	kinds := []Kind{Deploys, Kills, Deploys, Outages, Deploys}
	each := d.For / time.Duration(len(steps)+1)
	if err := d.enter("warm-up", Steady, each, nil); err != nil {
		return err
	}
	deploys := 0
	for i, step := range steps {
		if kinds[i] == Deploys {
			if deploys++; deploys > d.Deploys {
				continue
			}
		}
		if err := d.enter(names[i], kinds[i], each, step); err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
	}
	for ; deploys < d.Deploys; deploys++ {
		if err := d.enter(fmt.Sprintf("deploy %d", deploys+1), Deploys, each, d.deployBusy); err != nil {
			return err
		}
	}
	return d.coolDown()
}

// enter starts a phase, does its damage, and lets the rest of its time pass.
func (d *drill) enter(name string, kind Kind, length time.Duration, damage func() error) error {
	d.phase = name
	end := witness.Now() + length
	d.ev.Phases = append(d.ev.Phases, Phase{Name: name, Kind: kind, Start: witness.Now()})
	if damage != nil {
		// What the damage meets was then published in this phase, whose bounds it has.
		meets := witness.Now() + lookahead + 100*time.Millisecond
		if err := d.until(patience, func() bool { return witness.Now() >= meets }); err != nil {
			return err
		}
		if err := damage(); err != nil {
			return err
		}
	}
	// A phase that took its time is still watched for a while.
	end = max(end, witness.Now()+length/3)
	return d.until(length+patience, func() bool { return witness.Now() >= end })
}

// errVain is the end of patience.
var errVain = errors.New("waited in vain")

// until polls until ok, an interrupt, or the end of patience.
func (d *drill) until(limit time.Duration, ok func() bool) error {
	return d.poll(20*time.Millisecond, limit, ok)
}

func (d *drill) poll(every, limit time.Duration, ok func() bool) error {
	deadline := witness.Now() + limit
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := d.look(); err != nil {
			return err
		}
		if ok() {
			return nil
		}
		if witness.Now() > deadline {
			return fmt.Errorf("%w for %v", errVain, limit)
		}
		select {
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-tick.C:
		}
	}
}

func (d *drill) look() error {
	if err := d.m.poll(); err != nil {
		return err
	}
	if d.Progress == nil || time.Since(d.said) < time.Second {
		return nil
	}
	d.said = time.Now()
	led, err := d.reader.Poll()
	if err != nil {
		return err
	}
	d.led = led
	p := d.progress(led)
	fmt.Fprintf(d.Progress, "%-12s accepted %6d  handled %6d  lag %4d  workers %v\n", d.phase, p.accepted, p.handled, max(p.due-p.handled, 0), d.m.live(0))
	return nil
}

// progress counts what was accepted, how often it is to be handled, and how often
// it was.
type progress struct{ accepted, due, handled int }

func (d *drill) progress(led *Ledger) (p progress) {
	groups, givesUp := map[string]int{}, map[string]int{}
	for _, x := range d.Expect {
		groups[x.Topic]++
		if x.GivesUp {
			givesUp[x.Topic]++
		}
	}
	for _, r := range led.Reporters {
		for _, e := range r.Entries {
			switch {
			case e.Kind == witness.Accept:
				p.accepted++
				p.due += groups[e.Topic]
			case e.Kind == witness.Plan && e.Fate.Dies() && d.ev.Redrive == nil:
				p.due -= givesUp[e.Topic]
			case e.Kind == witness.End && e.Err == "":
				p.handled++
			}
		}
	}
	return p
}

func (d *drill) start() error {
	return d.startWith(d.sc.master, slices.Concat(d.Worker, d.sc.worker))
}

// startWith starts hub, master and publishers, and waits for the workers.
func (d *drill) startWith(flags, worker []string) error {
	d.phase = "start"
	begin := func() error { return d.startHub("hub") }
	if d.sc.clustered {
		begin = d.startCluster
	}
	if err := begin(); err != nil {
		return err
	}
	return inTurn(func() error { return d.startWorkers("master", flags, worker) }, d.startShops)
}

// startWorkers starts a master, and waits for its workers.
func (d *drill) startWorkers(name string, flags, worker []string) error {
	p, err := d.startMaster(name, d.sc.workers, flags, worker)
	if err != nil {
		return err
	}
	if err := d.until(patience, func() bool { return d.m.announced(p.pid()) || p.exited() }); err != nil {
		return err
	}
	if p.exited() {
		return p.died()
	}
	return nil
}

// env is what masters and publishers find in their environment.
func (d *drill) env() []string {
	url := d.hub.url
	switch {
	case d.sc.slow:
		url = d.through(d.proxy)
	case d.embedded:
		url = "embed:" + d.hubDir()
	}
	return []string{d.urlIn(url), witness.EnvDir + "=" + d.Dir, "TIDINGS_ROUTES="}
}

func (d *drill) urlIn(url string) string {
	if d.sc.spool {
		url += "&duplicates=" + window.String()
	}
	return "TIDINGS_URL=" + url
}

// pidFile is that of a master that startMaster has started.
func (d *drill) pidFile(name string) string { return filepath.Join(d.Dir, name+".pid") }

func (d *drill) startMaster(name string, workers int, flags, worker []string) (*proc, error) {
	argv := slices.Concat(d.Master, []string{"-n", strconv.Itoa(workers), "--events", d.m.file, "--pid-file", d.pidFile(name)}, flags, []string{"--"}, worker)
	return d.executeMaster(name, argv)
}

// executeMaster starts a master whose output is in files of that name.
func (d *drill) executeMaster(name string, argv []string) (*proc, error) {
	env := append(d.env(), "TIDINGS_MUTANT="+d.Mutant)
	if d.tmp != "" {
		env = append(env, "TMPDIR="+d.tmp)
	}
	p, err := d.launch(name, env, argv)
	if err != nil {
		return nil, err
	}
	d.m.own = append(d.m.own, p.pid())
	if d.Mutant == "" {
		return p, nil
	}
	warned := func() bool {
		_, ok := p.says("WARNING: this process runs with the defect " + d.Mutant)
		return ok
	}
	if err := d.until(patience, func() bool { return warned() || slices.Contains(d.m.all, p.pid()) || p.exited() }); err != nil {
		return nil, err
	}
	if !warned() {
		return nil, fmt.Errorf("there is no defect %q in this binary: build it with -tags mutants", d.Mutant)
	}
	return p, nil
}

func (d *drill) launch(name string, env, argv []string) (*proc, error) {
	p, err := startProc(d.Dir, name, env, argv)
	if err == nil {
		d.procs = append(d.procs, p)
	}
	return p, err
}

func (d *drill) startHub(name string) error {
	argv := append(slices.Clone(d.Hub), "--dir", d.hubDir(), "--listen", "127.0.0.1:0", "--monitor", "127.0.0.1:0")
	var env []string
	if d.sc.traced {
		argv, env = d.traced(argv), []string{"TIDINGS_MUTANT=" + d.Mutant}
	}
	p, err := d.launch(name, env, argv)
	if err != nil {
		return err
	}
	d.hubs = p
	err = d.until(patience, func() bool { _, ok := p.says("ready"); return ok || p.exited() })
	if p.exited() {
		return p.died()
	}
	d.hub.url, _ = p.says("url ")
	monitor, _ := p.says("monitor ")
	d.hub.monitors = []string{monitor}
	if err == nil && d.sc.traced {
		return d.noteTracee()
	}
	return err
}

func (d *drill) topics() (out []string) {
	for _, x := range d.Expect {
		if x.Durable && !slices.Contains(out, x.Topic) {
			out = append(out, x.Topic)
		}
	}
	return out
}

// coolDown stops the publishers, waits until nothing moves any more, and takes
// down what the broker holds; then it redrives what was given up.
func (d *drill) coolDown() error {
	d.phase = "cool-down"
	d.ev.Finish = witness.Now()
	var errs []error
	for _, p := range d.shops {
		errs = append(errs, p.stop(syscall.SIGTERM, patience))
	}
	err := d.settled()
	if err == nil {
		err = d.redrive()
	}
	if d.sc.spool {
		errs = append(errs, d.noteSpools())
	}
	return errors.Join(append(errs, err)...)
}

// settled waits until the broker has nothing left to deliver.
func (d *drill) settled() error {
	return d.until(patience, func() bool {
		_, end, err := d.hub.state(d.ctx, d.topics())
		if err == nil {
			d.ev.End = &end
		}
		return err == nil && end.Pending == 0 && end.AckPending == 0
	})
}

// tearDown ends what runs: publishers, master, hub; then whatever the master's
// events still name.
func (d *drill) tearDown() error {
	d.phase = "tear-down"
	d.ctx = context.Background()
	var errs []error
	for _, p := range d.shops {
		errs = append(errs, p.stop(syscall.SIGTERM, patience))
	}
	_ = d.look()
	for _, pid := range d.m.all {
		_ = unix.Kill(pid, unix.SIGQUIT) // gone already, or the current one
	}
	if len(d.m.all) > 0 {
		errs = append(errs, d.until(patience, func() bool { return len(d.running()) == 0 }))
	}
	for _, pid := range d.running() {
		errs = append(errs, fmt.Errorf("pid %d had to be killed at the end", pid))
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if d.proxy != nil {
		d.proxy.Close()
	}
	for _, p := range slices.Backward(d.procs) {
		errs = append(errs, p.stop(syscall.SIGTERM, 10*time.Second))
	}
	return errors.Join(errs...)
}

// running are the masters and workers that have not been seen to end.
func (d *drill) running() (pids []int) {
	for _, w := range d.m.workers {
		if w.gone == 0 && unix.Kill(w.pid, 0) == nil {
			pids = append(pids, w.pid)
		}
	}
	for _, pid := range d.m.all {
		if !d.masterGone(pid) && unix.Kill(pid, 0) == nil {
			pids = append(pids, pid)
		}
	}
	for _, pid := range d.m.hubs {
		if !d.m.gone(pid) && unix.Kill(pid, 0) == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (d *drill) masterGone(pid int) bool {
	for _, p := range d.procs {
		if p.pid() == pid {
			return p.exited()
		}
	}
	return d.m.gone(pid)
}

func (d *drill) killOnSecondInterrupt() *loop.Loop {
	pids := d.running()
	for _, p := range d.procs {
		pids = append(pids, p.pid())
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	return loop.Go(func(ctx context.Context) {
		defer signal.Stop(c)
		select {
		case <-c:
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		case <-ctx.Done():
		}
	})
}
