package drill

import (
	"slices"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/proxy"
)

// latency is what the way to the hub takes, there and back, in the scenario network:
// loopback hides what happens meanwhile.
const latency = 20 * time.Millisecond

// network has everybody reach the hub over a network that is slow, and at times none.
func (d *drill) network() error {
	var err error
	if d.proxy, err = d.newProxy(); err != nil {
		return err
	}
	d.slowDown()
	if err := d.start(); err != nil {
		return err
	}
	d.ev.WantDeploys, d.ev.WantOutages = 2, 3
	return d.perform(d.For/7,
		turn{"deploy 1", Deploys, d.deployUSR2},
		turn{"network cut", Networks, func() error { return d.unplug("cut", d.proxy.Cut, time.Second) }},
		turn{"nothing comes", Networks, func() error {
			return d.unplug("half open: nothing comes", func() { d.proxy.Lose(proxy.ToClient, true) }, 0)
		}},
		turn{"nothing goes", Networks, func() error {
			return d.unplug("half open: nothing goes", func() { d.proxy.Lose(proxy.ToServer, true) }, 0)
		}},
		turn{"deploy 2", Deploys, d.deployHUP})
}

func (d *drill) slowDown() {
	d.proxy.Delay(proxy.ToServer, latency/2)
	d.proxy.Delay(proxy.ToClient, latency/2)
}

// unplug has the network fail in some way, until all connections that it led over have
// ended, and for as long as said; then it waits until all clients are back.
func (d *drill) unplug(how string, fail func(), least time.Duration) error {
	o := &Outage{Network: how, Before: d.hub.clients()}
	var err error
	if o.Old, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	led := d.proxy.Clients()
	o.Down = witness.Now()
	fail()
	over := func() bool {
		return !slices.ContainsFunc(d.proxy.Clients(), func(c string) bool { return slices.Contains(led, c) })
	}
	if err := d.until(patience, over); err != nil {
		return err // somebody has not noticed
	}
	o.Gone, o.Closed = witness.Now(), len(led)
	if err := d.reach(o.Down + least); err != nil {
		return err
	}
	d.proxy.Mend()
	d.slowDown()
	o.Up = witness.Now()
	return d.hubBack(o)
}
