package witness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tidings-go/tidings"
)

// A Fate is what a drill plants in an event: how its handler fares. The publisher
// sends it along and writes it down, the handler lives it by [Witness.Suffer].
type Fate string

// The fates. An event without one is handled at the first call.
const (
	Flaky    Fate = "flaky"    // fails at the first two deliveries
	Poison   Fate = "poison"   // fails for good, until it is mended
	Panics   Fate = "panics"   // panics each time, until it is mended
	Deadly   Fate = "deadly"   // ends its process each time, until it is mended
	Long     Fate = "long"     // its handler takes LongTime and succeeds, until it is mended: then at once
	Slow     Fate = "slow"     // its handler goes on until its context ends, until it is mended
	Stubborn Fate = "stubborn" // its handler goes on, whatever its context says, until it is mended
	Twice    Fate = "twice"    // its publisher publishes it twice, with one id
)

// LongTime is above the ack wait of a consumer.
const LongTime = 7 * time.Second

// DeadlyStatus is the exit status of a process that a deadly event has ended.
const DeadlyStatus = 66

// longer than any drain of a drill.
const longer = time.Hour

// Fates are all of them.
func Fates() []Fate { return []Fate{Flaky, Poison, Panics, Deadly, Long, Slow, Stubborn, Twice} }

// Fails reports whether a handler of it fails by itself.
func (f Fate) Fails() bool { return f == Flaky || f == Poison || f == Panics }

// Dies reports whether the event must end as a dead letter.
func (f Fate) Dies() bool { return f == Poison || f == Panics || f == Deadly }

// Outlasts reports whether a handler of it takes longer than a drain waits.
func (f Fate) Outlasts() bool { return f == Slow || f == Stubborn }

// Known reports whether there is such a fate.
func (f Fate) Known() bool { return slices.Contains(Fates(), f) }

// Suffer does to a handler what was planted in its event. Outside a drill it does
// nothing.
func (w *Witness) Suffer(ctx context.Context, e tidings.Event, f Fate) error {
	if w == nil || f == "" {
		return nil
	}
	if (f.Dies() || f.Outlasts() || f == Long) && w.mended() {
		return nil
	}
	switch f {
	case Flaky:
		if n := e.Attempt(); n <= 2 {
			return fmt.Errorf("planted: fails at delivery %d", n)
		}
	case Long:
		<-time.After(LongTime)
	case Poison:
		return tidings.Permanent(errors.New("planted: no retry can mend it"))
	case Panics:
		panic("planted")
	case Deadly:
		os.Exit(DeadlyStatus)
	case Slow:
		<-ctx.Done()
		return context.Cause(ctx)
	case Stubborn:
		<-time.After(longer)
	}
	return nil
}

func mendedFile(dir string) string { return filepath.Join(dir, "mended") }

// Mend ends what would not end by itself: handlers that begin from now on succeed,
// in every process of the drill in dir.
func Mend(dir string) error { return os.WriteFile(mendedFile(dir), nil, 0o600) }

func (w *Witness) mended() bool {
	_, err := os.Stat(mendedFile(w.dir))
	return err == nil
}
