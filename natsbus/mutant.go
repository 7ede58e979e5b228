package natsbus

import (
	"time"

	"github.com/tidings-go/tidings/internal/mutant"
)

// The defects that the drill must catch by name. Ordinary binaries do not have
// them: see package mutant.
const (
	mutantNoFlush     = "no-flush-after-sub"
	mutantNotWaited   = "drain-not-waited"
	mutantNakAsTerm   = "nak-as-term"
	mutantNoHeartbeat = "no-heartbeat"
	mutantNoLetter    = "term-without-letter"
	mutantBatchTaken  = "batch-duplicate-taken"
	mutantNoLookup    = "doubt-not-looked-up"
	mutantTrimEarly   = "spool-trimmed-early"
	mutantReordered   = "refill-reordered"

	mutantNotResubscribed = "not-resubscribed"
)

// mutantSubDelay is how long a SUB is held back by mutantNoFlush; without it
// the race is too narrow to be seen on loopback.
const mutantSubDelay = 300 * time.Millisecond

func broken(name string) bool { return mutant.On(name) }
