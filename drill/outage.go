package drill

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/proxy"
	"github.com/tidings-go/tidings/natsbus"
)

// fullAt is the bound of spools that are to be full: some hundred orders.
const fullAt = "64KiB"

// sow makes the random instants those of the seed.
func (d *drill) sow() {
	if d.Seed == 0 {
		d.Seed = uint64(rand.Uint32()) + 1
	}
	d.rng = rand.New(rand.NewPCG(d.Seed, 0))
	if d.sc.spool {
		d.ev.Seed, d.ev.WantDeaths = d.Seed, 3*publishers+1
	}
}

// outage has publishers with spools outlive each other and the hub.
func (d *drill) outage() error {
	if err := d.start(); err != nil {
		return err
	}
	return d.perform(d.For/8,
		turn{"kill -9 of publishers", Deaths, d.killShops},
		turn{"kill -9 of the hub", Outages, d.killHub},
		turn{"hub away", Absences, d.leaveHub},
		turn{"full spools", Fulls, d.fillSpools})
}

// someTime lets a random time pass, of at most limit.
func (d *drill) someTime(limit time.Duration) error {
	return d.reach(witness.Now() + time.Duration(d.rng.Int64N(int64(limit)+1)))
}

// reach waits until a time.
func (d *drill) reach(at Mono) error {
	return d.until(at-witness.Now()+patience, func() bool { return witness.Now() >= at })
}

// inRandomOrder does it to each publisher.
func (d *drill) inRandomOrder(do func(*shop) error) error {
	for _, i := range d.rng.Perm(len(d.shops)) {
		if err := do(d.shops[i]); err != nil {
			return err
		}
	}
	return nil
}

// follow kills a publisher and starts the next one.
func (d *drill) follow(s *shop) error {
	if err := d.killShop(s, Death{Sent: witness.Now()}); err != nil {
		return err
	}
	return d.startShop(s)
}

// killShops kills each publisher at random instants, with the hub there.
func (d *drill) killShops() error {
	rounds := 1 + int(d.For/(30*time.Second))
	for range rounds {
		if err := d.inRandomOrder(func(s *shop) error {
			return inTurn(func() error { return d.someTime(d.For / 24) }, func() error { return d.follow(s) }, d.connected)
		}); err != nil {
			return err
		}
	}
	return nil
}

// killHub kills the hub twice, and starts it again when some events wait. What these
// cost singly publishers know after the first time: so the second time there are
// batches, which hold events that were published twice.
func (d *drill) killHub() error {
	for range 2 {
		if err := d.someTime(d.For / 24); err != nil {
			return err
		}
		o, err := d.stopHub(syscall.SIGKILL)
		if err != nil {
			return err
		}
		if err := inTurn(func() error { return d.all(witness.Accept, batchful, o.Gone, patience) }, func() error { return d.hubUp(o) },
			func() error { return d.hubBack(o) }, d.caughtUp); err != nil {
			return err
		}
	}
	return nil
}

// batchful is how many orders that wait are stored as batches.
const batchful = 64

// all waits until each publisher was told so of so many durable events since then.
func (d *drill) all(k witness.Kind, n int, since Mono, limit time.Duration) error {
	return d.until(limit, func() bool {
		return !slices.ContainsFunc(d.shops, func(s *shop) bool { return d.answers(s, k, since) < n })
	})
}

// caughtUp waits until next to nothing lies in spools.
func (d *drill) caughtUp() error {
	return d.until(patience, func() bool {
		all, _, err := natsbus.Spools(d.spoolDir())
		var left uint64
		for _, s := range all {
			left += s.Events
		}
		return err == nil && left < 10
	})
}

// absence is how long the hub is away.
func (d *drill) absence() time.Duration {
	part := d.For / 2
	if d.Short {
		part = d.For / 4
	}
	return min(max(part, 5*window/2), 30*time.Second)
}

// leaveHub keeps the hub away for longer than streams remember ids. Meanwhile one
// publisher is killed twice, and the other one when the hub is back and has stored what
// lay in its spool, of which nobody has told it.
func (d *drill) leaveHub() error {
	caught, other := d.shops[0], d.shops[1]
	o, err := d.stopHub(syscall.SIGKILL)
	if err != nil {
		return err
	}
	part := d.absence() / 8
	randomly := func(from Mono) error {
		return inTurn(func() error { return d.reach(from) }, func() error { return d.someTime(2 * part) })
	}
	return inTurn(
		func() error { return randomly(o.Gone + part) },
		func() error { return d.follow(other) },
		func() error { return randomly(o.Gone + 5*part) },
		func() error { return d.killShop(other, Death{Sent: witness.Now()}) },
		func() error { return d.reach(o.Gone + 8*part) },
		func() error { return d.hubUp(o) },
		func() error { return d.killSending(caught) },
		func() error { return d.replaceLate(caught, other) },
		func() error { return d.hubBack(o) })
}

// killSending kills a publisher that comes back and sends what lies in its spool, when
// that is stored. The proxy loses the hub's answers, so that it has not heard of it.
func (d *drill) killSending(s *shop) error {
	before, _, err := d.hub.state(d.ctx, d.topics())
	if err != nil {
		return err
	}
	shops := func(name string) bool { return strings.HasPrefix(name, "shop/") }
	if err := d.poll(time.Millisecond, patience, func() bool { return d.hub.connected(shops) > 0 }); err != nil {
		return err
	}
	d.proxy.Lose(proxy.ToClient, true) // it publishes nothing for the first moment
	defer d.proxy.Lose(proxy.ToClient, false)
	last := before
	err = d.until(unheard, func() bool {
		now, _, err := d.hub.state(d.ctx, d.topics())
		if err != nil {
			return false
		}
		settled := now.LastSeq == last.LastSeq && now.LastSeq > before.LastSeq
		last = now
		return settled
	})
	if err != nil && !errors.Is(err, errVain) {
		return err
	}
	x := Death{Sent: witness.Now(), Stored: last.LastSeq - before.LastSeq}
	return d.killShop(s, x)
}

// unheard is how long a publisher is left without answers: soon it would take the hub
// for away again.
const unheard = time.Second

// replaceLate starts the next publishers once the stream has forgotten what it has
// stored of those that were killed.
func (d *drill) replaceLate(shops ...*shop) error {
	left := d.deadSpools()
	if err := d.reach(witness.Now() + 2*window); err != nil {
		return err
	}
	for _, s := range shops {
		if err := d.startShop(s); err != nil {
			return err
		}
	}
	return inTurn(d.connected, func() error { return d.sent(left) })
}

// fillSpools has the hub be away until spools are full, and waits until there is room
// again.
func (d *drill) fillSpools() error {
	for _, s := range d.shops {
		s.max = fullAt
		if err := d.follow(s); err != nil {
			return err
		}
	}
	if err := d.connected(); err != nil {
		return err
	}
	o, err := d.stopHub(syscall.SIGKILL)
	if err != nil {
		return err
	}
	n := DefaultLimits().Refused
	if err := d.all(witness.Refuse, n, o.Down, max(d.For/4, 5*time.Second)); err != nil && !errors.Is(err, errVain) {
		return err // if they are not full, the verdict says so
	}
	return inTurn(func() error { return d.hubUp(o) }, func() error { return d.hubBack(o) },
		func() error { return d.all(witness.Accept, n, o.Back, patience) })
}
