package shop

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// Customers come at every tick, and once a second a fifth of that second's comes
// at once, in a crowd: that is harder on everybody than the same number evenly
// spread.
const (
	tick  = 20 * time.Millisecond
	crowd = time.Second
)

// due is how many are due in the given time.
func due(rate int, passed time.Duration) int {
	steady := int64(passed) * int64(rate) * 4 / 5 / int64(time.Second)
	crowds := int64(passed/crowd) * int64(rate) / 5
	return int(steady + crowds)
}

// every calls do rate times a second, with a number from 1 and the time at which
// it was due, until ctx ends. The schedule is open: a slow do delays later ones,
// which then come as fast as they can, but none is left out.
func every(ctx context.Context, rate int, do func(n int, due time.Duration)) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	start := witness.Now()
	next, n := start+tick, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for ; next <= witness.Now(); next += tick {
			for all := due(rate, next-start); n < all && ctx.Err() == nil; {
				n++
				do(n, next)
			}
		}
	}
}
