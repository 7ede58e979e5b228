package drill

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// A Scenario is a run that Config.Scenario can name.
type Scenario struct {
	Name, About string

	workers   int
	master    []string // flags besides those of every run
	worker    []string // so too
	plant     string   // for publishers
	fates     []witness.Fate
	kills     int
	outages   int
	rate      int  // at most
	spool     bool // publishers have one, and streams soon forget ids
	slow      bool // the way to the hub
	traced    bool // the hub
	clustered bool // it is three
	kept      bool // the hub is the master's, then the programs'
	run       func(*drill) error
}

// What is planted in the orders of the default run: one in seventy fails for good,
// more than that at first. The numbers have no common divisor with each other nor
// with that of the customers, so that each of these has every fate.
const plants = "panics/211,poison/97,flaky/37"

// Scenarios are all there are; the first is the default.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "deploys", About: "deploys, a kill -9, a restart of the hub, while some handlers fail or panic; then a redrive",
			workers: 2, plant: plants, fates: []witness.Fate{witness.Flaky, witness.Poison, witness.Panics}, kills: 1, outages: 1, run: (*drill).scenario},
		{Name: "deadly", About: "an event that kills every process that handles it, until it is given up",
			workers: 2, plant: "deadly@406,flaky/37", fates: []witness.Fate{witness.Deadly, witness.Flaky}, rate: 400, run: (*drill).deadly},
		{Name: "slow", About: "handlers that outlast the ack wait; then a deploy whose drain cuts them off",
			// What is behind a slow one begins only when that has ended, and which customers
			// share a worker differs from run to run: so there are many workers, and three
			// stubborn ones.
			workers: 2, worker: []string{"--workers=32"}, plant: "long@200,long@201,long@202,long@203,slow@300,stubborn@301,stubborn@302,stubborn@303", fates: []witness.Fate{witness.Long, witness.Slow, witness.Stubborn}, rate: 400,
			master: []string{"--drain-timeout=4s"}, run: (*drill).slow},
		{Name: "sole", About: "a kill -9 of the only worker, while some handlers fail or panic",
			workers: 1, plant: plants, fates: []witness.Fate{witness.Flaky, witness.Poison, witness.Panics}, kills: 1, rate: 400, run: (*drill).sole},
		{Name: "release", About: "tidings deploy: a version that does not start, one that fails, good ones; a kill -9 of an old worker and of the master",
			workers: 2, plant: "poison/97,flaky/37", fates: []witness.Fate{witness.Flaky, witness.Poison}, kills: 1, rate: 400, run: (*drill).release},
		{Name: "outage", About: "publishers and the hub killed with -9, a hub that is away, full spools: what publishers were told holds",
			workers: 2, plant: "twice/10", fates: []witness.Fate{witness.Twice}, outages: 4, rate: 400, spool: true, run: (*drill).outage},
		{Name: "network", About: "a way to the hub of 20 ms; deploys over it; it is cut, and open in one direction only",
			workers: 2, rate: 400, slow: true, run: (*drill).network},
		{Name: "sync", About: "the hub's system calls are traced: nothing is acknowledged that is not on the disk (Linux, with strace)",
			workers: 2, rate: 200, traced: true, run: (*drill).synced},
		{Name: "cluster", About: "three hubs are a cluster, with every stream on each; one after the other is killed with -9 and started again; then a deploy",
			workers: 2, rate: 200, outages: nodes, clustered: true, run: (*drill).cluster},
		{Name: "hub", About: "the hub under tidings run --hub: deploys, and a kill -9 of it; then embed:DIR, and a kill -9 of whoever has the hub in itself",
			workers: 2, rate: 400, outages: 2 + leastHosts, kept: true, run: (*drill).keptHub},
		{Name: "signals", About: "every signal, in every state of a master, to masters and workers",
			rate: 300, run: (*drill).matrix},
	}
}

// A turn is a phase in which something is done.
type turn struct {
	name string
	kind Kind
	do   func() error
}

