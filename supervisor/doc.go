//go:build unix

// Package supervisor is the master of `tidings run`: it opens the sockets,
// starts the workers, and replaces them without an instant in which nobody
// serves. It knows nothing of a worker but systemd's protocols (package
// sdnotify), so a worker can be any program. Linux and macOS.
//
// # What it promises
//
// A new worker has said READY=1 before any old one is asked to go. If it does
// not, because it exits, or stays silent for [Config.ReadyTimeout], it is
// ended, the old one stays, and the log shows the reason, the exit status and
// its last lines of output.
//
// The listening sockets are the master's. They stay open across the
// replacement of workers (HUP) and of the master itself (USR2), so no
// connection is refused in either.
//
// A worker that dies is started again, ever more slowly if it keeps dying.
//
// No kind of signal is lost in a burst; how often one kind was sent within
// the burst is, since kernels do not tell.
//
// The master ends only after all of its workers have ended; those that do not
// within [Config.DrainTimeout], or what they asked for by
// EXTEND_TIMEOUT_USEC, are killed and named. If the master itself is killed,
// each worker sees the end of the pipe TIDINGS_PARENT_FD.
//
// # Signals
//
// The table is in signal.go, and is what [Signals] returns. Upgrade of the
// master by hand: USR2, wait for the new one's line "generation ready", then
// QUIT to the old one, whose pid is in PIDFile.oldbin. To go back: QUIT to
// the new one instead.
//
// Over the control socket, [Config.Control], the same can be asked for, see
// [Requests]. There each request counts.
//
// # What a worker is given
//
//	LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID  the sockets, from descriptor 3
//	NOTIFY_SOCKET                           one per worker
//	WATCHDOG_USEC, WATCHDOG_PID             only with Config.Watchdog
//	TIDINGS_PARENT_FD                       a pipe that ends when the master does
//	TIDINGS_GENERATION, TIDINGS_WORKER      numbers from 1 and from 0
//	TIDINGS_DRAIN_TIMEOUT                   a Go duration: how long it has after QUIT
//	TIDINGS_STOP_TIMEOUT                    how long it has after TERM
//
// It runs in a process group of its own, so that Ctrl-C on a terminal reaches
// the master alone, and reads from /dev/null. The read end of
// TIDINGS_PARENT_FD is in blocking mode. When the master is gone, so is the
// reader of the worker's standard error: a worker that wants to drain then
// must not let SIGPIPE end it.
//
// # Events
//
// [Config.Events] gets one JSON object a line for everything that happens;
// see [Event].
package supervisor
