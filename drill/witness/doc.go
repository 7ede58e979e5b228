// Package witness is what an application imports to be drilled: it keeps a
// journal of what the application did with each event, for `tidings drill` to
// judge afterwards.
//
// Outside a drill it costs nothing: [FromEnv] returns nil when TIDINGS_DRILL_DIR
// is unset, and every method of a nil *Witness does nothing.
//
// # Promises
//
//   - Each call is one line, and each line is one unbuffered write(2) before the
//     call returns: what was recorded survives kill -9 of the process, because
//     the page cache does.
//   - Lines are numbered; a missing number shows that the journal itself lost
//     something. The first line says whose journal it is, the last one says
//     "closed" with the total, and is missing when the process was killed.
//   - Times are of CLOCK_MONOTONIC, which all processes of a machine share.
//   - A journal that cannot be written ends the process at once, with exit
//     status 70 and the reason: a drill without its record would lie.
//   - All methods may be called concurrently.
//
// # The file
//
// TIDINGS_DRILL_DIR/ledger/ROLE-PID-RANDOM.log, mode 0600. Fields are separated
// by tabs: number, nanoseconds, a letter for the [Kind], and what the kind needs.
// A field that holds a tab, a line end or a quote, or is empty, is quoted as Go
// quotes strings.
package witness
