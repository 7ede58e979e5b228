package tidings

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in steps of a quarter of a power of two: a quantile
// is right to within a quarter, from 1 ns to centuries, and adding is one atomic
// add. Its memory is taken by the first sample.
type histogram struct {
	buckets atomic.Pointer[[buckets]atomic.Uint32]
	max     atomic.Int64
}

const buckets = 64 * 4

func (h *histogram) add(d time.Duration) {
	b := h.buckets.Load()
	if b == nil {
		h.buckets.CompareAndSwap(nil, new([buckets]atomic.Uint32))
		b = h.buckets.Load()
	}
	d = max(d, 1)
	b[bucketOf(d)].Add(1)
	for old := h.max.Load(); int64(d) > old && !h.max.CompareAndSwap(old, int64(d)); {
		old = h.max.Load()
	}
}

// bucketOf is the length of d in bits, and the two bits below the highest.
func bucketOf(d time.Duration) int {
	n := bits.Len64(uint64(d))
	return (n-1)*4 + int(uint64(d)<<(64-n)>>61&3)
}

// upper is the upper bound of a bucket.
func upper(i int) time.Duration {
	n := i / 4
	return time.Duration((uint64(4+i%4+1)<<n - 1) >> 2)
}

// Latency is what was measured of a handler: of its first calls, then of one in
// 1024, and of every call with options that need a close look.
type Latency struct {
	Samples            uint64
	P50, P90, P99, Max time.Duration // upper bounds, right to a quarter
}

func (h *histogram) read() (l Latency) {
	b := h.buckets.Load()
	if b == nil {
		return l
	}
	var n [buckets]uint64
	for i := range b {
		n[i] = uint64(b[i].Load())
		l.Samples += n[i]
	}
	l.Max = time.Duration(h.max.Load())
	quantile := func(q float64) time.Duration {
		rank := uint64(q * float64(l.Samples))
		for i := range n {
			if rank < n[i] {
				return min(upper(i), l.Max)
			}
			rank -= n[i]
		}
		return l.Max
	}
	l.P50, l.P90, l.P99 = quantile(.5), quantile(.9), quantile(.99)
	return l
}
