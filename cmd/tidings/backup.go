package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/natsbus"
)

// targetFlags say which hub is meant.
type targetFlags struct {
	Hub     string        `env:"TIDINGS_URL" help:"The hub: its directory, or the URL that applications are given."`
	Timeout time.Duration `default:"1h" help:"How long all may take."`
}

type backupCmd struct {
	targetFlags
	JSON bool   `name:"json" help:"Print the manifest."`
	Dir  string `arg:"" help:"Directory to make for the backup."`
}

// Help is shown below the flags.
func (backupCmd) Help() string {
	return `It copies all streams with their groups and what these have settled, while the hub
works. DIR is made with mode 0700, appears whole or not at all, and has one file a
stream and manifest.json with their SHA-256 sums. It contains what the events
contain. If no hub runs on the directory that --hub names, one is started for it.`
}

// Run prints what was backed up.
func (c backupCmd) Run(ctx context.Context) error {
	nc, done, err := c.open(ctx, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	m, err := hub.Backup(ctx, nc, c.Dir)
	if err := errors.Join(err, done()); err != nil {
		return err
	}
	return printBackup("backed up", m, c.JSON)
}

type restoreCmd struct {
	targetFlags
	JSON     bool     `name:"json" help:"Print the manifest."`
	Stream   []string `help:"Restore this stream alone; can be repeated."`
	Replicas int      `help:"Copies of each stream, in a cluster; default: as many as it had."`
	Dir      string   `arg:"" help:"Directory of the backup."`
}

// Help is shown below the flags.
func (restoreCmd) Help() string {
	return `It begins only if all files are what was written, by their sums, and none of the
streams is there: nothing is written over. Afterwards it checks that all events and
groups are there. Groups go on where they were when the backup was taken: what they
have handled since is given to them again. If no hub runs on the directory that
--hub names, one is started for it, and the directory is made if it is missing.`
}

// Run prints what was restored.
func (c restoreCmd) Run(ctx context.Context) error {
	if _, err := hub.ReadBackup(c.Dir); err != nil { // before a hub is made for it
		return err
	}
	nc, done, err := c.open(ctx, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	m, err := hub.Restore(ctx, nc, c.Dir, hub.RestoreOptions{Streams: c.Stream, Replicas: c.Replicas})
	if err := errors.Join(err, done()); err != nil {
		return err
	}
	return printBackup("restored", m, c.JSON)
}

func printBackup(what string, m *hub.Manifest, asJSON bool) error {
	if asJSON {
		return printJSON(m)
	}
	for _, s := range m.Streams {
		fmt.Printf("%s %s: %d events up to %d, %d groups, %d bytes\n", what, s.Name, s.Messages, s.Last, len(s.Groups), s.Bytes)
	}
	for _, s := range m.Skipped {
		fmt.Printf("skipped %s: %s\n", s.Name, s.Why)
	}
	if len(m.Streams) == 0 {
		fmt.Println("there are no streams")
	}
	return nil
}

// open connects to the hub; done must be called in the end. create: its directory may
// be missing.
func (f targetFlags) open(ctx context.Context, create bool) (nc *nats.Conn, done func() error, err error) {
	if f.Hub == "" {
		return nil, nil, errNoBroker
	}
	url := f.Hub
	if !strings.Contains(url, "://") { // a directory
		url = "embed:" + strings.TrimPrefix(url, "embed:")
	}
	if url, done, err = reach(ctx, url, create); err != nil {
		return nil, nil, err
	}
	nc, err = natsbus.Connect(ctx, url, "tidings backup")
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	stop := done
	return nc, func() error { nc.Close(); return stop() }, nil
}

// reach is the URL of a broker that natsbus can be given: of embed:DIR that of the
// hub there, see hubOf.
func reach(ctx context.Context, url string, create bool) (_ string, done func() error, err error) {
	dir, embedded := strings.CutPrefix(url, "embed:")
	if !embedded {
		return url, func() error { return nil }, nil
	}
	dir, _, _ = strings.Cut(dir, "?")
	return hubOf(ctx, dir, create)
}

// hubOf is the hub that runs on a directory, or one that is started until done is
// called.
func hubOf(ctx context.Context, dir string, create bool) (url string, done func() error, err error) {
	if _, err := os.Stat(filepath.Join(dir, "store")); errors.Is(err, fs.ErrNotExist) && !create {
		return "", nil, hinted{fmt.Errorf("%s has no hub's store", dir), "give the --dir of tidings hub, or the --hub of tidings run"}
	}
	running, err := hub.Find(dir)
	if err != nil {
		return "", nil, err
	}
	if running != nil {
		if running.URL == "" {
			return "", nil, hinted{fmt.Errorf("the hub of %s is not ready", dir), "try again once it is"}
		}
		return running.URL, func() error { return nil }, nil
	}
	h, err := hub.Start(ctx, hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietLog()})
	if err != nil {
		return "", nil, err
	}
	return h.URL(), func() error {
		end, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_, err := h.Stop(end)
		return err
	}, nil
}
