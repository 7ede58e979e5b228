package main

import (
	"fmt"
	"slices"
	"time"
)

// queuedSlice is longer: some peers hand over at a tick.
const queuedSlice = 30 * time.Millisecond

// same is what "the same cost" allows for: cache misses and noise.
const same = 1.25

// rows is the in-process part of "Numbers to reach".
func rows(e effort) []row {
	stored := max(e.fixed, 500) // events in a stream
	if e.fixed == 0 {
		stored = 30_000
	}
	all := []row{
		{id: "0", name: "floors alone", cpu: 1, candidates: []candidate{
			floorCall, floorWork, floorLoad, floorMutex, floorAdd, floorLookup, floorSend, floorNow, floorClock}},
		{id: "1", name: "publish typed, nobody listening", cpu: 1, goal: goal{ns: 3, noAllocs: true},
			candidates: []candidate{typed("tidings", ours, 0, publishTyped), floorCall}},
		{id: "2", name: "publish by name, nobody listening", cpu: 1, goal: goal{ns: 15, floor: 2, either: true},
			candidates: []candidate{byName("tidings", ours, ""), floorLookup}},
		{id: "3", name: "instrument typed, nobody listening", cpu: 1, goal: goal{ns: 6, noAllocs: true},
			candidates: []candidate{typed("tidings", ours, 0, instrumentTyped), floorWork}},
		{id: "4", name: "instrument typed, 1 inline subscriber", cpu: 1, goal: goal{floor: 1.6, noAllocs: true},
			candidates: []candidate{typed("tidings", ours, 1, instrumentTyped), floorClock}},
	}
	for i, subs := range []int{1, 8, 100} {
		r := row{id: "5" + string(rune('a'+i)), name: fmt.Sprintf("publish typed, %d inline", subs), cpu: 1, goal: goal{peer: 1},
			candidates: append([]candidate{typed("tidings", ours, subs, publishTyped), floorSlice(subs)}, inlinePeers(subs)...)}
		if subs == 1 {
			r.goal.peer = 1.3
		}
		all = append(all, r)
	}
	all = append(all, row{id: "5d", name: "publish by name, 1 inline by order.*", cpu: 1, candidates: []candidate{
		byName("tidings", ours, "order.*"), floorNamed(1),
		byName("by name, subscribed by name", beside, name), typed("typed, subscribed typed", beside, 1, publishTyped)}})
	for _, cpu := range []int{1, 2} {
		for i, subs := range []int{1, 8} {
			all = append(all, row{id: "6" + string(rune('a'+i)), name: fmt.Sprintf("publish typed, %d queued, to the end", subs), cpu: cpu, slice: queuedSlice,
				goal:       goal{floor: 0.5, noAllocs: true},
				candidates: append([]candidate{oursQueued(subs), floorChannel(subs), parcelChannel(subs)}, queuedPeers(subs)...)})
		}
	}
	return append(all,
		row{id: "7", name: fmt.Sprintf("match among %d wildcards, known topic", e.subs), cpu: 1, goal: goal{floor: same},
			candidates: []candidate{timedAmong(ours, e.subs), among(floor, 10)}},
		row{id: "8", name: "publish typed, 1 inline, read by Snapshot", cpu: 2, candidates: []candidate{
			watched, typed("the same, not read", beside, 1, publishTyped)}},
		row{id: "d1", name: "durable consume, 128 B", cpu: 2, effort: &effort{rounds: min(e.rounds, 5), fixed: stored}, goal: goal{floor: 2},
			candidates: []candidate{oursDurable(stored), rawConsume(stored)}})
}

// atCPU is the rows at one GOMAXPROCS, each once.
func atCPU(all []row, cpu int) []row {
	var out []row
	for _, r := range all {
		r.cpu = cpu
		if !slices.ContainsFunc(out, func(o row) bool { return o.id == r.id }) {
			out = append(out, r)
		}
	}
	return out
}
