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
	for i, callers := range []int{1, 4, 16, 64, 256, 1024} {
		id := "p1" + string(rune('a'+i))
		all = append(all,
			row{id: id, name: fmt.Sprintf("durable publish, each synced, %d waiting", callers), cpu: 2, effort: publishEffort(e, callers),
				goal: goal{floor: []float64{1, 1, 1, 0.5, 1. / 6, 1. / 12}[i]}, candidates: []candidate{ourPublish(true, callers), rawPublish(true, callers), rawEvent(true, callers), rawBatches(true, min(callers, 1000))}},
			row{id: id + "n", name: fmt.Sprintf("durable publish, not synced, %d waiting", callers), cpu: 2, effort: publishEffort(e, callers),
				candidates: []candidate{ourPublish(false, callers), rawPublish(false, callers)}})
	}
	all = append(all,
		row{id: "p2", name: fmt.Sprintf("durable publish, not synced, window of %d", window), cpu: 2, effort: publishEffort(e, 1000),
			goal: goal{floor: 1.25}, candidates: []candidate{ourAsync(), rawAsync(), asyncOf("nats.go, async, as an event", beside, eventMsg)}},
		row{id: "p3", name: "durable publish, synced to the spool, 64 waiting", cpu: 2, effort: publishEffort(e, 1000),
			goal: goal{floor: 1. / 15}, candidates: []candidate{ourSpooled(64), rawPublish(true, 64)}},
		row{id: "p4", name: "durable publish, each synced, 64 waiting, and a peer", cpu: 2, effort: publishEffort(e, 64),
			goal: goal{peer: 1. / 3}, candidates: []candidate{ourPublish(true, 64), rawPublish(true, 64), watermillStored(true, 64)}},
		row{id: "p4n", name: "durable publish, not synced, 64 waiting, and a peer", cpu: 2, effort: publishEffort(e, 64),
			candidates: []candidate{ourPublish(false, 64), rawPublish(false, 64), watermillStored(false, 64)}})
	all = append(all, liveRows(e)...)
	all = append(all, outageRows(e)...)
	return append(all,
		row{id: "7", name: fmt.Sprintf("match among %d wildcards, known topic", e.subs), cpu: 1, goal: goal{floor: same},
			candidates: []candidate{timedAmong(ours, e.subs), among(floor, 10)}},
		row{id: "8", name: "publish typed, 1 inline, read by Snapshot", cpu: 2, candidates: []candidate{
			watched, typed("the same, not read", beside, 1, publishTyped)}},
		row{id: "d1", name: "durable consume, 128 B", cpu: 2, effort: &effort{rounds: min(e.rounds, 5), fixed: stored}, goal: goal{floor: 2},
			candidates: []candidate{oursDurable(stored), rawConsume(stored)}})
}

// publishEffort has each caller publish at least some.
func publishEffort(e effort, callers int) *effort {
	n := max(200, 4*callers)
	if e.fixed == 0 {
		n = max(2000, 10*callers)
	}
	return &effort{rounds: min(e.rounds, 5), fixed: n}
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
