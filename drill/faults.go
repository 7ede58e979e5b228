package drill

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
)

// deployHUP lets the master replace its workers.
func (d *drill) deployHUP() error {
	dep := Deploy{Name: d.phase, Signal: "HUP", Start: witness.Now(), Old: d.m.live(0)}
	generation := d.m.ready
	if err := unix.Kill(d.m.current, unix.SIGHUP); err != nil {
		return err
	}
	return d.finish(&dep, generation)
}

// deployUSR2 executes the master anew, and asks the old one to go at the very
// moment at which the new generation is ready: a READY that comes too early shows.
func (d *drill) deployUSR2() error { return d.reexec(func([]int) error { return nil }) }

// deployBusy does the same, and asks the old ones to go when events wait in their
// queues: a drain that does not wait for them shows.
func (d *drill) deployBusy() error {
	return d.reexec(func(old []int) error { return d.crowd(old, 4, 5*time.Second) })
}

func (d *drill) reexec(moment func(old []int) error) error {
	old, generation := d.m.current, d.m.ready
	dep := Deploy{Name: d.phase, Signal: "USR2 and QUIT", Start: witness.Now(), Old: append(d.m.live(0), old)}
	if err := unix.Kill(old, unix.SIGUSR2); err != nil {
		return err
	}
	if err := d.until(patience, func() bool { return d.m.ready > generation || d.m.problem != "" }); err != nil {
		return err
	}
	if d.m.problem != "" {
		return fmt.Errorf("%s", d.m.problem)
	}
	if err := moment(dep.Old[:len(dep.Old)-1]); err != nil {
		return err
	}
	if err := unix.Kill(old, unix.SIGQUIT); err != nil {
		return err
	}
	return d.finish(&dep, generation)
}

// finish waits until the generation after the given one is ready and the old
// processes are gone.
func (d *drill) finish(dep *Deploy, generation int) error {
	err := d.until(patience, func() bool {
		if d.m.problem != "" {
			return true
		}
		for _, pid := range dep.Old {
			if w := d.m.workers[pid]; w != nil && w.gone == 0 || w == nil && !d.masterGone(pid) {
				return false
			}
		}
		return d.m.ready > generation
	})
	dep.New = d.m.live(d.m.ready)
	dep.Failure, d.m.problem = d.m.problem, ""
	dep.OldGone = witness.Now()
	for _, pid := range dep.New {
		dep.NewReady = max(dep.NewReady, d.m.workers[pid].ready)
	}
	d.ev.Deploys = append(d.ev.Deploys, *dep)
	return err
}

// crowd waits until each of the workers has a handler at work and several times as
// many live events wait. If no such moment comes within the limit, the verdict will
// not find enough in flight.
func (d *drill) crowd(pids []int, times int, limit time.Duration) error {
	var failed error
	err := d.poll(time.Millisecond, limit, func() bool {
		var led *Ledger
		if led, failed = d.reader.Poll(); failed != nil {
			return true
		}
		for _, r := range led.Reporters {
			if slices.Contains(pids, r.PID) && len(r.inHand()) == 0 {
				return false
			}
		}
		return d.waiting(led) >= times*len(pids)
	})
	if errors.Is(err, errVain) {
		err = nil
	}
	return errors.Join(err, failed)
}

// waiting counts live events that were accepted a moment ago and that nobody has
// begun.
func (d *drill) waiting(led *Ledger) (n int) {
	live := map[string]bool{}
	for _, x := range d.Expect {
		live[x.Topic] = live[x.Topic] || !x.Durable
	}
	now := witness.Now()
	begun := map[eventKey]bool{}
	recent := func(kind witness.Kind, do func(e Entry)) {
		for _, r := range led.Reporters {
			for _, e := range slices.Backward(r.Entries) {
				if e.At < now-time.Second {
					break
				}
				if e.Kind == kind && live[e.Topic] {
					do(e)
				}
			}
		}
	}
	recent(witness.Begin, func(e Entry) { begun[eventKey{e.Topic, e.ID}] = true })
	recent(witness.Accept, func(e Entry) {
		if e.At < now-2*time.Millisecond && !begun[eventKey{e.Topic, e.ID}] {
			n++
		}
	})
	return n
}

