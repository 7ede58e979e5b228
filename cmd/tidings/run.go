package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tidings-go/tidings/supervisor"
)

type runCmd struct {
	Workers      int           `short:"n" default:"1" help:"How many workers."`
	Listen       []string      `help:"Sockets to open for the workers: [NAME=]tcp://HOST:PORT or unix://PATH."`
	PIDFile      string        `name:"pid-file" help:"File that holds the master's pid."`
	Events       string        `help:"File to append what happens to, one JSON object a line."`
	ReadyTimeout time.Duration `default:"30s" help:"How long a worker may take to say READY=1."`
	DrainTimeout time.Duration `default:"30s" help:"How long a worker may take to end after QUIT."`
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
	var events io.Writer
	if c.Events != "" {
		f, err := os.OpenFile(c.Events, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		events = f
	}
	return supervisor.Run(ctx, supervisor.Config{
		Command: command, Workers: c.Workers, Listen: c.Listen, PIDFile: c.PIDFile, Events: events,
		ReadyTimeout: c.ReadyTimeout, DrainTimeout: c.DrainTimeout, TermGraceful: c.Term == "graceful",
	})
}
