package drill

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/hub"
)

const (
	// keptHost is what the hub that a master keeps is called.
	keptHost = "tidings hub"
	// How many processes that have the hub in them are killed: this many, and then more
	// until it is in a worker, since at the end publishers go first. Whose turn it is
	// nobody chooses.
	leastHosts, mostHosts = 3, 12
)

// keptHub has a master keep the hub, and then the programs themselves, all on one
// directory and with one store.
func (d *drill) keptHub() error {
	d.ev.WantDeploys = 4
	each := d.For / 10
	return inTurn(
		func() error {
			return d.startWorkers("master", []string{"--hub", d.hubDir(), "--hub-listen", "127.0.0.1:0"}, d.Worker)
		},
		func() error { return d.found(0) },
		d.startShops,
		func() error {
			return d.perform(each,
				turn{"deploy 1", Deploys, d.besides(d.deployHUP)},
				turn{"deploy 2", Deploys, d.besides(d.deployUSR2)},
				turn{"hub killed", Outages, d.killKept},
				turn{"deploy 3", Deploys, d.besides(d.deployBusy)},
				turn{"embed:DIR", Takeover, d.embed},
				turn{"host killed", Takeover, func() error { return d.killHosts(each) }})
		})
}

func (d *drill) hubDir() string { return filepath.Join(d.Dir, "hub") }

// found waits until a hub answers that is not in the given process.
func (d *drill) found(old int) error {
	return d.until(patience, func() bool {
		r, err := hub.Find(d.hubDir())
		if err != nil || r == nil || r.URL == "" || r.PID == old {
			return false
		}
		d.hub.url = r.URL
		_, err = d.run()
		return err == nil
	})
}

// host is the process that has the hub, 0 if none has.
func (d *drill) host() int {
	r, err := hub.Find(d.hubDir())
	if err != nil || r == nil {
		return 0
	}
	return r.PID
}

// hostName is how the report calls such a process.
func (d *drill) hostName(pid int) string {
	if s := d.shopOf(pid); s != nil {
		return fmt.Sprintf("in %s, pid %d", s.name, pid)
	}
	if w := d.m.workers[pid]; w != nil {
		return fmt.Sprintf("in worker %d, pid %d", w.slot, pid)
	}
	return keptHost
}

func (d *drill) shopOf(pid int) *shop {
	if i := slices.IndexFunc(d.shops, func(s *shop) bool { return s.pid() == pid }); i >= 0 {
		return d.shops[i]
	}
	return nil
}

// run identifies the hub that runs now.
func (d *drill) run() (r HubRun, err error) {
	err = d.hub.with(func(js jetstream.JetStream) error {
		r.Server = js.Conn().ConnectedServerId()
		return nil
	})
	r.PID = d.host()
	return r, err
}

// besides is a deploy that must not touch the hub.
func (d *drill) besides(deploy func() error) func() error {
	return func() error {
		before, err := d.run()
		if err != nil {
			return err
		}
		if err := deploy(); err != nil {
			return err
		}
		k := &HubRuns{Before: before}
		d.ev.Deploys[len(d.ev.Deploys)-1].Hub = k
		return d.until(patience, func() bool { k.After, err = d.run(); return err == nil })
	}
}

// programs are the pids of the publishers, and of the workers that serve.
func (d *drill) programs() []int {
	pids := pidsOf(d.serving(d.m.current))
	for _, s := range d.shops {
		pids = append(pids, s.pid())
	}
	return pids
}

// sinceNow counts the programs of which it is seen that they have a hub: a publisher has
// been told by it that a durable event is stored, a worker handles a live event that was
// published from now on. A hub that is no process of its own has no monitoring to ask.
func (d *drill) sinceNow(programs func() []int) func() int {
	from := witness.Now()
	return func() (n int) {
		led, err := d.reader.Poll()
		if err != nil {
			return 0 // what cannot be read now cannot be read at the end, and is said then
		}
		durable, fresh, seen := d.topics(), map[eventKey]bool{}, map[int]bool{}
		recent := func(k witness.Kind, do func(r *Reporter, e Entry)) {
			for _, r := range led.Reporters {
				for _, e := range slices.Backward(r.Entries) {
					if e.At < from {
						break
					}
					if e.Kind == k {
						do(r, e)
					}
				}
			}
		}
		recent(witness.Intent, func(_ *Reporter, e Entry) {
			fresh[eventKey{e.Topic, e.ID}] = !slices.Contains(durable, e.Topic)
		})
		recent(witness.Accept, func(r *Reporter, e Entry) { seen[r.PID] = seen[r.PID] || slices.Contains(durable, e.Topic) })
		recent(witness.Begin, func(r *Reporter, e Entry) { seen[r.PID] = seen[r.PID] || fresh[eventKey{e.Topic, e.ID}] })
		for _, pid := range programs() {
			if seen[pid] {
				n++
			}
		}
		return n
	}
}

