package shop

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// tick is how often customers come. They come in crowds: that is harder on
// everybody than the same number evenly spread.
const tick = 20 * time.Millisecond

// every calls do rate times a second, with a number from 1 and the time at which
// it was due, until ctx ends. The schedule is open: a slow do delays later ones,
// which then come as fast as they can, but none is left out.
func every(ctx context.Context, rate int, do func(n int, due time.Duration)) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	start := witness.Now()
	n := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		passed := (witness.Now() - start) / tick * tick
		for due := int(int64(passed) * int64(rate) / int64(time.Second)); n < due && ctx.Err() == nil; {
			n++
			do(n, start+time.Duration(int64(n)*int64(time.Second)/int64(rate)))
		}
	}
}
