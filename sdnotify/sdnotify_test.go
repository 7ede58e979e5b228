//go:build unix

package sdnotify_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/sdnotify"
)

// roleEnv makes the test binary play a service that was given sockets.
const roleEnv = "SDNOTIFY_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "own pid":
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		report()
	default:
		report()
	}
}

// report prints what was inherited, then sends READY=1.
func report() {
	ls, err := sdnotify.Listeners()
	fmt.Println("error", err != nil)
	for name, l := range ls {
		fmt.Println("listener", name, len(l), l[0].Addr())
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_, found := os.LookupEnv(v)
		fmt.Println(v, found)
	}
	again, _ := sdnotify.Listeners()
	fmt.Println("again", len(again))
	if err := sdnotify.Notify(sdnotify.Ready, sdnotify.Status("up\nREADY=0")); err != nil {
		fmt.Println("notify", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func socketPath(t *testing.T) string {
	t.Helper()
	// t.TempDir can be longer than a socket's path may be.
	dir, err := os.MkdirTemp("/tmp", "sdnotify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func receive(t *testing.T, path string) (*sdnotify.Receiver, <-chan sdnotify.Message) {
	t.Helper()
	got := make(chan sdnotify.Message, 16)
	r, err := sdnotify.Receive(path, func(m sdnotify.Message) { got <- m })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, got
}

func next(t *testing.T, got <-chan sdnotify.Message) sdnotify.Message {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("no datagram within 10 s")
		panic("unreachable")
	}
}

func TestNotifyWithoutManagerDoesNothing(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := sdnotify.Notify(sdnotify.Ready); err != nil {
		t.Fatal(err)
	}
}

func TestNotifyNamesAGoneSocket(t *testing.T) {
	path := socketPath(t)
	t.Setenv("NOTIFY_SOCKET", path)
	err := sdnotify.Notify(sdnotify.Ready)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want an error that names %s", err, path)
	}
}

func TestNotifyRefusesWhatWouldBeCut(t *testing.T) {
	path := socketPath(t)
	receive(t, path)
	t.Setenv("NOTIFY_SOCKET", path)
	if err := sdnotify.Notify(sdnotify.Status(strings.Repeat("x", sdnotify.MaxDatagram))); err == nil {
		t.Fatal("a datagram above the bound was sent")
	}
}

func TestRoundTrip(t *testing.T) {
	path := socketPath(t)
	r, got := receive(t, path)
	t.Setenv("NOTIFY_SOCKET", r.Path())
	for _, c := range []struct {
		send []string
		want sdnotify.Message
	}{
		{[]string{sdnotify.Ready}, sdnotify.Message{Ready: true}},
		{[]string{sdnotify.Stopping}, sdnotify.Message{Stopping: true}},
		{[]string{sdnotify.Watchdog}, sdnotify.Message{Watchdog: true}},
		{[]string{"WATCHDOG=trigger"}, sdnotify.Message{WatchdogTrigger: true}},
		{[]string{sdnotify.Ready, sdnotify.Status("a\nb")}, sdnotify.Message{Ready: true, Status: "a b", HasStatus: true}},
		{[]string{sdnotify.MainPID(42)}, sdnotify.Message{MainPID: 42}},
		{[]string{sdnotify.ExtendTimeout(3 * time.Second)}, sdnotify.Message{ExtendTimeout: 3 * time.Second}},
		{[]string{"FDPOLL=0", "READY=yes"}, sdnotify.Message{Other: []string{"FDPOLL=0"}, Bad: []string{"READY=yes"}}},
	} {
		if err := sdnotify.Notify(c.send...); err != nil {
			t.Fatal(err)
		}
		if m := next(t, got); !reflect.DeepEqual(m, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.send, m, c.want)
		}
	}
	if err := sdnotify.Notify(sdnotify.Reloading()); err != nil {
		t.Fatal(err)
	}
	if m := next(t, got); !m.Reloading || len(m.Other) != 1 || !strings.HasPrefix(m.Other[0], "MONOTONIC_USEC=") {
		t.Errorf("reloading: got %+v", m)
	}
}

func TestReceiverSurvivesAnOversizedDatagram(t *testing.T) {
	path := socketPath(t)
	_, got := receive(t, path)
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{strings.Repeat("x", 2*sdnotify.MaxDatagram), "READY=1"} {
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if m := next(t, got); len(m.Bad) != 1 {
		t.Errorf("oversized: got %+v", m)
	}
	if m := next(t, got); !m.Ready {
		t.Errorf("after it: got %+v", m)
	}
}

func TestCloseRemovesTheSocketAndMayBeRepeated(t *testing.T) {
	path := socketPath(t)
	r, _ := receive(t, path)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "2000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	if d, err := sdnotify.WatchdogInterval(); err != nil || d != 2*time.Second {
		t.Errorf("got %v, %v", d, err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := sdnotify.WatchdogInterval(); err == nil {
		t.Error("WATCHDOG_USEC=soon was taken")
	}
}

// startService runs the test binary as a service with l as its sockets.
func startService(t *testing.T, role, names string, l ...*os.File) map[string]bool {
	t.Helper()
	path := socketPath(t)
	_, got := receive(t, path)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "NOTIFY_SOCKET="+path,
		"LISTEN_FDS="+strconv.Itoa(len(l)), "LISTEN_FDNAMES="+names, "LISTEN_PID=1")
	cmd.ExtraFiles = l
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if m := next(t, got); !m.Ready || m.Status != "up READY=0" {
		t.Errorf("got %+v", m)
	}
	lines := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		lines[s.Text()] = true
	}
	return lines
}

func listenerFile(t *testing.T) (string, *os.File) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return l.Addr().String(), f
}

