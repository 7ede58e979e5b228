package drill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/natsbus"
)

// window is how long streams remember ids in scenarios with spools: less than the
// hub is away.
const window = time.Second

// A shop is a publisher: a process, and those that follow it when it is killed.
type shop struct {
	*proc
	n, life int
	max     string // of its spool; "": the default
}

func (d *drill) startShops() (err error) {
	if d.sc.spool {
		if d.proxy, err = d.newProxy(); err != nil {
			return err
		}
	}
	for i := range publishers {
		s := &shop{n: i + 1}
		if err := d.startShop(s); err != nil {
			return err
		}
		d.shops = append(d.shops, s)
	}
	return d.connected()
}

// connected waits until the hub has all clients.
func (d *drill) connected() error {
	clients := d.hub.clients
	if d.sc.kept {
		clients = d.sinceNow(d.programs)
	}
	return d.until(patience, func() bool { return clients() >= d.sc.workers+publishers })
}

// startShop starts a shop's first process or the one after the last. Each has a name
// of its own, so that ids are used once.
func (d *drill) startShop(s *shop) error {
	name := fmt.Sprintf("shop-%d", s.n)
	if s.life++; s.life > 1 {
		name += fmt.Sprintf("-%d", s.life)
	}
	argv := append(slices.Clone(d.Shop), "--name", name, "--rate", strconv.Itoa(d.Rate/publishers))
	// A batch that holds an event twice is refused: the first publisher must have some
	// stored of which it does not hear.
	if d.sc.plant != "" && (!d.sc.spool || s.n > 1) {
		argv = append(argv, "--plant", d.sc.plant)
	}
	env := d.env()
	if d.sc.spool {
		env = append(env, "TIDINGS_SPOOL_DIR="+d.spoolDir(), "TIDINGS_SPOOL_MAX="+s.max, "TIDINGS_MUTANT="+d.Mutant)
		switch s.n {
		case 1:
			env = append(env, d.urlIn(d.through(d.proxy)))
		case publishers: // it has all its orders in its spool, always
			env = append(env, "TIDINGS_ROUTES=order.>=durable+spool")
		}
	}
	if d.sc.kept {
		env = append(env, "TIDINGS_MUTANT="+d.Mutant)
	}
	p, err := d.launch(name, env, argv)
	if err == nil {
		s.proc = p
	}
	return err
}

func (d *drill) spoolDir() string { return filepath.Join(d.Dir, "spool") }

// killShop kills a publisher, which may be stopped since a while.
func (d *drill) killShop(s *shop, x Death) error {
	x.Name, x.PID = s.proc.name, s.pid()
	if err := s.cmd.Process.Kill(); err != nil {
		return err
	}
	if err := d.until(patience, s.exited); err != nil {
		return err
	}
	x.Noticed = s.exit.At
	led, err := d.reader.Poll()
	if err != nil {
		return err
	}
	for _, r := range led.Reporters {
		if r.PID == x.PID {
			x.Open = r.unanswered()
		}
	}
	for _, sp := range d.deadSpools() {
		x.Left += sp.Events
	}
	d.ev.Deaths = append(d.ev.Deaths, x)
	return nil
}

// unanswered counts what the publisher was about to publish and heard nothing of.
func (r *Reporter) unanswered() (n int) {
	for _, e := range r.Entries {
		switch e.Kind {
		case witness.Intent:
			n++
		case witness.Accept, witness.Refuse, witness.Doubt:
			n--
		}
	}
	return n
}

// deadSpools are those of publishers that were killed and that nobody has adopted.
func (d *drill) deadSpools() []natsbus.SpoolState {
	all, _, _ := natsbus.Spools(d.spoolDir()) // what cannot be read stays there, and is named at the end
	return slices.DeleteFunc(all, func(s natsbus.SpoolState) bool { return s.Owned })
}

// sent waits until nothing is left in the given spools.
func (d *drill) sent(spools []natsbus.SpoolState) error {
	return d.until(patience, func() bool {
		all, _, err := natsbus.Spools(d.spoolDir())
		return err == nil && !slices.ContainsFunc(all, func(s natsbus.SpoolState) bool {
			return s.Events > 0 && slices.ContainsFunc(spools, func(o natsbus.SpoolState) bool { return o.Path == s.Path })
		})
	})
}

// answers counts the lines of a kind about durable events in the journal of a
// publisher since then.
func (d *drill) answers(s *shop, k witness.Kind, since Mono) (n int) {
	led, err := d.reader.Poll()
	if err != nil {
		return 0 // what cannot be read now cannot be read at the end, and is said then
	}
	durable := d.topics()
	for _, r := range led.Reporters {
		for _, e := range slices.Backward(r.Entries) {
			if r.PID != s.pid() || e.At < since {
				break
			}
			if e.Kind == k && slices.Contains(durable, e.Topic) {
				n++
			}
		}
	}
	return n
}

// noteSpools makes evidence of what lies in spools once the publishers have ended, and
// of what these have said may be stored twice.
func (d *drill) noteSpools() error {
	all, refused, err := natsbus.Spools(d.spoolDir())
	x := &SpoolsEnd{Refused: len(refused)}
	for _, s := range all {
		x.Left += s.Events
		x.Damaged += s.Damaged
	}
	for _, p := range d.procs {
		n, failed := p.possible()
		x.Possible += n
		err = errors.Join(err, failed)
	}
	d.ev.Spools = x
	return err
}

// possiblyTwice is the line in which a process says how many events it sends again.
var possiblyTwice = regexp.MustCompile(`ERROR natsbus: stream \S+: (\d+) events are sent again though they may be stored`)

// possible counts the events of which the process has said that they may be stored
// twice.
func (p *proc) possible() (n int, err error) {
	b, err := os.ReadFile(p.out)
	for _, m := range possiblyTwice.FindAllSubmatch(b, -1) {
		k, _ := strconv.Atoi(string(m[1]))
		n += k
	}
	return n, err
}
