package drill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

const (
	cellPatience = 15 * time.Second
	takePatience = 5 * time.Second // until a master notices a signal
	watched      = 300 * time.Millisecond
	// So many cells may go wrong before the rest is given up.
	maxWrong = 5
)

// matrix plays every cell that was asked for: first those in which somebody of the
// cell's own serves all the time, then, beside workers that have nothing to do with
// it, those in which nobody would. So there is no time for which a loss had to be
// forgiven because nobody was there.
func (d *drill) matrix() error {
	todo, err := d.chosen()
	if err != nil {
		return err
	}
	if err := d.startHub("hub"); err != nil {
		return err
	}
	d.mark("start", Between, witness.Now())
	if d.previous, err = d.standIn(signalWorkers); err != nil {
		return err
	}
	if err := d.startShops(); err != nil {
		return err
	}
	if err := d.playAll(todo, true); err != nil {
		return err
	}
	if slices.ContainsFunc(todo, func(p play) bool { return p.why == "" && !p.alone }) {
		relief, err := d.standIn(signalWorkers)
		if err != nil {
			return err
		}
		if err := d.handOver(); err != nil {
			return err
		}
		if err := d.playAll(todo, false); err != nil {
			return err
		}
		d.previous = relief
	}
	return errors.Join(d.coolDown(), d.handOver())
}

// playAll plays the cells that are played alone, or the others.
func (d *drill) playAll(todo []play, alone bool) error {
	for i, p := range todo {
		if p.why != "" || p.alone != alone {
			continue
		}
		if err := d.playCell(p, d.ev.Cells[i]); err != nil {
			return err
		}
	}
	return nil
}

// chosen are the cells that were asked for. Each has its place in the evidence.
func (d *drill) chosen() ([]play, error) {
	choice, err := regexp.Compile(d.Cells)
	if err != nil {
		return nil, fmt.Errorf("cells: %w", err)
	}
	todo := slices.DeleteFunc(plays(), func(p play) bool { return d.Short && d.Cells == "" && !p.short || !choice.MatchString(p.name()) })
	if len(todo) == 0 {
		return nil, fmt.Errorf("no cell matches %q; `running: HUP` is one", d.Cells)
	}
	for _, p := range todo {
		d.ev.Cells = append(d.ev.Cells, &Cell{Name: p.name(), State: p.state.name, Signal: p.signal, To: p.to, Nothing: p.why})
	}
	return todo, nil
}

// standIn is a lineage without a cell, once it is ready.
func (d *drill) standIn(workers int) (*lineage, error) {
	l, err := d.startLineage(workers, nil, d.worker(nil))
	if err != nil {
		return nil, err
	}
	return l, l.ready()
}

func (d *drill) worker(flags []string) []string {
	return slices.Concat(d.Worker, []string{"--boot=0s", "--work=3ms"}, flags)
}

// mark begins a phase. One before it that was to begin later begins now.
func (d *drill) mark(name string, kind Kind, at Mono) {
	d.phase = name
	if n := len(d.ev.Phases); n > 0 {
		d.ev.Phases[n-1].Start = min(d.ev.Phases[n-1].Start, at)
	}
	d.ev.Phases = append(d.ev.Phases, Phase{Name: name, Kind: kind, Start: at})
}

// playCell plays one cell. It returns only errors that end the run.
func (d *drill) playCell(p play, c *Cell) error {
	l, err := d.enterState(p)
	if err == nil {
		l.cell = c
		err = l.act(p, c)
	}
	if d.ctx.Err() != nil {
		return d.ctx.Err()
	}
	c.fails(err)
	if l == nil {
		return err
	}
	if p.alone && d.previous == nil {
		d.previous = l // until the next one serves
	} else {
		c.fails(l.retire())
	}
	d.report(c)
	wrong := 0
	for _, c := range d.ev.Cells {
		if len(c.Wrong) > 0 {
			wrong++
		}
	}
	if wrong > maxWrong {
		return fmt.Errorf("%d cells went wrong: the rest was not played", wrong)
	}
	return nil
}

