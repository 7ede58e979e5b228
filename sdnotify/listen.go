//go:build unix

package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
)

// Files returns the inherited sockets, named by LISTEN_FDNAMES, or LISTEN_FD_n
// where that has no name. It returns none unless LISTEN_PID is the caller's
// own pid: otherwise the sockets were meant for a parent. It unsets the
// variables and sets close-on-exec, so a second call returns none. It must
// not be called concurrently with anything that reads the environment's
// LISTEN_ variables.
func Files() []*os.File { return activation.Files(true) }

// Listeners returns the inherited listening sockets by name; sockets of one
// name keep their order. Sockets that do not listen (datagrams) are closed
// and reported in the error, next to the listeners that are good. What is
// said of [Files] about the environment holds here too. Closing a listener
// does not remove a unix socket's file: that belongs to whoever created it.
func Listeners() (map[string][]net.Listener, error) {
	var (
		byName = map[string][]net.Listener{}
		errs   []error
	)
	for _, f := range Files() {
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("sdnotify: inherited socket %q (fd %d): %w", f.Name(), f.Fd(), err))
		} else {
			byName[f.Name()] = append(byName[f.Name()], l)
		}
		f.Close()
	}
	return byName, errors.Join(errs...)
}
