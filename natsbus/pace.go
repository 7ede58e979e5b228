package natsbus

import (
	"math/bits"
	"time"
)

// When a batch may be worth its cost.
const (
	batchFrom   = 32                     // waiting events; with fewer it was never measured to win
	paceRun     = 32                     // single events of one measurement, at least
	paceSpan    = 10 * time.Millisecond  // its time, at least
	paceLong    = 100 * time.Millisecond // of this time one is enough, else it takes three
	paceEnough  = time.Second            // and then it ends before all that waited are answered
	paceTrust   = 30 * time.Second       // what single ones cost is measured again, at the latest
	paceRefused = time.Second
	paceFirst   = time.Second // until the slower way is tried again, and then twice as long
	paceLast    = time.Minute
	gatherMost  = time.Millisecond
)

// A pace is what storing events has cost of late, singly and in batches of several
// sizes, and says which is the faster for as many as wait. Whether the server syncs
// each event, on what disk, and over which network decides that, and none of these
// can be asked for. The zero pace knows nothing, and begins with single ones.
type pace struct {
	each   time.Duration    // of single ones, with many on the way; 0: not known
	eachAt time.Time        // when that was measured
	trust  time.Duration    // so long it is believed
	runs   [3]time.Duration // the last of which it is the median: some run may be the first, or have met a burst of answers
	start  time.Time        // of the run that is being measured; zero: it has not begun
	run    int              // so many of it are answered
	round  int              // and so many waited when it began

	batches [16]time.Duration // for one event, by the power of two of the batch's size; 0: not known
	back    time.Duration     // of it, for coming back
	tryAt   time.Time         // until then what was slower is not tried again
	pause   time.Duration
	closed  time.Time // until then no batch

	full     int // as many waited when the last batch was stored, with its own
	came     int // of those, have published again, and when the last did
	cameAt   time.Time
	follows  bool // nothing went singly since the last batch
	lastTook time.Duration
	lastAt   time.Time
}

// mix follows a measure without believing a single one.
func mix(old, new time.Duration) time.Duration {
	if old == 0 {
		return new
	}
	return old + (new-old)/4
}

// begin says that the first of a run of single events was written. Its time counts from
// the first answer on: many may be written before that. It ends when all who waited were
// answered: a server sends the answers to what it has read at once together, and whom they
// have woken publish again, and all of that is written before the next are looked at.
func (p *pace) begin() { p.start = time.Time{} }

// single says that one was acknowledged, and how many wait still. Only runs with many
// on the way measure what a server can do.
func (p *pace) single(waiting int, now time.Time) {
	p.follows = false
	switch {
	case waiting < batchFrom/2:
		p.begin()
		return
	case p.start.IsZero():
		p.start, p.run, p.round = now, 0, waiting
		return
	}
	took := now.Sub(p.start)
	if p.run++; p.run < paceRun || took < paceSpan || p.run < p.round && took < paceEnough {
		return
	}
	each, age := took/time.Duration(p.run), now.Sub(p.eachAt)
	if age > p.trust {
		p.trust = min(max(2*p.trust, paceFirst), paceTrust)
	}
	switch {
	case took >= paceLong:
		p.runs = [...]time.Duration{each, each, each}
	case age > paceTrust:
		p.runs = [...]time.Duration{each, 0, 0}
	default:
		p.runs = [...]time.Duration{each, p.runs[0], p.runs[1]}
	}
	p.each, p.eachAt = median(p.runs), now
	p.start, p.run, p.round = now, 0, waiting
}

// median is 0 until there are three.
func median(d [3]time.Duration) time.Duration {
	if d[2] == 0 {
		return 0
	}
	return max(min(d[0], d[1]), min(max(d[0], d[1]), d[2]))
}

// batched says that a batch of n, begun at a time, was stored, and how many wait still.
// It has cost what it took, and what those take to come back that the one before has
// woken: as it was when one followed the other.
func (p *pace) batched(n, waiting int, at, now time.Time) {
	b, took := &p.batches[size(n)], now.Sub(at)
	if gap := at.Sub(p.lastAt); p.follows && gap < p.lastTook/2 {
		p.back = mix(p.back, gap/time.Duration(n))
	}
	if now.Sub(p.lastAt) > paceFirst {
		*b = 0 // long ago: else a server that has become faster is found out too slowly
	}
	*b = mix(*b, took/time.Duration(n)+p.back)
	p.follows = true
	p.full, p.lastTook, p.lastAt = min(n+waiting, batchMost), took, now
	p.came, p.cameAt = waiting, now
}

// refused says that a batch was not taken.
func (p *pace) refused(now time.Time) { p.closed = now.Add(paceRefused) }

func size(n int) int { return bits.Len(uint(n)) - 1 }

// batch reports whether so many events that wait are stored faster by a batch.
func (p *pace) batch(waiting int, now time.Time) bool {
	if waiting < batchFrom || now.Before(p.closed) {
		return false
	}
	if broken(mutantBatchTaken) {
		return true // it is about batches: whether there are any must not depend on the machine
	}
	if p.each == 0 || now.Sub(p.eachAt) > p.trust {
		return false // single ones are measured, again
	}
	cost := p.cost(min(waiting, batchMost))
	if cost < p.each {
		p.pause = 0
		return true
	}
	p.trust = paceFirst
	if now.Before(p.tryAt) {
		return false
	}
	p.pause = min(max(2*p.pause, paceFirst), paceLast)
	p.tryAt = now.Add(p.pause)
	return true
}

// cost is that of one event in a batch of n; smaller batches bound it from above. 0:
// not known.
func (p *pace) cost(n int) time.Duration {
	for i := size(n); i >= size(batchFrom); i-- {
		if p.batches[i] != 0 {
			return p.batches[i]
		}
	}
	return 0
}

// gather is how many will wait once those whose events the last batch had stored have
// published their next, and how long to wait for the next of them: else the first make a
// batch of their own, or go singly, and the rest does so after them, for good. It ends
// when nobody came for a while, or after a third of what the batch took.
func (p *pace) gather(waiting int, now time.Time) (expected int, d time.Duration) {
	if waiting > p.came {
		p.came, p.cameAt = waiting, now
	}
	d = min(p.cameAt.Add(min(p.lastTook/8, gatherMost)).Sub(now), p.lastAt.Add(p.lastTook/3).Sub(now))
	if d <= 0 || waiting >= p.full-p.full/16 {
		return waiting, 0
	}
	return p.full, d
}
