package main

import (
	"context"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/hub"
)

type hubCmd struct {
	Dir     string `required:"" help:"Directory that holds the store, the token and the address."`
	Listen  string `default:"127.0.0.1:4222" help:"HOST:PORT for clients; port 0 takes a free one, and the same again next time."`
	Monitor string `help:"HOST:PORT of HTTP monitoring; off by default."`
	Expose  bool   `help:"Allow a --listen that other machines can reach."`
}

// Help is shown below the flags.
func (hubCmd) Help() string {
	return `Once ready it prints the line that tells programs where it is:

  export TIDINGS_URL='nats://127.0.0.1:4222?token-file=DIR/token'

TERM, INT and QUIT stop it. What was acknowledged is on disk in DIR and there
again at the next start.`
}

// Run prints how to reach it when the hub is ready, and what it closed at the end.
func (c hubCmd) Run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	h, err := hub.Start(ctx, hub.Options{Dir: c.Dir, Addr: c.Listen, Monitor: c.Monitor, Expose: c.Expose})
	if err != nil {
		return err
	}
	fmt.Println("url", h.URL())
	if h.MonitorURL() != "" {
		fmt.Println("monitor", h.MonitorURL())
	}
	fmt.Println("ready; for the programs that use it:")
	fmt.Printf("export TIDINGS_URL=%s\n", quoted(h.URL()))
	select {
	case <-ctx.Done():
	case <-h.Done():
		return h.Err()
	}
	end, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stopped, err := h.Stop(end)
	fmt.Println("stopped clients", stopped.Clients)
	return err
}

// quoted is s as one word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
