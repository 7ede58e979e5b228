package natsbus

import (
	"time"

	"github.com/tidings-go/tidings/internal/mutant"
)

// The defects that the drill must catch by name. Ordinary binaries do not have
// them: see package mutant.
const (
	mutantNoFlush   = "no-flush-after-sub"
	mutantNotWaited = "drain-not-waited"
)

// mutantSubDelay is how long a SUB is held back by mutantNoFlush; without it
// the race is too narrow to be seen on loopback.
const mutantSubDelay = 300 * time.Millisecond

func broken(name string) bool { return mutant.On(name) }
