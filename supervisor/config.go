//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A Config says what to run. Only Command is required.
type Config struct {
	// Command is the argv of a worker. What it and Dir lead to is looked up at the
	// start, by each rolling restart and by each deploy. A worker that dies meanwhile
	// is started again as what it was, for as long as that program can be had: see
	// State.
	Command []string
	// Dir is the workers' working directory, if not the master's; an absolute path.
	// Where it leads through a symbolic link, a new release is what the link leads to
	// by then.
	Dir string
	// State, if any, is a directory in which the last good release is kept: the
	// latest whose workers all became ready and, of a deploy, passed its probation.
	// It is what a master starts, if it is started with the same Command. A program
	// that Command names by a path, not by a name that is looked up in PATH, is
	// copied there, so that it can be started again after it was replaced.
	State string
	// EnvFile, if any, has NAME=VALUE lines that are set in the workers'
	// environment. It is read at the start, at each rolling restart, and by a
	// re-executed master. If it cannot be read there is no restart.
	EnvFile string
	// User, if any, is whom the workers run as: USER or USER:GROUP, by names or
	// numbers, with all groups of that user and its HOME. Only root can name another.
	User string
	// Umask, if any, is that of the workers, in octal.
	Umask string
	// Workers is how many there are; 1 if 0.
	Workers int
	// Listen are the sockets: "tcp://127.0.0.1:8080" or "unix:///path", each
	// optionally as NAME=ADDRESS. Names default to listen0, listen1, … Sockets
	// that the master itself inherits (LISTEN_FDS) are taken for the entries
	// of the same name and otherwise passed on beside them.
	Listen []string
	// PIDFile, if any, holds the master's pid while it runs.
	PIDFile string
	// Control, if any, is the path of a unix socket over which the master tells
	// how it is and takes requests, from its own user and root; see [Control]. At
	// most some 90 bytes. While an upgrade is under way the old master's is at
	// Control + ".oldbin".
	Control string

	// Hub, if any, is kept running beside the workers, which are started once it is
	// ready, and ended before it.
	Hub *Hub

	// ReadyTimeout bounds the start of a worker until READY=1; 30 s if 0.
	ReadyTimeout time.Duration
	// DrainTimeout bounds a worker's end after QUIT; 30 s if 0.
	DrainTimeout time.Duration
	// StopTimeout bounds a worker's end after TERM; 5 s if 0.
	StopTimeout time.Duration
	// Watchdog, if set, is how often a worker must send WATCHDOG=1 once it is
	// ready. One that does not gets ABRT, so that it can dump its stacks, and
	// after StopTimeout KILL.
	Watchdog time.Duration
	// BackoffMin and BackoffMax bound the pause before a worker that died is
	// started again: it doubles with each death in a row, less up to a half at
	// random. 250 ms and 30 s if 0.
	BackoffMin, BackoffMax time.Duration
	// BackoffReset is how long a worker must have been ready for its death not
	// to count as one in a row; 10 s if 0.
	BackoffReset time.Duration
	// TermGraceful makes TERM mean what QUIT does, for containers.
	TermGraceful bool

	// Stdout and Stderr get what workers write; os.Stdout and os.Stderr if
	// nil. Writes come from several goroutines, but one at a time for each of
	// the two. A Stdout that is an *os.File is given to the workers as
	// it is, unless LogPrefix is set.
	Stdout, Stderr io.Writer
	// LogPrefix sets "[SLOT PID] " before each line that a worker writes.
	LogPrefix bool
	// Logger gets what the master has to say; slog.Default() if nil.
	Logger *slog.Logger
	// Events gets the event stream, if not nil. To let a re-executed master
	// append to the same file, open it with os.O_APPEND.
	Events io.Writer
	// Reopen, if not nil, is called on USR1, before it is passed to the
	// workers, to open log files again.
	Reopen func() error
	// Argv is how to execute the master again on USR2; os.Args if nil.
	Argv []string
}

// withDefaults fills in zero values and checks the rest. All that is wrong is
// reported at once.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	for _, d := range []struct {
		name string
		at   *time.Duration
		zero time.Duration
	}{
		{"ReadyTimeout", &c.ReadyTimeout, 30 * time.Second},
		{"DrainTimeout", &c.DrainTimeout, 30 * time.Second},
		{"StopTimeout", &c.StopTimeout, 5 * time.Second},
		{"Watchdog", &c.Watchdog, 0},
		{"BackoffMin", &c.BackoffMin, 250 * time.Millisecond},
		{"BackoffMax", &c.BackoffMax, 30 * time.Second},
		{"BackoffReset", &c.BackoffReset, 10 * time.Second},
	} {
		if *d.at == 0 {
			*d.at = d.zero
		}
		if *d.at < 0 {
			errs = append(errs, fmt.Errorf("supervisor: %s is %v: give a positive duration", d.name, *d.at))
		}
	}
	if c.Workers == 0 {
		c.Workers = 1
	}
	if c.Workers < 0 {
		errs = append(errs, fmt.Errorf("supervisor: Workers is %d: give 1 or more", c.Workers))
	}
	if len(c.Command) == 0 {
		errs = append(errs, errors.New("supervisor: Command is empty: give the worker's program after --"))
	} else if _, err := exec.LookPath(within(c.Dir, c.Command[0])); err != nil {
		errs = append(errs, fmt.Errorf("supervisor: Command: %w", err))
	}
	if c.Umask != "" {
		if _, err := parseUmask(c.Umask); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("supervisor: Dir is %q: give an absolute path", c.Dir))
	} else if c.Dir != "" {
		errs = append(errs, mayEnter(c.Dir))
	}
	errs = append(errs, c.Hub.check())
	names := map[string]bool{}
	for i, l := range c.Listen {
		a, err := parseAddress(l, i)
		if err != nil {
			errs = append(errs, err)
		} else if names[a.name] {
			errs = append(errs, fmt.Errorf("supervisor: Listen: the name %q is given twice", a.name))
		}
		names[a.name] = true
	}
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Argv == nil {
		c.Argv = os.Args
	}
	return c, errors.Join(errs...)
}

// mutantStopBeforeReady is a defect on purpose, for the drill: HUP ends the old
// workers before it starts new ones, as Unicorn does. See package mutant.
const mutantStopBeforeReady = "stop-before-ready"

// mutantStopsHub is another: a master that is replaced takes its hub along.
const mutantStopsHub = "upgrade-stops-hub"
