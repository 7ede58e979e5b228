package drill

import (
	"fmt"
	"strconv"
	"syscall"

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

// deployUSR2 executes the master anew, and asks the old one to go once the new
// generation is ready.
func (d *drill) deployUSR2() error {
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

// kill kills one worker at work.
func (d *drill) kill() error {
	live := d.m.live(0)
	if len(live) == 0 {
		return fmt.Errorf("there is no worker to kill")
	}
	k := Kill{PID: live[0], Sent: witness.Now()}
	if err := unix.Kill(k.PID, unix.SIGKILL); err != nil {
		return err
	}
	err := d.until(patience, func() bool { return d.m.workers[k.PID].gone != 0 })
	k.Noticed = d.m.workers[k.PID].gone
	d.ev.Kills = append(d.ev.Kills, k)
	if err != nil {
		return err
	}
	return d.until(patience, func() bool { return len(d.m.live(0)) >= workers })
}

// restartHub stops the hub, starts it on the same directory, and waits until all
// clients are back.
func (d *drill) restartHub() error {
	o := Outage{Before: d.hub.clients()}
	var err error
	if o.Old, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	before := d.hubs
	o.Down = witness.Now()
	if err := before.stop(syscall.SIGTERM, patience); err != nil {
		return err
	}
	o.Gone = before.exit.At
	s, _ := before.says("stopped clients ")
	o.Closed, _ = strconv.Atoi(s)
	if err := d.startHub("hub-again"); err != nil {
		return err
	}
	o.Up = witness.Now()
	err = d.until(patience, func() bool { o.After = d.hub.clients(); return o.After >= o.Before })
	if err == nil {
		o.Back = witness.Now() + DefaultLimits().Slack
	}
	if o.New, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	d.ev.Outages = append(d.ev.Outages, o)
	return nil
}