func TestListenersAreInheritedOnce(t *testing.T) {
	addr, f := listenerFile(t)
	addr2, f2 := listenerFile(t)
	lines := startService(t, "own pid", "web:admin", f, f2)
	for _, want := range []string{
		"error false", "listener web 1 " + addr, "listener admin 1 " + addr2, "again 0",
		"LISTEN_PID false", "LISTEN_FDS false", "LISTEN_FDNAMES false",
	} {
		if !lines[want] {
			t.Errorf("no %q in %v", want, lines)
		}
	}
}

func TestListenersOfAnotherPidAreLeftAlone(t *testing.T) {
	_, f := listenerFile(t)
	lines := startService(t, "other pid", "web", f)
	for _, want := range []string{"error false", "again 0", "LISTEN_PID false"} {
		if !lines[want] {
			t.Errorf("no %q in %v", want, lines)
		}
	}
	for l := range lines {
		if strings.HasPrefix(l, "listener") {
			t.Errorf("took %q", l)
		}
	}
}

func TestSocketThatDoesNotListenIsNamed(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	addr, good := listenerFile(t)
	lines := startService(t, "own pid", "dgram:web", f, good)
	for _, want := range []string{"error true", "listener web 1 " + addr} {
		if !lines[want] {
			t.Errorf("no %q in %v", want, lines)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"READY=1", "READY=1\nSTATUS=ok\n", "MAINPID=7", "EXTEND_TIMEOUT_USEC=18446744073709551615",
		"=x", "WATCHDOG=trigger", "a\x00b", "ERRNO=-1", "\n\n", "STATUS=",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := sdnotify.Parse(data)
		if m.MainPID < 0 || m.Errno < 0 || m.ExtendTimeout < 0 {
			t.Errorf("negative: %+v", m)
		}
		if strings.Contains(m.Status, "\n") {
			t.Errorf("a line break in STATUS: %+v", m)
		}
		whole := len(data) > sdnotify.MaxDatagram || strings.Contains(string(data), "\x00")
		if whole && (len(m.Bad) != 1 || m.Ready || len(m.Other) != 0) {
			t.Errorf("a part of a bad datagram was taken: %+v", m)
		}
		// No other line may hide a READY=1, and nothing else may pass for it.
		if !whole && strings.Contains("\n"+string(data)+"\n", "\nREADY=1\n") != m.Ready {
			t.Errorf("READY: %+v", m)
		}
	})
}

// What a service has sent before it ended is heard, however slow the manager is, and
// though it must not wait for that.
func TestDrainHearsTheLastWords(t *testing.T) {
	path := socketPath(t)
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	var heard []string
	r, err := sdnotify.Receive(path, func(m sdnotify.Message) {
		select {
		case begun <- struct{}{}:
		default:
		}
		<-goOn
		heard = append(heard, m.Status)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	var want []string
	for i := range 8 { // a socket holds 10 at least
		want = append(want, strconv.Itoa(i))
		if err := sdnotify.Notify(sdnotify.Status(want[i])); err != nil {
			t.Fatal(err)
		}
	}
	<-begun
	r.Drain()
	close(goOn)
	<-r.Done()
	if !reflect.DeepEqual(heard, want) {
		t.Errorf("heard %q of %q", heard, want)
	}
	r.Drain()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
