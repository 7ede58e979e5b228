package testkit

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Program is the path of a program that a test cannot do without, which Debian has
// in a package.
func Program(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("testkit: this test runs the real %s: apt-get install %s: %v", name, debian, err)
	}
	return path
}

// Python is the path of Python 3 itself, not of a wrapper around it, as version
// managers have.
func Python(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(Program(t, "python3", "python3"), "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Fatalf("testkit: python3: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// given are the ports that FreeAddr has given already: nobody may listen there yet.
var given sync.Map

// FreeAddr is where nobody listens on loopback, nor will of himself: the port is below
// those that the kernel gives to outgoing connections, and is given once.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(20000)))
		if _, twice := given.LoadOrStore(addr, true); twice {
			continue
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("testkit: no free port from 10000 to 30000")
	return ""
}

// A Visit is a request to a web server that answers with its pid.
type Visit struct {
	conn net.Conn
	Err  error // why it has not begun
}

// Get makes one on a connection of its own.
func Get(addr string, within time.Duration) (pid int, err error) {
	return Begin(addr, within).Finish()
}

// Begin sends half of a request. What it gets of a server that answers one at a time
// is a worker that has it in hand, see [Accepted].
func Begin(addr string, within time.Duration) Visit {
	conn, err := net.DialTimeout("tcp", addr, within)
	if err != nil {
		return Visit{nil, err}
	}
	if err = conn.SetDeadline(time.Now().Add(within)); err == nil {
		_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n")
	}
	return Visit{conn, err}
}

// Finish sends the rest and returns the pid that answers.
func (v Visit) Finish() (pid int, err error) {
	if v.conn == nil {
		return 0, v.Err
	}
	defer v.conn.Close()
	if v.Err != nil {
		return 0, v.Err
	}
	if _, err := io.WriteString(v.conn, "\r\n"); err != nil {
		return 0, err
	}
	text, err := io.ReadAll(v.conn)
	if err != nil {
		return 0, err
	}
	_, body, found := strings.Cut(string(text), "\r\n\r\n")
	if !found {
		return 0, fmt.Errorf("testkit: cut off after %q: %w", text, io.ErrUnexpectedEOF)
	}
	return strconv.Atoi(strings.TrimSpace(body))
}

// Accepted waits until no connection to addr waits to be accepted. Linux only.
func Accepted(t testing.TB, timeout time.Duration, addr string) {
	t.Helper()
	Until(t, timeout, func() bool { return backlog(t, addr) == 0 })
}

// backlog is how many connections to addr nobody has accepted yet.
func backlog(t testing.TB, addr string) int64 {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const listening = "0A"
	for s := bufio.NewScanner(strings.NewReader(string(text))); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 5 || f[3] != listening {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		_, queued, _ := strings.Cut(f[4], ":")
		at, bad := strconv.ParseInt(hex, 16, 32)
		waiting, worse := strconv.ParseInt(queued, 16, 64)
		if bad == nil && worse == nil && strconv.FormatInt(at, 10) == port {
			return waiting
		}
	}
	t.Fatalf("testkit: nobody listens on %s", addr)
	return 0
}