// perform has turns, between two quiet phases, and has all settle.
func (d *drill) perform(each time.Duration, turns ...turn) error {
	for _, s := range slices.Concat([]turn{{"warm-up", Steady, nil}}, turns, []turn{{"after", Steady, nil}}) {
		if err := d.enter(s.name, s.kind, each, s.do); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return d.coolDown()
}

// inTurn ends at the first error.
func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func scenarioOf(name string) (Scenario, error) {
	all := Scenarios()
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
	switch {
	case name == "":
		return all[0], nil
	case i < 0:
		var names []string
		for _, s := range all {
			names = append(names, s.Name)
		}
		return Scenario{}, fmt.Errorf("there is no scenario %q; there are %q", name, names)
	}
	return all[i], nil
}

// deadly publishes one event that kills, and waits until it is given up.
func (d *drill) deadly() error {
	if err := d.start(); err != nil {
		return err
	}
	each := d.For / 3
	if err := d.enter("warm-up", Steady, each/4, nil); err != nil {
		return err
	}
	want := len(d.shops) // each publisher has one
	if err := d.enter("deadly event", Crashes, each, func() error {
		var letters []Letter
		err := d.poll(250*time.Millisecond, 2*patience, func() bool {
			letters, _ = d.deadLetters() // the hub is there: what fails now, fails at the end
			return len(letters) >= want
		})
		if errors.Is(err, errVain) {
			return fmt.Errorf("%d of %d deadly events were given up: %w", len(letters), want, err)
		}
		if err != nil {
			return err
		}
		return d.until(patience, func() bool { return len(d.m.live(0)) >= d.sc.workers })
	}); err != nil {
		return err
	}
	if err := d.enter("after", Steady, each, nil); err != nil {
		return err
	}
	if err := d.noteCrashes(); err != nil {
		return err
	}
	return d.coolDown()
}

// noteCrashes makes evidence of the workers that a deadly event has ended.
func (d *drill) noteCrashes() error {
	led, err := d.reader.Poll()
	if err != nil {
		return err
	}
	for _, x := range d.m.exits {
		if x.Code != witness.DeadlyStatus {
			continue
		}
		for _, r := range led.Reporters {
			if r.PID == x.PID {
				d.ev.Crashes = append(d.ev.Crashes, Kill{PID: x.PID, Sent: r.last, Noticed: x.At, InHand: len(r.inHand())})
			}
		}
	}
	d.noteAway()
	return nil
}

// noteAway makes evidence of the times in which no worker was ready.
func (d *drill) noteAway() {
	type change struct {
		at Mono
		by int
	}
	var changes []change
	for _, w := range d.m.workers {
		if w.ready != 0 {
			changes = append(changes, change{w.ready, 1})
			if w.gone != 0 {
				changes = append(changes, change{w.gone, -1})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return int(a.at - b.at) })
	n := 0
	for i, c := range changes {
		if n += c.by; n == 0 && i+1 < len(changes) {
			d.ev.Away = append(d.ev.Away, Span{c.at, changes[i+1].at})
		}
	}
}

// slow lets some handlers take their time, and deploys while others are at work
// that outlast the drain.
func (d *drill) slow() error {
	if err := d.start(); err != nil {
		return err
	}
	each := d.For / 3
	// No longer than it takes: those that will be cut are at work meanwhile, and what
	// is behind them waits.
	if err := d.enter("slow handler", Slows, 0, func() error {
		return d.until(patience, func() bool {
			return slices.ContainsFunc(d.worked(witness.Long), func(s Span) bool { return s.To-s.From >= witness.LongTime })
		})
	}); err != nil {
		return err
	}
	if err := d.enter("cut drain", Cuts, each, func() error {
		if err := d.until(patience, func() bool { return d.atWork(witness.Slow) && d.atWork(witness.Stubborn) }); err != nil {
			return err
		}
		if err := witness.Mend(d.Dir); err != nil { // those at work go on
			return err
		}
		err := d.deployHUP()
		if n := len(d.ev.Deploys); n > 0 {
			d.ev.Deploys[n-1].Cut = true
		}
		return err
	}); err != nil {
		return err
	}
	if err := d.enter("after", Steady, each, nil); err != nil {
		return err
	}
	return d.coolDown()
}

// atWork reports whether a handler of an event with that fate has begun and not
// ended.
func (d *drill) atWork(f witness.Fate) bool {
	return slices.ContainsFunc(d.worked(f), func(s Span) bool { return s.To == 0 })
}

// worked are the times from begin to end of the handlers of events with that fate.
func (d *drill) worked(f witness.Fate) (out []Span) {
	led, err := d.reader.Poll()
	if err != nil {
		return nil // what cannot be read now cannot be read at the end, and is said then
	}
	planted := map[eventKey]bool{}
	for _, r := range led.Reporters {
		for _, e := range r.Entries {
			if e.Kind == witness.Plan && e.Fate == f {
				planted[eventKey{e.Topic, e.ID}] = true
			}
		}
	}
	for _, r := range led.Reporters {
		begun := map[deliveryKey]Mono{}
		for i := range r.Entries {
			e := &r.Entries[i]
			k := deliveryOf(e)
			switch {
			case !planted[k.eventKey]:
			case e.Kind == witness.Begin:
				begun[k] = e.At
			case e.Kind == witness.End:
				out = append(out, Span{begun[k], e.At})
				delete(begun, k)
			}
		}
		for _, at := range begun {
			out = append(out, Span{From: at})
		}
	}
	return out
}

// sole kills the only worker.
func (d *drill) sole() error {
	if err := d.start(); err != nil {
		return err
	}
	err := d.perform(d.For/3, turn{"kill -9", Kills, d.kill})
	d.noteAway()
	return err
}
