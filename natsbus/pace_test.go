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
			p.batched(n, callers-n, *now, now.Add(c.batch(n)))
			*now = now.Add(c.batch(n))
			events -= n
			singly = false
			continue
		}
		if !singly {
			p.begin()
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
			// After one second, two, four and so on some single events are measured, and a
			// batch: each may be slower.
			slack := (took/paceTrust + 6) * (3*max(time.Duration(callers+1)*c.each, paceSpan+c.each) + c.batch(n))
			if limit := best + best/10 + slack; took > limit {
				t.Fatalf("%d callers, %+v: %v for %d events; the better way takes %v, and %v are allowed", callers, c, took, events, best, limit)
			}
			if limit := single + slack; took > limit {
				t.Fatalf("%d callers, %+v: %v for %d events; singly %v", callers, c, took, events, single)
			}
		}
	})
}

// What a cold process or server has cost singly is not believed for long.
func TestPaceForgetsASlowStart(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	cold := costs{each: 100 * time.Microsecond, fixed: 4 * time.Millisecond, more: 20 * time.Microsecond}
	p.store(cold, 1024, 2000, &now)
	warm := cold
	warm.each = 10 * time.Microsecond
	const events = 500_000
	if took, singly := p.store(warm, 1024, events, &now), events*warm.each; took > singly*3/2 {
		t.Errorf("%v for what takes %v singly", took, singly)
	}
}

// The first batch waits for nobody. After one, those that it has stored are waited for, as
// long as they keep coming and it takes little beside the next one.
func TestPaceGathers(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	expect := func(waiting, want int, wait time.Duration) {
		t.Helper()
		if n, d := p.gather(waiting, now); n != want || d != wait {
			t.Errorf("%d wait: %d are expected within %v; want %d within %v", waiting, n, d, want, wait)
		}
	}
	expect(40, 40, 0)

	p.batched(50, 14, now.Add(-8*time.Millisecond), now) // 64 callers
	expect(14, 64, time.Millisecond)
	now = now.Add(900 * time.Microsecond)
	expect(14, 64, 100*time.Microsecond)
	expect(20, 64, time.Millisecond)
	now = now.Add(900 * time.Microsecond)
	expect(30, 64, 8*time.Millisecond/3-1800*time.Microsecond) // a third of what the batch took
	expect(60, 60, 0)                                          // all but a few are here
	now = now.Add(time.Millisecond)
	expect(61, 61, 0)

	p.batched(64, 0, now.Add(-8*time.Millisecond), now)
	now = now.Add(time.Millisecond)
	expect(0, 0, 0) // nobody comes

	p.batched(1000, 200, now.Add(-time.Second), now)
	expect(200, batchMost, gatherMost)
}

// The answers of a server are read in bursts, and the first of its life are slow: neither
// is what it can do.
func TestPaceMeasuresSingleEvents(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	run := func(n int, d time.Duration) {
		for range n {
			now = now.Add(d)
			p.single(64, now)
		}
	}
	const each = 200 * time.Microsecond
	want := func(want time.Duration, when string) {
		t.Helper()
		if p.each != want {
			t.Errorf("%v %s, want %v", p.each, when, want)
		}
	}
	p.begin()
	run(1, time.Second) // its first answer takes as long as it was written before
	run(64, each)
	want(0, "after one run")
	run(64, each)
	want(0, "after two")
	run(1000, time.Microsecond) // a burst, which ends the third
	run(1, paceSpan)
	want(each, "after a burst")
	run(64, 5*each)
	want(each, "after a slow one")
}
