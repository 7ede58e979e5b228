//go:build unix

// Package worker is what a Go program imports to run under a supervisor that
// hands over without a gap: `tidings run`, systemd, or Kubernetes.
//
// # Promises
//
// [Run] says READY only once every subscription of the bus works: confirmed by
// the broker, and for durable ones this process's own pull answered. On QUIT,
// TERM or INT, or when the master is gone, it drains: stops taking, finishes what
// was taken, settles it, and returns. It never ends a handler before the
// deadline, and one second before it writes the stacks of what still runs to
// standard error. Without a supervisor it does the same; READY then goes nowhere.
//
// The protocol is systemd's: LISTEN_FDS for sockets, NOTIFY_SOCKET for readiness.
// STATUS says what is done, and which subscriptions are waited for. A master of
// Tidings also gets a report on the subscriptions once a second, for `tidings
// status`, and after the drain a last one that is exact: what came to each
// subscription, what became of it, and the id of each event that was left. With a watchdog it sends WATCHDOG=1 for as long as it is alive.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/mutant"
	"github.com/tidings-go/tidings/sdnotify"
)

// Options say what the worker runs. The zero value of each field works.
type Options struct {
	// Bus is drained at the end. Default: tidings.Default().
	Bus *tidings.Bus
	// Setup subscribes, and whatever else must be done before the worker can be
	// called ready. Its ctx ends when the worker is told to stop.
	Setup func(ctx context.Context) error
	// Serve is called once every subscription works, just before READY: to take
	// requests any sooner would be to cut them off if that time never comes. It must
	// return; what it has started is for Shutdown to end. For HTTP, package httpworker
	// has both.
	Serve func(ctx context.Context) error
	// Shutdown is called when the worker is told to stop, before the bus is
	// drained: to end what takes requests. For HTTP see package httpworker, which
	// does more than http.Server.Shutdown.
	Shutdown func(ctx context.Context) error
	// Alive, if not nil, is asked twice in each interval of the manager's watchdog
	// (tidings run --watchdog, WatchdogSec of systemd). If it returns an error, or
	// does not return, the manager has the worker dump its stacks and starts
	// another. It gets a context that ends when Run does. The bus is asked anyway: a
	// worker whose bus is locked up is not alive.
	Alive func(context.Context) error
	// HandlerLimit, if not 0, has the manager do the same when a handler runs for
	// longer; no sooner than SubscribeOptions.HungAfter, when it is found to hang. By
	// default it is named, in STATUS and in the log, and other subscriptions go on.
	HandlerLimit time.Duration
	// Probes, if not nil, answer for this worker.
	Probes *Probes
	// Reopen is called on USR1, to open log files again, one call at a time. It must
	// return: the drain waits for it. Without it USR1 does nothing.
	Reopen func() error
	// DrainTimeout bounds Shutdown and the drain together. Default: a second less
	// than the master waits, as its TIDINGS_DRAIN_TIMEOUT says; 25 s without one. When
	// a master of Tidings stops quickly, by TERM, it is less than TIDINGS_STOP_TIMEOUT
	// in any case.
	DrainTimeout time.Duration
	// Logger gets a line for each step. Default: slog.Default().
	Logger *slog.Logger
}

// A life is one Run.
type life struct {
	Options
	stage   atomic.Int32
	changed chan struct{} // holds a token while stage is news
	telling *loop.Loop
	told    int64 // the first slot of activity that was not told; of whoever tells
}

// ErrMasterGone is the cause of the context's end when the master has died.
var ErrMasterGone = errors.New("the master is gone")

