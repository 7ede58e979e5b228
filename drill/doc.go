// Package drill proves, or disproves, what package tidings promises: it runs
// real processes, does to them what deploys and accidents do, and counts every
// event that was sent, accepted, handled, lost and doubled.
//
// # How it knows
//
// Every process under test keeps a journal of its own (package witness): a
// publisher writes down what it is about to publish and what it was told; a
// subscriber writes down when a handler begins, when it has ended, and when the
// broker has confirmed the acknowledgement. Nothing is reported over the
// transport under test, and kill -9 takes nothing back. [Judge] compares the
// journals with each other and with the [Evidence] of what was done to the
// processes.
//
// # What it promises
//
//   - Each accepted event is expected once per (group, pattern), counted, not
//     merely present: a deaf group cannot hide behind another.
//   - An event is in doubt only if its publisher wrote that it was about to
//     publish it and never wrote the answer, or was told that it is in doubt.
//   - A fault forgives what the promise excludes and nothing else: around a
//     kill -9 what the dead process had begun or can have been sent; around an
//     outage of the broker live events published between its stop and the moment
//     every client was back. What is forgiven is counted and shown.
//   - A run whose faults missed, whose deploys did not happen, whose publishers
//     were blocked, or that had nothing in flight when it mattered is [Void]: it
//     proves nothing, and says why.
//   - A run is never repeated until it is green. Journals and logs are kept.
//
// # The parts
//
// ledger.go reads journals; evidence.go says what was done; verdict.go and the
// rules_*.go files judge; report.go prints. run.go and what it uses start the
// processes and do the damage. Judging needs no process: it is tested on journals
// with planted faults, each of which must be named exactly.
package drill
