//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An address is one entry of Config.Listen.
type address struct{ name, network, where string }

// parseAddress reads [NAME=]tcp://HOST:PORT or [NAME=]unix://PATH, the i-th.
func parseAddress(text string, i int) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, fmt.Errorf("supervisor: Listen: %q: %s: write [NAME=]tcp://HOST:PORT or [NAME=]unix:///PATH", text, why)
	}
	a := address{name: "listen" + itoa(i)}
	rest := text
	scheme := strings.Index(rest, "://")
	if scheme < 0 {
		return bad("no scheme")
	}
	if eq := strings.IndexByte(rest[:scheme], '='); eq >= 0 {
		a.name, rest = rest[:eq], rest[eq+1:]
		// The rules of LISTEN_FDNAMES.
		if a.name == "" || len(a.name) > 255 || strings.ContainsFunc(a.name, func(r rune) bool { return r == ':' || r <= ' ' || r > '~' }) {
			return bad("a name has 1 to 255 printable ASCII characters other than space and colon")
		}
	}
	a.network, a.where, _ = strings.Cut(rest, "://")
	switch a.network {
	case "tcp", "tcp4", "tcp6":
		if _, _, err := net.SplitHostPort(a.where); err != nil {
			return bad(err.Error())
		}
	case "unix":
		if a.where == "" {
			return bad("no path")
		}
	default:
		return bad("unknown scheme " + a.network)
	}
	return a, nil
}

// A socket is open for all workers. Its descriptor stays in non-blocking mode:
// the mode is shared with every process that has the socket, and a worker
// whose accept suddenly blocked could not be drained.
type socket struct {
	name   string
	file   *os.File
	remove string // a unix socket's path, if a master has made it
	made   bool   // by this one
}

// ownedEnv names the sockets whose files a re-executed master is to remove at its
// end. Those of others it must not: systemd still listens on its own.
const ownedEnv = "TIDINGS_OWNED_SOCKETS"

// openSockets takes from inherited what has the name of an entry of listen,
// opens the others, and adds what is left of inherited.
func openSockets(listen []string, inherited []*os.File) (_ []socket, err error) {
	owned := strings.Split(os.Getenv(ownedEnv), ":")
	os.Unsetenv(ownedEnv)
	var sockets []socket
	defer func() {
		if err != nil {
			for _, s := range sockets {
				closeSockets([]socket{s}, s.made)
			}
			for _, f := range inherited {
				f.Close()
			}
		}
	}()
	for i, text := range listen {
		a, err := parseAddress(text, i)
		if err != nil {
			return nil, err
		}
		s := socket{name: a.name}
		for k, f := range inherited {
			if f != nil && f.Name() == a.name {
				s.file, inherited[k] = f, nil
				break
			}
		}
		if s.file == nil {
			s.made = true
			if s.file, err = listenOn(a); err != nil {
				return nil, err
			}
		}
		if a.network == "unix" && !strings.HasPrefix(a.where, "@") && (s.made || slices.Contains(owned, a.name)) {
			s.remove = a.where
		}
		sockets = append(sockets, s)
	}
	for _, f := range inherited {
		if f != nil {
			sockets = append(sockets, socket{name: f.Name(), file: f})
		}
	}
	for _, s := range sockets {
		if err := unix.SetNonblock(int(s.file.Fd()), true); err != nil {
			return nil, fmt.Errorf("supervisor: socket %s: %w", s.name, err)
		}
	}
	return sockets, nil
}

func listenOn(a address) (*os.File, error) {
	l, err := net.Listen(a.network, a.where)
	if a.network == "unix" && errors.Is(err, unix.EADDRINUSE) {
		if conn, dial := net.Dial("unix", a.where); dial == nil {
			conn.Close()
			return nil, fmt.Errorf("supervisor: listen on %s: a live process serves it: find it with lsof %s: %w", a.where, a.where, err)
		} else if !isSocket(a.where) || !errors.Is(dial, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("supervisor: listen on %s: it exists and is not a stale socket: move it or choose another path: %w", a.where, err)
		}
		if err = os.Remove(a.where); err == nil {
			l, err = net.Listen(a.network, a.where)
		}
	}
	if err != nil {
		hint := ""
		if errors.Is(err, unix.EADDRINUSE) {
			hint = ": find the owner with lsof -nP -iTCP -sTCP:LISTEN"
		}
		return nil, fmt.Errorf("supervisor: listen on %s://%s%s: %w", a.network, a.where, hint, err)
	}
	defer l.Close()
	switch l := l.(type) {
	case *net.TCPListener:
		return l.File()
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		return l.File()
	}
	return nil, fmt.Errorf("supervisor: listen on %s://%s: not a socket", a.network, a.where)
}

// isSocket guards a file that is somebody's: to connect to it is refused just
// as to a stale socket.
func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// closeSockets closes them and, if they are not another master's too, removes
// the paths of unix sockets.
func closeSockets(sockets []socket, last bool) {
	for _, s := range sockets {
		s.file.Close()
		if last && s.remove != "" {
			os.Remove(s.remove)
		}
	}
}

// socketEnv is the environment that goes with descriptors from 3.
func socketEnv(sockets []socket) []string {
	if len(sockets) == 0 {
		return nil
	}
	names := make([]string, len(sockets))
	for i, s := range sockets {
		names[i] = s.name
	}
	return []string{"LISTEN_FDS=" + itoa(len(sockets)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
}

// masterEnv is what a re-executed master gets besides.
func masterEnv(sockets []socket) []string {
	var owned []string
	for _, s := range sockets {
		if s.remove != "" {
			owned = append(owned, s.name)
		}
	}
	return append(socketEnv(sockets), ownedEnv+"="+strings.Join(owned, ":"))
}
