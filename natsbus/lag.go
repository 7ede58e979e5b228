package natsbus

import (
	"sync/atomic"
	"time"
)

// Each event says how many more wait for its consumer; of one that sends nothing,
// because it has nothing or because we ask for nothing, a look says so.
const lagEvery = 2 * time.Second // while nothing is asked for

// lagOld is when what was heard means nothing any more: the broker is away.
var lagOld = 15 * time.Second // tests shorten it

// lag is how many events wait for the group, as was heard last. Its loop writes it.
type lag struct {
	waiting atomic.Uint64
	heard   atomic.Int64 // in nanoseconds of the wall clock; 0: never
}

func (l *lag) hear(waiting uint64, at time.Time) {
	l.waiting.Store(waiting)
	l.heard.Store(at.UnixNano())
}

// Lag implements [adapter.Lagger].
func (d *durable) Lag() (waiting uint64, known bool) {
	at := d.lag.heard.Load()
	return d.lag.waiting.Load(), at != 0 && time.Since(time.Unix(0, at)) < lagOld
}