// Run runs a worker until ctx ends or it is told to stop, and returns once it has
// drained: nil if nothing was left. Call it once, from main.
func Run(ctx context.Context, o Options) error {
	if o.Bus == nil {
		o.Bus = tidings.Default()
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = drainTimeout()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	ctx, release := untilTold(ctx)
	defer release()
	l := &life{Options: o, changed: make(chan struct{}, 1)}
	if l.Probes != nil {
		l.Probes.life.Store(l)
	}
	defer l.reopenWhenTold()()
	if err := align(); err != nil {
		o.Logger.Warn("the manager cannot compare when workers get events", "err", err)
	}
	l.telling = l.tell()
	defer l.telling.StopAndWait()
	defer l.beat().Stop() // not waited for: Alive may be what hangs
	if err := l.begin(ctx); err != nil && ctx.Err() == nil {
		return errors.Join(err, o.Bus.Close())
	}
	<-ctx.Done()
	return l.end(context.Cause(ctx))
}

// begin ends with READY.
func (l *life) begin(ctx context.Context) error {
	if mutant.On("ready-before-bind") {
		if err := sdnotify.Notify(sdnotify.Ready); err != nil {
			return err
		}
	}
	l.enter(stageSetup)
	if l.Setup != nil {
		if err := l.Setup(ctx); err != nil {
			return fmt.Errorf("worker: set up: %w", err)
		}
	}
	l.enter(stageWaiting)
	if err := l.Bus.Ready(ctx); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	if l.Serve != nil {
		if err := l.Serve(ctx); err != nil {
			return fmt.Errorf("worker: serve: %w", err)
		}
	}
	if err := sdnotify.Notify(sdnotify.Ready); err != nil {
		return fmt.Errorf("worker: say that it is ready: %w", err)
	}
	l.enter(stageServing)
	l.Logger.Info("worker ready", "pid", os.Getpid())
	return nil
}

// toEnd is how long the process may take to end when the drain is over.
const toEnd = time.Second / 2

func (l *life) end(cause error) error {
	limit := l.DrainTimeout
	if quick := stopTimeout(cause); quick > 0 {
		limit = min(limit, quick)
	}
	l.Logger.Info("worker drains", "pid", os.Getpid(), "cause", cause, "within", limit)
	// The manager's own bound may be shorter than what the application has set. One
	// that is gone cannot be told, and that is no failure.
	_ = sdnotify.Notify(sdnotify.Stopping, sdnotify.ExtendTimeout(limit+toEnd))
	l.enter(stageDraining)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dumped := make(chan struct{})
	dump := time.AfterFunc(lessASecond(limit), func() { dumpStacks(); close(dumped) })
	defer func() {
		if !dump.Stop() {
			<-dumped // the process may end next
		}
	}()
	var err error
	if l.Shutdown != nil {
		err = l.Shutdown(ctx)
	}
	err = errors.Join(err, l.Bus.Drain(ctx))
	l.telling.StopAndWait()
	if last := l.tellLast(); last != nil {
		l.Logger.Warn("the manager was not told what this worker did in all", "err", last)
	}
	l.Logger.Info("worker ends", "pid", os.Getpid(), "err", err)
	return err
}

// untilTold is a context that ends when the worker is told to stop: by a signal,
// or by the end of its master. A second signal ends the process at once.
func untilTold(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	// With the master gone, so is the reader of standard error: a log line must not
	// end the drain. Notify rather than Ignore, which children would inherit.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	watch := loop.Go(func(own context.Context) {
		select {
		case s := <-signals:
			cancel(toldBy{s})
		case <-own.Done():
			return
		}
		select {
		case s := <-signals:
			fmt.Fprintf(os.Stderr, "worker %d: a second signal (%v): ends without draining\n", os.Getpid(), s)
			os.Exit(1)
		case <-own.Done():
		}
	})
	watchMaster(cancel)
	return ctx, func() {
		signal.Stop(signals)
		watch.StopAndWait()
		cancel(nil)
	}
}

// reopenWhenTold calls Reopen on USR1, of which a Go program takes no notice else.
func (l *life) reopenWhenTold() (stop func()) {
	if l.Reopen == nil {
		return func() {}
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR1)
	watch := loop.Go(func(ctx context.Context) {
		for {
			select {
			case <-told:
				if err := l.Reopen(); err != nil {
					l.Logger.Error("log files were not opened again", "err", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(told)
		watch.StopAndWait()
	}
}

// toldBy is the cause of the context's end when a signal came.
type toldBy struct{ os.Signal }

func (t toldBy) Error() string { return "signal: " + t.String() }

func drainTimeout() time.Duration {
	const fallback = 25 * time.Second
	return cmp.Or(masterWaits("TIDINGS_DRAIN_TIMEOUT"), fallback)
}

// stopTimeout bounds a quick stop: a master that sends TERM waits for less. 0 if it is
// none; managers other than ours send TERM for a graceful end.
func stopTimeout(cause error) time.Duration {
	var told toldBy
	if !errors.As(cause, &told) || told.Signal == syscall.SIGQUIT {
		return 0
	}
	return masterWaits("TIDINGS_STOP_TIMEOUT")
}

// masterWaits is how long there is before the master kills, 0 if it does not say.
func masterWaits(name string) time.Duration {
	d, err := time.ParseDuration(os.Getenv(name))
	if err != nil || d <= 0 {
		return 0
	}
	return lessASecond(d)
}

func lessASecond(d time.Duration) time.Duration { return max(d-time.Second, d/2) }

// watchMaster waits for the end of the pipe whose other end the master holds. The
// goroutine ends with the master or with the process.
func watchMaster(cancel context.CancelCauseFunc) {
	fd, err := strconv.Atoi(os.Getenv("TIDINGS_PARENT_FD"))
	if err != nil || fd < 3 {
		return
	}
	syscall.CloseOnExec(fd)
	pipe := os.NewFile(uintptr(fd), "master")
	loop.Go(func(context.Context) {
		var b [1]byte
		for {
			if n, err := pipe.Read(b[:]); n == 0 || err != nil {
				cancel(ErrMasterGone)
				return
			}
		}
	})
}

func dumpStacks() {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	fmt.Fprintf(os.Stderr, "worker %d: the drain is about to reach its deadline; what still runs:\n%s\n", os.Getpid(), buf[:n])
}

// Listeners returns the sockets that the supervisor has opened, by name; a nil
// map without a supervisor. It can be called once: the environment is cleared.
func Listeners() (map[string][]net.Listener, error) { return sdnotify.Listeners() }
