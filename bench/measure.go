package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

// effort says how much work goes into a row.
type effort struct {
	rounds int
	slice  time.Duration // what one slice of one candidate should take
	fixed  int           // operations per slice instead of that; 0: calibrate
	subs   int           // subscriptions of the row about many
}

// A candidate is one way to do what a row is about.
type candidate struct {
	name  string
	kind  kind
	build func() (*rig, error)
}

type kind string

const (
	ours   kind = "ours"
	floor  kind = "floor"
	peer   kind = "peer"
	beside kind = "beside" // for comparison, neither floor nor peer
)

// A rig is a candidate ready to run.
type rig struct {
	// op does n operations and returns when all of their deliveries have happened;
	// if they have not, or not once, that is an error.
	op func(n int) error
	// around surrounds calibrating, and each slice, with what is not to be timed
	// itself; nil: nothing.
	around func(run func() error) error
	// close ends the rig's goroutines; nil: it has none.
	close func() error
	// figure, if not nil, is what a slice came to instead of its time per operation.
	figure func() float64
	notes  []string
	// noisy: allocations of other goroutines go by while it runs.
	noisy bool
}

func (r *rig) during(run func() error) error {
	if r.around == nil {
		return run()
	}
	return r.around(run)
}

// A sample is one slice of one candidate, per operation.
type sample struct{ ns, bytes, allocs float64 }

// contest runs the candidates in turns and returns the samples of each.
func contest(rigs []*rig, slice []time.Duration, e effort) ([][]sample, error) {
	counts := make([]int, len(rigs))
	for i, r := range rigs {
		n, err := calibrate(r, slice[i], e.fixed)
		if err != nil {
			return nil, at(i, err)
		}
		counts[i] = n
	}
	samples := make([][]sample, len(rigs))
	for round := range e.rounds {
		for k := range rigs {
			i := (k + round) % len(rigs) // nobody always runs after the same neighbour
			s, err := measure(rigs[i], counts[i], round%depths)
			if err != nil {
				return nil, at(i, err)
			}
			samples[i] = append(samples[i], s)
		}
	}
	return samples, nil
}

// candidateError is a failure of the candidate at an index.
type candidateError struct {
	index int
	err   error
}

func at(i int, err error) error         { return &candidateError{i, err} }
func (e *candidateError) Error() string { return e.err.Error() }
func (e *candidateError) Unwrap() error { return e.err }
func (e *candidateError) in(r row) error {
	return fmt.Errorf("%s: %w", r.candidates[e.index].name, e.err)
}

// calibrate finds how many operations fill a slice.
func calibrate(r *rig, slice time.Duration, fixed int) (int, error) {
	n := max(1, fixed)
	err := r.during(func() error {
		if fixed > 0 {
			return r.op(fixed)
		}
		for ; ; n *= 4 {
			took, err := shortest(r, n)
			if err != nil {
				return err
			}
			if took >= slice/16 || n >= 1<<30 {
				n = max(1, int(float64(n)*float64(slice)/float64(took)))
				return nil
			}
		}
	})
	return n, err
}

// shortest is the best of a few tries: a machine that was elsewhere for a moment
// must not decide how many operations make a slice.
func shortest(r *rig, n int) (time.Duration, error) {
	least := time.Duration(math.MaxInt64)
	for range 3 {
		start := time.Now()
		if err := r.op(n); err != nil {
			return 0, err
		}
		least = min(least, time.Since(start))
	}
	return least, nil
}

// depths is how many stack depths the rounds go through.
const depths = 5

// measure runs one slice on a goroutine of its own.
func measure(r *rig, n, depth int) (s sample, err error) {
	runtime.GC() // what the candidate before left behind is not this one's cost
	<-loop.Go(func(context.Context) {
		deeper(depth, func() {
			err = r.during(func() (err error) {
				s, err = timed(r, n)
				return err
			})
		})
	}).Done()
	return s, err
}

func timed(r *rig, n int) (sample, error) {
	if err := r.op(n/16 + 1); err != nil { // the stack grows, the caches fill
		return sample{}, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	err := r.op(n)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	per := float64(n)
	ns := float64(took.Nanoseconds()) / per
	if r.figure != nil && err == nil {
		ns = r.figure()
	}
	return sample{
		ns:     ns,
		bytes:  float64(after.TotalAlloc-before.TotalAlloc) / per,
		allocs: float64(after.Mallocs-before.Mallocs) / per,
	}, err
}

// deeper calls f below n frames of an odd size.
//
//go:noinline
func deeper(n int, f func()) byte {
	var pad [104]byte
	pad[n] = byte(n)
	if n == 0 {
		f()
		return pad[0]
	}
	return deeper(n-1, f) + pad[n/2]
}

// fastest is the least of each figure, and the median time.
func fastest(all []sample) (least sample, median float64) {
	ns := make([]float64, len(all))
	least = all[0]
	for i, s := range all {
		ns[i] = s.ns
		least.ns = min(least.ns, s.ns)
		least.bytes = min(least.bytes, s.bytes)
		least.allocs = min(least.allocs, s.allocs)
	}
	slices.Sort(ns)
	return least, ns[len(ns)/2]
}
