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
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
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
	// Shutdown is called when the worker is told to stop, before the bus is
	// drained: for http.Server.Shutdown and the like.
	Shutdown func(ctx context.Context) error
	// DrainTimeout bounds Shutdown and the drain together. Default: a second less
	// than the master waits, as its TIDINGS_DRAIN_TIMEOUT says; 25 s without one.
	DrainTimeout time.Duration
	// Logger gets a line for each step. Default: slog.Default().
	Logger *slog.Logger
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
	if err := o.begin(ctx); err != nil && ctx.Err() == nil {
		return errors.Join(err, o.Bus.Close())
	}
	<-ctx.Done()
	return o.end(context.Cause(ctx))
}

// begin ends with READY.
func (o *Options) begin(ctx context.Context) error {
	if mutant.On("ready-before-bind") {
		if err := sdnotify.Notify(sdnotify.Ready); err != nil {
			return err
		}
	}
	if o.Setup != nil {
		if err := o.Setup(ctx); err != nil {
			return fmt.Errorf("worker: set up: %w", err)
		}
	}
	if err := o.Bus.Ready(ctx); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	if err := sdnotify.Notify(sdnotify.Ready); err != nil {
		return fmt.Errorf("worker: say that it is ready: %w", err)
	}
	o.Logger.Info("worker ready", "pid", os.Getpid())
	return nil
}

func (o *Options) end(cause error) error {
	o.Logger.Info("worker drains", "pid", os.Getpid(), "cause", cause)
	// A master that is gone cannot be told, and that is no failure.
	_ = sdnotify.Notify(sdnotify.Stopping, sdnotify.Status("draining"))
	ctx, cancel := context.WithTimeout(context.Background(), o.DrainTimeout)
	defer cancel()
	dump := time.AfterFunc(max(o.DrainTimeout-time.Second, o.DrainTimeout/2), dumpStacks)
	defer dump.Stop()
	var err error
	if o.Shutdown != nil {
		err = o.Shutdown(ctx)
	}
	err = errors.Join(err, o.Bus.Drain(ctx))
	o.Logger.Info("worker ends", "pid", os.Getpid(), "err", err)
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
			cancel(fmt.Errorf("signal: %v", s))
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

func drainTimeout() time.Duration {
	const fallback = 25 * time.Second
	d, err := time.ParseDuration(os.Getenv("TIDINGS_DRAIN_TIMEOUT"))
	if err != nil || d <= 0 {
		return fallback
	}
	return max(d-time.Second, d/2)
}

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
