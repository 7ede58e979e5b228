package natsbus

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// crowd is a publisher and a group without a network: events and marks come to members
// in their own order each, one overtaking the other as it happens.
type crowd struct {
	t       *rapid.T
	out     marks
	number  uint64
	members []*simMember
	lost    []uint64 // numbers
	joined  int
	now     time.Time
}

func (c *crowd) pass(d time.Duration) { c.now = c.now.Add(d) }

type simMember struct {
	h      *holes
	events []string
	marks  []*mark
	tales  []*tally
}

func newCrowd(t *rapid.T) *crowd {
	c := &crowd{t: t, now: time.Unix(1, 0)}
	c.out = marks{runs: map[string]*outRun{}, emit: func(m *mark) {
		c.t.Logf("%+v", *m)
		for _, s := range c.members {
			s.marks = append(s.marks, m)
		}
	}}
	return c
}

func (c *crowd) join() {
	s := new(simMember)
	nc := &conn{log: slog.New(slog.DiscardHandler)}
	s.h = nc.newHoles("g", "order.*")
	s.h.now = func() time.Time { return c.now }
	s.h.me = fmt.Sprint("m", c.joined)
	c.joined++
	s.h.emit = func(x *tally) {
		c.t.Logf("%s says %+v", s.h.me, *x)
		for _, o := range c.members {
			if o != s {
				o.tales = append(o.tales, x)
			}
		}
	}
	c.members = append(c.members, s)
	c.t.Logf("%s joins at %d", s.h.me, c.number)
}

func (c *crowd) publish(n int, lose func() bool) {
	for range n {
		c.number += uint64(rapid.SampledFrom([]int{1, 1, 1, 2, 9}).Draw(c.t, "gap"))
		it := &item{topic: "order.placed", run: "run", number: c.number}
		c.out.begin(it, c.now)
		c.out.wrote(it)
		if lose() {
			c.lost = append(c.lost, c.number)
			continue
		}
		s := c.members[rapid.IntRange(0, len(c.members)-1).Draw(c.t, "taker")]
		s.events = append(s.events, "run-"+strconv.FormatUint(c.number, 36))
	}
}

// take has a member take one thing that has come, whichever it is; false: nothing has.
func (c *crowd) take(s *simMember) bool {
	var can []func()
	if len(s.events) > 0 {
		can = append(can, func() {
			id := s.events[0]
			s.events = s.events[1:]
			s.h.took(id, "order.placed")
			s.h.caughtUp(func() int { return len(s.events) + 1 })
		})
	}
	if len(s.marks) > 0 {
		can = append(can, func() {
			m := *s.marks[0]
			c.t.Logf("%s hears %+v with %d before it", s.h.me, m, len(s.events))
			s.marks = s.marks[1:]
			s.h.send(s.h.mark(&m, c.now, len(s.events) > 0))
		})
	}
	if len(s.tales) > 0 {
		can = append(can, func() {
			c.t.Logf("%s hears of %s", s.h.me, s.tales[0].Member)
			s.h.heard(s.tales[0])
			s.tales = s.tales[1:]
		})
	}
	if len(can) == 0 {
		return false
	}
	can[rapid.IntRange(0, len(can)-1).Draw(c.t, "next")]()
	return true
}

func (c *crowd) takeAll() {
	for _, s := range c.members {
		for c.take(s) {
		}
	}
	if slices.ContainsFunc(c.members, func(s *simMember) bool { return len(s.tales) > 0 }) {
		c.takeAll()
	}
}

// leave is a drain: what has come is taken first.
func (c *crowd) leave(i int) {
	s := c.members[i]
	for len(s.events) > 0 {
		c.take(s) // marks may still be on their way
	}
	c.members = slices.Delete(c.members, i, i+1)
	c.t.Logf("%s leaves at %d", s.h.me, c.number)
	s.h.leave()
}

// Whatever overtakes what, and whoever comes and goes: in the end every member knows how
// many events were lost since the first mark that it could place.
func TestHolesAreCountedOverTheGroup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t)
		for range rapid.IntRange(1, 3).Draw(t, "members") {
			c.join()
		}
		rate := rapid.SampledFrom([]int{0, 0, 10, 100}).Draw(t, "one lost of")
		lose := func() bool { return rate > 0 && rapid.IntRange(1, rate).Draw(t, "lose") == 1 }
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"publish", "publish", "publish", "wait", "take", "take", "join", "leave"}).Draw(t, "step") {
			case "publish":
				c.publish(rapid.IntRange(1, 60).Draw(t, "events"), lose)
			case "wait":
				c.pass(time.Duration(rapid.IntRange(100, 3000).Draw(t, "ms")) * time.Millisecond)
				c.out.step(c.now)
			case "take":
				for _, s := range c.members {
					for range rapid.IntRange(0, 40).Draw(t, "things") {
						c.take(s)
					}
				}
			case "join":
				c.join()
			case "leave":
				if len(c.members) > 1 {
					c.leave(rapid.IntRange(0, len(c.members)-1).Draw(t, "who"))
				}
			}
		}
		for range 6 { // nothing is published any more
			c.pass(markEvery)
			c.out.step(c.now)
			c.takeAll()
		}
		c.pass(goneAfter * tallyWait)
		for _, s := range c.members {
			c.check(s)
		}
	})
}

func (c *crowd) check(s *simMember) {
	r := s.h.runs["run"]
	first := s.h.me == "m0" && c.number > 0
	if r == nil || r.base == nil {
		if first {
			c.t.Fatal("who was there first counts nothing")
		}
		return
	}
	want := uint64(0)
	for _, n := range c.lost {
		if n >= r.base.Below {
			want++
		}
	}
	if got := s.h.missing(); got != want {
		c.t.Logf("base %+v, last %+v", *r.base, *r.last)
		for _, m := range r.members {
			c.t.Logf("%+v", m.tally)
		}
		c.t.Fatalf("%s: %d missing from %d on; %d of %d events were lost", s.h.me, got, r.base.Below, want, c.number)
	}
	if first && r.base.Sent != 0 {
		c.t.Fatalf("who was there first counts from %d on", r.base.Below)
	}
}
