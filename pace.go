package tidings

import (
	"sync/atomic"
	"time"
)

// prefetchTime is how much work a durable subscription takes in advance. It is
// many times what the broker needs to answer, so that a fast handler is never
// without work, and little enough that a slow one leaves the work to the other
// processes of its group.
const prefetchTime = 100 * time.Millisecond

// pace is how long a handler takes, as a mean that moves. A sample that two
// workers lose to each other is no loss.
type pace struct{ mean atomic.Int64 }

func (p *pace) add(d time.Duration) {
	mean := p.mean.Load()
	if mean == 0 {
		p.mean.Store(max(int64(d), 1))
		return
	}
	p.mean.Store(max(mean+(int64(d)-mean)/8, 1))
}

// prefetch is how many events are worth having unsettled: one in each hand, what
// can be done in prefetchTime, and what waits for an event of its key. Of a
// handler that has never returned nothing is known: it gets no more than it can
// work on. The transport calls it under locks of its own.
func (s *Subscription) prefetch() int {
	hands := s.opts.Workers
	if s.batch != nil {
		hands *= s.opts.BatchSize
	}
	n := int64(hands)
	if mean := s.pace.mean.Load(); mean > 0 {
		n += min(int64(prefetchTime)/mean, int64(s.opts.Queue)) * n
	}
	return int(min(n+s.held.n.Load(), int64(s.maxInFlight())))
}

// maxInFlight bounds what a durable subscription holds, whatever its pace.
func (s *Subscription) maxInFlight() int { return s.opts.Queue }
