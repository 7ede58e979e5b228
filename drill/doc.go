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
//     every client was back; live events published while no worker was ready. What
//     is forgiven is counted and shown.
//   - A run whose faults missed, whose deploys did not happen, whose publishers
//     were blocked, or that had nothing in flight when it mattered is [Void]: it
//     proves nothing, and says why.
//   - What a handler is to suffer is planted in its event, and written down by the
//     publisher ([witness.Fate]). Each planted failure is looked for: retried, or
//     one dead letter of the group that failed and no other, redriven to that group
//     once. A failure that nobody planted is a violation; a fate that no handler
//     met makes the run [Void].
//   - What a drain's receipt names, and only that, comes again.
//   - What workers report of themselves, and the receipts of tidings deploy, are
//     believed by nobody: each count is that of the journals, and the longest gap lies
//     in what these allow. What fails in a version that is to be taken back is forgiven
//     to its processes alone, and only if it was.
//   - Of the matrix of signals each cell has an effect that was seen, and a promise
//     of its own. What is forgiven in it is what a worker took along that its
//     signal may cut off; that nobody was there never is.
//   - What a publisher was told holds, whoever was killed meanwhile: what was accepted
//     without a hub is handled in order and once, what was refused is not, and at the
//     end nothing lies in a spool. A live event may go with its publisher if it was
//     published just before. A double is forgiven if its publisher has announced it.
//   - The hub of a master is the same process, with the same start, before and after each
//     deploy. When whoever has the hub ends, what counts as back is who is seen to handle,
//     or to be told of, what came after that.
//   - A run is never repeated until it is green. Journals and logs are kept.
//
// # The parts
//
// ledger.go reads journals; evidence.go says what was done; verdict.go and the
// rules_*.go files judge; report.go prints. scenarios.go says what a run is put
// through; run.go and what it uses start the processes and do the damage;
// releases.go runs the command that deploys. outage.go takes publishers, the hub and
// its answers away: publishers.go has the former, proxy.go the latter, which network.go
// takes away altogether; sync.go traces the hub, cluster.go makes it three, and hub.go has
// a master keep it, then the programs. signals.go plays the matrix: plays.go has its
// cells, states.go the states, effects.go and burst.go what must come of a signal,
// lineage.go the processes. Judging needs no process: it is tested on journals with
// planted faults, each of which must be named exactly.
package drill
