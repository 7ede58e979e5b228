package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/supervisor"
)

type runCmd struct {
	Workers      int           `short:"n" default:"1" help:"How many workers."`
	Listen       []string      `help:"Sockets to open for the workers: [NAME=]tcp://HOST:PORT or unix://PATH."`
	PIDFile      string        `name:"pid-file" help:"File that holds the master's pid."`
	Control      string        `help:"Control socket for tidings status and ctl. Default: PIDFILE.sock with --pid-file."`
	Dir          string        `help:"Working directory of the workers, followed where it is a symbolic link to the current release, at the start and at HUP."`
	State        string        `help:"Directory in which the last good release is kept, to be started again after a crash."`
	EnvFile      string        `help:"File of NAME=VALUE lines for the workers' environment, read again at HUP."`
	User         string        `help:"User that the workers run as, USER or USER:GROUP; for a master that root has started."`
	Umask        string        `help:"Umask of the workers, in octal."`
	Events       string        `help:"File to append what happens to, one JSON object a line. USR1 opens it again."`
	Log          string        `help:"File to append the master's log and the workers' output to. USR1 opens it again."`
	LogPrefix    bool          `help:"Set [SLOT PID] before each line of a worker."`
	ReadyTimeout time.Duration `default:"30s" help:"How long a worker may take to say READY=1."`
	DrainTimeout time.Duration `default:"30s" help:"How long a worker may take to end after QUIT."`
	StopTimeout  time.Duration `default:"5s" help:"How long a worker may take to end after TERM or ABRT."`
	Watchdog     time.Duration `help:"How often a ready worker must say WATCHDOG=1; one that does not is dumped (ABRT) and started again."`
	Hub          string        `help:"Directory on which to keep a hub, beside the workers: it is started before them, stopped after them, and no deploy touches it."`
	HubListen    string        `default:"127.0.0.1:4222" help:"HOST:PORT of that hub; port 0 takes a free one, and the same again next time."`
	Term         string        `enum:"quick,graceful" default:"quick" help:"What TERM means: quick or graceful."`
	Command      []string      `arg:"" passthrough:"" help:"The worker, after --."`
}

// Help is shown below the flags.
func (runCmd) Help() string {
	var b strings.Builder
	b.WriteString("Deploy with HUP; or, with a new tidings or other flags, with USR2, and QUIT to\nthe old master once the new one is ready. Signals to the master:\n")
	for _, s := range supervisor.Signals() {
		if s.Name != "CHLD" && s.Name != "PIPE" {
			fmt.Fprintf(&b, "\n  %-6s %s", s.Name, s.Does)
		}
	}
	return b.String()
}

// Run runs the master until it is told to stop.
func (c runCmd) Run(ctx context.Context) error {
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	cfg := supervisor.Config{
		Command: command, Workers: c.Workers, Listen: c.Listen, PIDFile: c.PIDFile, Control: c.Control, LogPrefix: c.LogPrefix,
		Dir: c.Dir, State: c.State, EnvFile: c.EnvFile, Umask: c.Umask, User: c.User,
		ReadyTimeout: c.ReadyTimeout, DrainTimeout: c.DrainTimeout, StopTimeout: c.StopTimeout, Watchdog: c.Watchdog, TermGraceful: c.Term == "graceful",
	}
	if cfg.Control == "" && c.PIDFile != "" {
		cfg.Control = supervisor.ControlPath(c.PIDFile)
	}
	if c.Dir != "" {
		dir, err := filepath.Abs(c.Dir)
		if err != nil {
			return err
		}
		cfg.Dir = dir
	}
	if c.Hub != "" {
		var err error
		if cfg.Hub, err = keptHub(c.Hub, c.HubListen); err != nil {
			return err
		}
	}
	var files []*logFile
	open := func(path string, use func(*logFile)) error {
		if path == "" {
			return nil
		}
		f, err := openLog(path)
		if err == nil {
			files = append(files, f)
			use(f)
		}
		return err
	}
	err := errors.Join(
		open(c.Events, func(f *logFile) { cfg.Events = f }),
		open(c.Log, func(f *logFile) {
			cfg.Stdout, cfg.Stderr, cfg.Logger = f, f, slog.New(slog.NewTextHandler(f, nil))
		}))
	if err != nil {
		return err
	}
	cfg.Reopen = func() error { return reopenAll(files) }
	return supervisor.Run(ctx, cfg)
}

// keptHub is a hub that the master keeps: this program, as tidings hub.
func keptHub(dir, listen string) (*supervisor.Hub, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &supervisor.Hub{
		Dir:  dir,
		Args: []string{"hub", "--dir", dir, "--listen", listen},
		Find: func() (supervisor.HubFound, error) {
			r, err := hub.Find(dir)
			if err != nil || r == nil {
				return supervisor.HubFound{}, err
			}
			return supervisor.HubFound{Running: true, PID: r.PID, URL: r.URL}, nil
		},
	}, nil
}
