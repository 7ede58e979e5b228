package natsbus

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A server of which a single event takes each and a batch fixed + n×more, as long as
// that is not changed.
type costs struct{ each, fixed, more time.Duration }

func (c costs) batch(n int) time.Duration { return c.fixed + time.Duration(n)*c.more }

// store lets so many callers publish again and again, until that many events are
// stored, as an outbox does it, and returns how long it took.
func (p *pace) store(c costs, callers, events int, now *time.Time) time.Duration {
	start, singly := *now, false
	for events > 0 {
		if p.batch(callers, *now) {
			n := min(callers, batchMost)
			p.batched(n, c.batch(n), now.Add(c.batch(n)))
			*now = now.Add(c.batch(n))
			events -= n
			singly = false
			continue
		}
		if !singly {
			p.begin(*now)
		}
		singly = true
		*now = now.Add(c.each)
		p.single(callers, *now)
		events--
	}
	return now.Sub(start)
}

// Whatever a server's costs are, the pace is never slower than single events by more
// than it takes to find out, and as fast as batches where they are faster; also when
// that changes.
func TestPaceFindsTheFaster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		now := time.Unix(1, 0)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			c := costs{
				each:  time.Duration(rapid.IntRange(5, 2000).Draw(t, "each µs")) * time.Microsecond,
				fixed: time.Duration(rapid.IntRange(100, 20_000).Draw(t, "fixed µs")) * time.Microsecond,
				more:  time.Duration(rapid.IntRange(1, 500).Draw(t, "more µs")) * time.Microsecond,
			}
			callers := rapid.SampledFrom([]int{1, 4, 16, 31, 32, 64, 256, 1024}).Draw(t, "callers")
			n := min(callers, batchMost)
			for range 10 { // what was known before becomes known anew
				p.store(c, callers, 5*n, &now)
				now = now.Add(paceTrust + time.Second)
			}
			const events = 20_000
			took := p.store(c, callers, events, &now)
			single := events * c.each
			best := single
			if callers >= batchFrom {
				best = min(best, events*c.batch(n)/time.Duration(n))
			}
			// Every half minute some single events are measured, and every minute at least
			// one batch: each may be slower.
			slack := (took/paceTrust + 2) * (paceRun*c.each + c.batch(n))
			if limit := best + best/10 + slack; took > limit {
				t.Fatalf("%d callers, %+v: %v for %d events; the better way takes %v, and %v are allowed", callers, c, took, events, best, limit)
			}
			if limit := single + slack; took > limit {
				t.Fatalf("%d callers, %+v: %v for %d events; singly %v", callers, c, took, events, single)
			}
		}
	})
}

// Few never wait for others, and after a batch those that it has stored are waited
// for, briefly.
func TestPaceGathers(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	if d := p.gather(40, now); d > 0 {
		t.Errorf("the first batch waits %v", d)
	}
	p.batched(64, 8*time.Millisecond, now)
	if d := p.gather(40, now); d != time.Millisecond {
		t.Errorf("40 of 64 wait %v for the rest; want an eighth of what the batch took", d)
	}
	if d := p.gather(62, now); d > 0 {
		t.Errorf("62 of 64 wait %v", d)
	}
	if d := p.gather(40, now.Add(time.Millisecond)); d > 0 {
		t.Errorf("they wait another %v", d)
	}
	p.batched(64, time.Second, now)
	if d := p.gather(40, now); d != gatherMost {
		t.Errorf("40 of 64 wait %v; want %v at most", d, gatherMost)
	}
}