// inHand are the latest begins without an end.
func (r *Reporter) inHand() (open []Entry) {
	ended := map[deliveryKey]bool{}
	for i, e := range slices.Backward(r.Entries) {
		if len(r.Entries)-i > 100 {
			break // handlers end in about the order in which they began
		}
		switch k := (deliveryKey{eventKey{e.Topic, e.ID}, e.Pattern, e.Group}); {
		case e.Kind == witness.End:
			ended[k] = true
		case e.Kind == witness.Begin && !ended[k]:
			open = append(open, e)
		}
	}
	return open
}

func (d *drill) inHand(pid int) ([]Entry, error) {
	led, err := d.reader.Poll()
	if err != nil {
		return nil, err
	}
	for _, r := range led.Reporters {
		if r.PID == pid {
			return r.inHand(), nil
		}
	}
	return nil, nil
}

// catch stops a worker in the middle of a durable event. It is not left stopped
// unless it is.
func (d *drill) catch(pid int) error {
	durable := d.topics()
	var failed error
	err := d.poll(time.Millisecond, 5*time.Second, func() bool {
		if failed = unix.Kill(pid, unix.SIGSTOP); failed != nil {
			return true
		}
		stopped := witness.Now()
		<-time.After(2 * time.Millisecond) // until its threads have really stopped
		var open []Entry
		if open, failed = d.inHand(pid); failed == nil {
			for _, e := range open {
				// Old enough for an acknowledgement that came too early to be on its way.
				if slices.Contains(durable, e.Topic) && e.At < stopped-time.Millisecond/2 {
					return true
				}
			}
		}
		failed = errors.Join(failed, unix.Kill(pid, unix.SIGCONT))
		return failed != nil
	})
	if errors.Is(err, errVain) {
		err = nil
	}
	return errors.Join(err, failed)
}

// kill kills one worker at work. It is stopped for a moment before, so that it is
// certain to die with an event in its hands.
func (d *drill) kill() error {
	live := d.m.live(0)
	if len(live) == 0 {
		return fmt.Errorf("there is no worker to kill")
	}
	if err := d.killWorker(live[0]); err != nil {
		return err
	}
	return d.until(patience, func() bool { return len(d.m.live(0)) >= d.sc.workers })
}

// killWorker does not wait for another one in its place.
func (d *drill) killWorker(pid int) error {
	k := Kill{PID: pid}
	if err := d.catch(k.PID); err != nil {
		return err
	}
	k.Sent = witness.Now()
	if err := unix.Kill(k.PID, unix.SIGKILL); err != nil {
		return err
	}
	err := d.until(patience, func() bool { return d.m.workers[k.PID].gone != 0 })
	k.Noticed = d.m.workers[k.PID].gone
	open, failed := d.inHand(k.PID)
	if k.InHand = len(open); k.InHand == 0 {
		d.ev.Void = append(d.ev.Void, fmt.Sprintf("the kill -9 of pid %d met no handler at work", k.PID))
	}
	d.ev.Kills = append(d.ev.Kills, k)
	return errors.Join(err, failed)
}

// restartHub stops the hub, starts it on the same directory, and waits until all
// clients are back.
func (d *drill) restartHub() error {
	o, err := d.stopHub(syscall.SIGTERM)
	if err != nil {
		return err
	}
	if err := d.hubUp(o); err != nil {
		return err
	}
	return d.hubBack(o)
}

// stopHub ends the hub by a signal.
func (d *drill) stopHub(sig syscall.Signal) (*Outage, error) {
	p := d.hubs
	o := &Outage{PID: p.pid(), Killed: sig == syscall.SIGKILL, Before: d.hub.clients()}
	var err error
	if o.Old, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return nil, err
	}
	o.Down = witness.Now()
	if err := p.stop(sig, patience); err != nil {
		return nil, err
	}
	o.Gone = p.exit.At
	s, _ := p.says("stopped clients ")
	o.Closed, _ = strconv.Atoi(s)
	return o, nil
}

// hubUp starts the hub on the directory that it had.
func (d *drill) hubUp(o *Outage) error {
	err := d.startHub(fmt.Sprintf("hub-again-%d", len(d.ev.Outages)+1))
	o.Up = witness.Now()
	return err
}

// hubBack waits until all clients are back.
func (d *drill) hubBack(o *Outage) error { return d.backAfter(o, d.hub.clients) }

func (d *drill) backAfter(o *Outage, clients func() int) error {
	err := d.until(patience, func() bool { o.After = clients(); return o.After >= o.Before })
	if err == nil {
		o.Back = witness.Now() + DefaultLimits().Slack
	}
	if o.New, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	d.ev.Outages = append(d.ev.Outages, *o)
	return nil
}
