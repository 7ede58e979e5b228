package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/bytesize"
)

// hubStop is how long stopping may take: a hub in a cluster gives its clients time to go
// to other servers.
const hubStop = time.Minute

type hubCmd struct {
	Dir     string `required:"" help:"Directory that holds the store, the secrets and the address."`
	Listen  string `help:"HOST:PORT for clients, 127.0.0.1:4222 if --config says nothing else; port 0 takes a free one, and the same again next time."`
	Expose  bool   `help:"Allow a --listen, or listeners of --config, that other machines can reach."`
	Users   string `help:"File that says which user may publish and subscribe what; without it one token may everything."`
	Config  string `help:"Configuration file of nats-server, for clusters, leaf nodes, accounts and all else."`
	TLSCert string `name:"tls-cert" help:"File of the certificate that clients are shown."`
	TLSKey  string `name:"tls-key" help:"File of its key."`
	TLSCA   string `name:"tls-ca" help:"File of the CA of the certificates that clients must show."`
	Monitor string `help:"HOST:PORT of nats-server's HTTP monitoring; off by default."`
	Health  string `help:"HOST:PORT of /healthz, /readyz and /metrics; off by default."`

	MaxStore       byteSize `name:"max-store" placeholder:"SIZE" help:"What all streams together may keep on disk (10GiB)."`
	MaxMemory      byteSize `name:"max-memory" placeholder:"SIZE" help:"What streams may keep in memory (256MiB)."`
	MaxPayload     byteSize `name:"max-payload" placeholder:"SIZE" help:"The largest message, with its headers (1MiB)."`
	MaxConnections int      `name:"max-connections" placeholder:"N" help:"How many clients there may be (65536)."`
	Downgrade      bool     `help:"Open a store that a newer nats-server has written, though this one may lose what that one wrote."`
}

// byteSize is a size on the command line.
type byteSize int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := bytesize.Parse(string(text))
	*b = byteSize(n)
	return err
}

// Help is shown below the flags.
func (hubCmd) Help() string {
	return `Once ready it prints the line that tells programs where it is:

  export TIDINGS_URL='nats://127.0.0.1:4222?token-file=DIR/token'

or with --users one for each user. None holds a secret.

TERM, INT and QUIT stop it. HUP has it read the token, --users and --config
again; new files of certificates are noticed without. What was acknowledged is
on disk in DIR and there again at the next start.`
}

func (c hubCmd) options() hub.Options {
	return hub.Options{Dir: c.Dir, Addr: c.Listen, Expose: c.Expose, Users: c.Users, Config: c.Config,
		TLSCert: c.TLSCert, TLSKey: c.TLSKey, TLSCA: c.TLSCA, Monitor: c.Monitor, Health: c.Health,
		MaxStore: int64(c.MaxStore), MaxMemory: int64(c.MaxMemory), MaxPayload: int64(c.MaxPayload), MaxConnections: c.MaxConnections, Downgrade: c.Downgrade}
}

// hubFlags are what the command calls the fields that errors name.
var hubFlags = strings.NewReplacer("Options.Addr", "--listen", "Options.Expose", "--expose", "Options.Users", "--users", "Options.Config", "--config",
	"Options.TLSCert", "--tls-cert", "Options.TLSKey", "--tls-key", "Options.TLSCA", "--tls-ca", "Options.TLS ", "--tls-cert ",
	"Options.Monitor", "--monitor", "Options.Health", "--health", "Options.MaxStore", "--max-store", "Options.MaxMemory", "--max-memory",
	"Options.MaxPayload", "--max-payload", "Options.MaxConnections", "--max-connections", "Options.Downgrade", "--downgrade")

func hubError(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(hubFlags.Replace(err.Error()))
}

// Run prints how to reach it when the hub is ready, and what it closed at the end.
func (c hubCmd) Run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	h, err := hub.Start(ctx, c.options())
	if err != nil {
		return hubError(err)
	}
	fmt.Println("url", h.URL())
	if h.MonitorURL() != "" {
		fmt.Println("monitor", h.MonitorURL())
	}
	if h.HealthURL() != "" {
		fmt.Println("health", h.HealthURL())
	}
	fmt.Println("ready; for the programs that use it:")
	printURLs(h)
	for {
		select {
		case <-hup:
			if err := h.Reload(); err != nil {
				report(hubError(err))
				continue
			}
			fmt.Println("reloaded")
			printURLs(h)
			continue
		case <-ctx.Done():
		case <-h.Done():
			return h.Err()
		}
		break
	}
	end, cancel := context.WithTimeout(context.Background(), hubStop)
	defer cancel()
	stopped, err := h.Stop(end)
	fmt.Println("stopped clients", stopped.Clients)
	return err
}

// printURLs prints a line for each user, or the one for all.
func printURLs(h *hub.Hub) {
	users := h.Users()
	if len(users) == 0 {
		fmt.Printf("export TIDINGS_URL=%s\n", quoted(h.URL()))
	}
	for _, u := range users {
		fmt.Printf("# user %s\nexport TIDINGS_URL=%s\n", u.Name, quoted(u.URL))
	}
}

// quoted is s as one word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