func (c *Cell) fails(err error) {
	if err != nil {
		c.Wrong = append(c.Wrong, strings.Split(err.Error(), "\n")...)
	}
}

// report says how a cell went.
func (d *drill) report(c *Cell) {
	if d.Progress == nil {
		return
	}
	how := c.Effect
	if len(c.Wrong) > 0 {
		how = "WRONG: " + strings.Join(c.Wrong, "; ")
	} else if c.Missed != "" {
		how = "missed: " + c.Missed
	}
	fmt.Fprintf(d.Progress, "%-50s %4d ms  %s\n", c.Name, (c.End - c.Start).Milliseconds(), how)
}

// enterState brings a new lineage into the state.
func (d *drill) enterState(p play) (*lineage, error) {
	worker := d.worker(p.state.worker)
	if p.state.broken {
		if err := os.WriteFile(d.brokenFile(), nil, 0o600); err != nil {
			return nil, err
		}
		worker = append([]string{"sh", "-c", `test ! -e "$0" || { echo "it is broken, as $0 says" >&2; exit 3; }; exec "$@"`, d.brokenFile()}, worker...)
	}
	l, err := d.startLineage(signalWorkers, p.state.master, worker)
	if err != nil {
		return l, err
	}
	return l, p.state.enter(l)
}

func (d *drill) brokenFile() string { return filepath.Join(d.Dir, "broken") }

// handOver ends the lineage before, now that another one serves.
func (d *drill) handOver() error {
	l := d.previous
	if l == nil {
		return nil
	}
	d.previous = nil
	err := l.retire()
	if err != nil && l.cell != nil && d.ctx.Err() == nil {
		l.cell.fails(err)
		return nil
	}
	return err
}

// act sends the signal, and sees what comes of it.
func (l *lineage) act(p play, c *Cell) error {
	s, err := l.meet(p)
	if err != nil {
		return err
	}
	if p.leaves() {
		if err := l.crowdFor(pidsOf(l.serving(s.master))); err != nil {
			return err
		}
	}
	for _, w := range s.before {
		if w.ready != 0 {
			c.Workers = append(c.Workers, w.pid)
		}
	}
	if p.state.broken && p.signal == "HUP" {
		if err := os.Remove(l.brokenFile()); err != nil {
			return err
		}
	}
	c.Start = witness.Now()
	l.mark(c.Name, Signals, c.Start)
	if sig, ok := numbers[p.signal]; ok {
		if err := s.send(sig); err != nil {
			return err
		}
	}
	c.Effect, err = p.effect(s)
	// What was done in no time is watched for a while.
	err = errors.Join(err, l.until(patience, func() bool { return witness.Now() >= c.Start+watched }))
	c.End = witness.Now()
	if p.state.passes != nil && p.state.passes(s) {
		c.Missed, err = "the state was over when the signal was sent", nil
	}
	// Events are attributed to what they will meet.
	l.mark("between", Between, c.End+lookahead)
	return errors.Join(err, l.unclean(s.mayBeCut))
}

// mayBeCut: the worker is one that the cell's signal may end with events in its
// hands.
func (s *subject) mayBeCut(w *workerState) bool {
	switch {
	case !s.cuts:
		return false
	case s.state.name == "a worker hangs":
		return w.pid == s.hung
	case s.pid != s.master:
		return w.pid == s.pid
	}
	return true
}

// leaves: workers that serve are asked to go at once.
func (p play) leaves() bool {
	if p.state.passes != nil || p.state.broken || p.state.noWorkers != "" {
		return false
	}
	switch p.signal {
	case "QUIT", "TERM", "INT", "WINCH", "TTOU":
		return true
	}
	return strings.HasPrefix(p.signal, "a burst")
}

// crowdFor waits for a moment in which each of the workers has something in its
// hands and events wait besides.
func (l *lineage) crowdFor(pids []int) error {
	pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(l.stopped, pid) })
	return l.crowd(pids, 4, 2500*time.Millisecond)
}
