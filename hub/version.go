package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/nats-io/nats-server/v2/server"
)

func (d *dir) versionFile() string { return filepath.Join(d.path, "version") }

// claimStore notes that this nats-server opens the store, before it does: one of a
// newer minor version may write what this one cannot read, and nats-server does not
// look. A store of such a one is refused, unless the caller insists.
func (d *dir) claimStore(log *slog.Logger, insist bool) error {
	last, err := d.lastVersion()
	if err != nil {
		return err
	}
	switch order := compareMinor(last, server.VERSION); {
	case order > 0 && !insist:
		return fmt.Errorf("the store of %s was written by nats-server %s, and this is %s, which may lose what that one wrote: use a tidings with nats-server %s or newer, or restore a backup of before into another directory; to open it all the same set Options.Downgrade",
			d.path, last, server.VERSION, last)
	case order > 0:
		log.Warn("hub: the store was written by a newer nats-server and is opened all the same, as was asked for", "last", last, "now", server.VERSION)
	case order < 0:
		log.Info("hub: the store is upgraded: an older nats-server may not be able to open it any more", "last", last, "now", server.VERSION)
	case last == "" && d.stored():
		log.Info("hub: the store is of a nats-server that has not said its version; it is upgraded", "now", server.VERSION)
	}
	if last == server.VERSION {
		return nil
	}
	if err := renameio.WriteFile(d.versionFile(), []byte(server.VERSION+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot note the version of the store: %w", err)
	}
	return nil
}

var reVersion = regexp.MustCompile(`^(\d+)\.(\d+)\.\d+`)

// lastVersion is that of the nats-server which opened the store last, empty if that is
// not known.
func (d *dir) lastVersion() (string, error) {
	b, err := os.ReadFile(d.versionFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the version of the store: %w", err)
	}
	v := strings.TrimSpace(string(b))
	if !reVersion.MatchString(v) {
		return "", fmt.Errorf("%s says %.40q, which is no version of nats-server: write into it that of the one which opened the store last, or remove it if that was none newer than %s", d.versionFile(), v, server.VERSION)
	}
	return v, nil
}

// stored reports whether there is a store at all.
func (d *dir) stored() bool {
	entries, err := os.ReadDir(d.store())
	return err == nil && len(entries) > 0
}

// compareMinor compares major and minor versions; what is empty is no different.
func compareMinor(a, b string) int {
	x, y := reVersion.FindStringSubmatch(a), reVersion.FindStringSubmatch(b)
	if x == nil || y == nil {
		return 0
	}
	for i := 1; i <= 2; i++ {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m - n
		}
	}
	return 0
}
