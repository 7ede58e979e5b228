package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
)

// A row is one line of section "Numbers to reach": ours, the floor under it,
// and the peers.
type row struct {
	id, name   string
	cpu        int
	slice      time.Duration // 0: the effort's
	effort     *effort       // instead of the run's; nil: the run's
	candidates []candidate
	goal       goal
	median     bool // what counts is the median of the slices, not the fastest
}

// A goal is what our candidate is to reach; its zero fields ask nothing.
type goal struct {
	ns       float64 // at most
	floor    float64 // at most so many times the floor
	either   bool    // one of the two above is enough
	peer     float64 // at most so many times the fastest peer
	noAllocs bool
}

func (g goal) String() string {
	var time, all []string
	if g.ns > 0 {
		time = append(time, fmt.Sprintf("%g ns", g.ns))
	}
	if g.floor > 0 {
		time = append(time, fmt.Sprintf("%.3gx floor", g.floor))
	}
	if len(time) > 0 {
		sep := ", "
		if g.either {
			sep = " or "
		}
		all = append(all, strings.Join(time, sep))
	}
	switch {
	case g.peer == 1:
		all = append(all, "ahead of best peer")
	case g.peer > 0:
		all = append(all, fmt.Sprintf("%.3gx best peer", g.peer))
	}
	if g.noAllocs {
		all = append(all, "0 allocs")
	}
	return strings.Join(all, ", ")
}

// someAllocs is where allocations per operation cease to be those of the
// measuring itself, or of the runtime.
const someAllocs = 0.01

// reached says "yes", "no", or nothing when there is no goal.
func (g goal) reached(r result) string {
	if g == (goal{}) {
		return ""
	}
	var o figure
	for _, f := range r.Figures {
		if f.Kind == ours {
			o = f
		}
	}
	fast := g.ns == 0 || o.Ns <= g.ns
	near := g.floor == 0 || (r.ToFloor > 0 && r.ToFloor <= g.floor)
	if g.either {
		fast = fast || near
	} else {
		fast = fast && near
	}
	ahead := g.peer == 0 || (r.ToPeer > 0 && r.ToPeer <= g.peer)
	if fast && ahead && (!g.noAllocs || o.Allocs < someAllocs) {
		return "yes"
	}
	return "no"
}

// A result is what a row came to.
type result struct {
	Row     string   `json:"row"`
	Name    string   `json:"name"`
	CPU     int      `json:"gomaxprocs"`
	Figures []figure `json:"figures"`
	ToFloor float64  `json:"to_floor,omitempty"` // ours / floor
	ToPeer  float64  `json:"to_peer,omitempty"`  // ours / fastest peer
	Goal    string   `json:"goal,omitempty"`
	Reached string   `json:"reached,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// A figure is what a candidate came to, per operation.
type figure struct {
	Candidate string  `json:"candidate"`
	Kind      kind    `json:"kind"`
	Ns        float64 `json:"ns"`        // the fastest slice
	Median    float64 `json:"median_ns"` // of all slices: how much the machine disturbed
	Bytes     float64 `json:"bytes"`
	Allocs    float64 `json:"allocs"`
	Noisy     bool    `json:"noisy_allocs,omitempty"` // not this candidate's allocations alone
}

// run measures the row's candidates against each other.
func (r row) run(e effort) (res result, err error) {
	if r.effort != nil {
		e = *r.effort
	}
	res = result{Row: r.id, Name: r.name, CPU: r.cpu, Goal: r.goal.String()}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(r.cpu))
	var rigs []*rig
	defer func() {
		for i, g := range rigs {
			if g.close == nil {
				continue
			}
			if cerr := g.close(); cerr != nil {
				err = errors.Join(err, fmt.Errorf("%s: close: %w", r.candidates[i].name, cerr))
			}
		}
	}()
	var slices []time.Duration
	for _, c := range r.candidates {
		g, err := c.build()
		if err != nil {
			return res, fmt.Errorf("%s: %w", c.name, err)
		}
		rigs = append(rigs, g)
		res.Notes = append(res.Notes, g.notes...)
		slices = append(slices, max(r.slice, e.slice))
	}
	samples, err := contest(rigs, slices, e)
	if err != nil {
		var ce *candidateError
		if errors.As(err, &ce) {
			err = ce.in(r)
		}
		return res, err
	}
	for i, c := range r.candidates {
		least, median := fastest(samples[i])
		if r.median {
			least.ns = median
		}
		res.Figures = append(res.Figures, figure{Candidate: c.name, Kind: c.kind, Ns: least.ns, Median: median,
			Bytes: least.bytes, Allocs: least.allocs, Noisy: rigs[i].noisy})
	}
	res.compare(r.goal)
	return res, nil
}

func (r *result) compare(g goal) {
	var own, floorNs, peerNs float64
	for _, f := range r.Figures {
		switch f.Kind {
		case ours:
			own = f.Ns
		case floor:
			floorNs = f.Ns
		case peer:
			if peerNs == 0 || f.Ns < peerNs {
				peerNs = f.Ns
			}
		}
	}
	if own == 0 {
		return // a row of floors
	}
	if floorNs > 0 {
		r.ToFloor = own / floorNs
	}
	if peerNs > 0 {
		r.ToPeer = own / peerNs
	}
	r.Reached = g.reached(*r)
}
