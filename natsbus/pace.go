package natsbus

import (
	"math/bits"
	"time"
)

// When a batch may be worth its cost.
const (
	batchFrom   = 32 // waiting events; with fewer it was never measured to win
	paceRun     = 32 // single events of one measurement
	paceTrust   = 30 * time.Second
	paceRefused = time.Second
	paceFirst   = time.Second // until a batch that was slower is tried again, and then twice as long
	paceLast    = time.Minute
	gatherMost  = 2 * time.Millisecond
)

// A pace is what storing events has cost of late, singly and in batches of several
// sizes, and says which is the faster for as many as wait. Whether the server syncs
// each event, on what disk, and over which network decides that, and none of these
// can be asked for. The zero pace knows nothing, and begins with single ones.
type pace struct {
	each   time.Duration // of single ones, with many on the way; 0: not known
	eachAt time.Time     // when that was measured
	start  time.Time     // of the run that is being measured
	run    int

	batches [16]time.Duration // for one event, by the power of two of the batch's size; 0: not known
	tryAt   time.Time         // until then what was slower is not tried again
	pause   time.Duration
	closed  time.Time // until then no batch

	lastN    int // of the last batch
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

// begin says that the first of a run of single events was written.
func (p *pace) begin(now time.Time) { p.start, p.run = now, 0 }

// single says that one was acknowledged, and how many wait still. Only runs with many
// on the way measure what a server can do.
func (p *pace) single(waiting int, now time.Time) {
	if waiting < batchFrom/2 {
		p.begin(now)
		return
	}
	if p.run++; p.run == paceRun {
		if p.each != 0 && now.Sub(p.eachAt) > paceTrust {
			p.each = 0
		}
		p.each, p.eachAt = mix(p.each, now.Sub(p.start)/paceRun), now
		p.begin(now)
	}
}

// batched says that a batch of n was stored in d.
func (p *pace) batched(n int, d time.Duration, now time.Time) {
	b := &p.batches[size(n)]
	if now.Sub(p.lastAt) > paceFirst {
		*b = 0 // long ago: else a server that has become faster is found out too slowly
	}
	*b = mix(*b, d/time.Duration(n))
	p.lastN, p.lastTook, p.lastAt = n, d, now
}

// refused says that a batch was not taken.
func (p *pace) refused(now time.Time) { p.closed = now.Add(paceRefused) }

func size(n int) int { return bits.Len(uint(n)) - 1 }

// batch reports whether so many events that wait are stored faster by a batch.
func (p *pace) batch(waiting int, now time.Time) bool {
	if waiting < batchFrom || now.Before(p.closed) {
		return false
	}
	if p.each == 0 || now.Sub(p.eachAt) > paceTrust {
		return false // single ones are measured, again
	}
	cost := p.cost(min(waiting, batchMost))
	if cost < p.each {
		p.pause = 0
		return true
	}
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

// gather is how long to wait until those whose events the last batch had stored have
// published their next: else the first of them makes a batch of its own.
func (p *pace) gather(waiting int, now time.Time) time.Duration {
	if waiting >= p.lastN-p.lastN/16 {
		return 0
	}
	return min(p.lastTook/8, gatherMost) - now.Sub(p.lastAt)
}