// ends has the process that has the hub end, and waits until another has it and the
// clients are back.
func (d *drill) ends(killed bool, clients []int, end func(o *Outage) error) error {
	pid := d.host()
	o := &Outage{Host: d.hostName(pid), PID: pid, Killed: killed}
	clients = slices.DeleteFunc(clients, func(p int) bool { return p == pid })
	o.Before = len(clients)
	var err error
	if o.Old, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	o.Down = witness.Now()
	if err := end(o); err != nil {
		return err
	}
	if err := d.found(pid); err != nil {
		return fmt.Errorf("nobody has the hub after %s: %w", o.Host, err)
	}
	o.Up, o.Next = witness.Now(), d.hostName(d.host())
	return d.backAfter(o, d.sinceNow(func() []int { return clients }))
}

// killKept kills the hub that the master keeps.
func (d *drill) killKept() error {
	return d.ends(true, d.programs(), func(o *Outage) error {
		if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
			return err
		}
		return d.hubGone(o)
	})
}

// hubGone waits until a hub that a master has started is seen to have ended.
func (d *drill) hubGone(o *Outage) error {
	err := d.until(patience, func() bool { return d.m.gone(o.PID) })
	o.Gone = witness.Now()
	return err
}

// embed starts programs that open the hub's directory, beside those that connect to it,
// and has the master before end, and its hub with it.
func (d *drill) embed() error {
	before := d.m.current
	dep := Deploy{Name: "move", Signal: "QUIT", Start: witness.Now(), Old: append(pidsOf(d.serving(before)), before)}
	d.embedded = true
	if err := d.startWorkers("master-embed", nil, d.Worker); err != nil {
		return err
	}
	for _, s := range d.shops {
		d.ev.Leavers = append(d.ev.Leavers, Quit{PID: s.pid(), At: witness.Now()})
		if err := errors.Join(s.stop(syscall.SIGTERM, patience), d.startShop(s)); err != nil {
			return err
		}
	}
	if err := d.connected(); err != nil {
		return err
	}
	workers := dep.Old[:len(dep.Old)-1]
	dep.New = pidsOf(d.serving(d.m.current))
	for _, pid := range dep.New {
		dep.NewReady = max(dep.NewReady, d.m.workers[pid].ready)
	}
	err := d.ends(false, d.programs(), func(o *Outage) error {
		if err := unix.Kill(before, unix.SIGQUIT); err != nil {
			return err
		}
		if err := d.until(patience, func() bool {
			return !slices.ContainsFunc(workers, func(pid int) bool { return d.m.workers[pid].gone == 0 })
		}); err != nil {
			return err
		}
		for _, pid := range workers { // the master stops its hub after the last of them
			o.Down = max(o.Down, d.m.workers[pid].gone)
		}
		return d.hubGone(o)
	})
	if err != nil {
		return err
	}
	err = d.until(patience, func() bool { return d.masterGone(before) })
	dep.OldGone = witness.Now()
	d.ev.Deploys = append(d.ev.Deploys, dep)
	return err
}

// killHosts kills one process after the other that has the hub in it.
func (d *drill) killHosts(pause Mono) error {
	for n := 0; n < leastHosts || d.shopOf(d.host()) != nil; n++ {
		if n == mostHosts {
			return fmt.Errorf("after %d kills the hub is in a publisher still", n)
		}
		if err := inTurn(func() error { return d.reach(witness.Now() + pause) }, d.killHost, d.connected); err != nil {
			return err
		}
	}
	return nil
}

// killHost kills the program that has the hub in it, and starts it again once another
// one has.
func (d *drill) killHost() error {
	pid := d.host()
	s := d.shopOf(pid)
	if err := d.ends(true, d.programs(), func(o *Outage) error {
		var err error
		if s != nil {
			err = d.killShop(s, Death{Sent: o.Down})
			o.Gone = s.exit.At
			return err
		}
		if err = d.killWorker(pid); err == nil {
			k := d.ev.Kills[len(d.ev.Kills)-1]
			o.Down, o.Gone = k.Sent, k.Noticed
		}
		return err
	}); err != nil {
		return err
	}
	if s != nil {
		return d.startShop(s)
	}
	return d.until(patience, func() bool { return len(d.serving(d.m.current)) == d.sc.workers })
}
