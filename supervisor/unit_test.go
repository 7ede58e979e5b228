//go:build unix

package supervisor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/sdnotify"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]address{
		"tcp://127.0.0.1:80":      {"listen3", "tcp", "127.0.0.1:80"},
		"web=tcp://[::1]:80":      {"web", "tcp", "[::1]:80"},
		"unix:///run/a=b.sock":    {"listen3", "unix", "/run/a=b.sock"},
		"adm=unix:///run/a=b":     {"adm", "unix", "/run/a=b"},
		"web=http://127.0.0.1:80": {}, "127.0.0.1:80": {}, "tcp://127.0.0.1": {}, "unix://": {},
		"=tcp://127.0.0.1:80": {}, "a:b=tcp://127.0.0.1:80": {}, "a b=tcp://127.0.0.1:80": {}, "": {},
	} {
		got, err := parseAddress(text, 3)
		if want == (address{}) {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%q: got %+v, %v, want an error that quotes it", text, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"tcp://127.0.0.1:80", "a=unix:///x", "=://", "a=b=tcp://:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAddress(text, 0)
		if err == nil && (a.name == "" || strings.Contains(a.name, ":") || a.where == "") {
			t.Errorf("%q: %+v", text, a)
		}
	})
}

func TestConfigNamesAllThatIsWrong(t *testing.T) {
	_, err := Config{
		Command: []string{"no-such-program-anywhere"}, Workers: -1, DrainTimeout: -1,
		Listen: []string{"a=tcp://127.0.0.1:1", "a=tcp://127.0.0.1:2", "nonsense"},
	}.withDefaults()
	for _, want := range []string{"no-such-program-anywhere", "Workers", "DrainTimeout", `"a" is given twice`, "nonsense"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %q", err, want)
		}
	}
	if _, err := (Config{}).withDefaults(); err == nil {
		t.Error("an empty Command was taken")
	}
	c, err := Config{Command: []string{"sh"}}.withDefaults()
	if err != nil || c.Workers != 1 || c.ReadyTimeout != 30*time.Second || c.DrainTimeout != 30*time.Second {
		t.Errorf("defaults: %+v, %v", c, err)
	}
}

func TestSocketsOfUnixPaths(t *testing.T) {
	dir := t.TempDir()
	if len(dir) > 80 {
		var err error
		if dir, err = os.MkdirTemp("/tmp", "supervisor"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	path := filepath.Join(dir, "s")
	listen := []string{"unix://" + path}
	first, err := openSockets(listen, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSockets(listen, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a live socket was taken over: %v", err)
	}
	closeSockets(first, false) // as by kill -9: the path is left
	second, err := openSockets(listen, nil)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	closeSockets(second, true)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the path is left: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openSockets(listen, nil); err == nil {
		t.Error("a file was taken for a stale socket")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("the file now holds %q, %v", text, err)
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	if _, err := openSockets([]string{"tcp://" + addr}, nil); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an error that names %s", err, addr)
	}
}

func TestInheritedSocketsAreTakenByName(t *testing.T) {
	inherit := func(name string) *os.File {
		a := address{name, "tcp", "127.0.0.1:0"}
		f, err := listenOn(a)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), name)
	}
	web, extra := inherit("web"), inherit("extra")
	sockets, err := openSockets([]string{"web=tcp://127.0.0.1:0"}, []*os.File{extra, web})
	if err != nil {
		t.Fatal(err)
	}
	defer closeSockets(sockets, true)
	if len(sockets) != 2 || sockets[0].file != web || sockets[1].file != extra {
		t.Errorf("got %+v", sockets)
	}
	want := []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=web:extra"}
	if env := socketEnv(sockets); strings.Join(env, " ") != strings.Join(want, " ") {
		t.Errorf("got %v, want %v", env, want)
	}
}

// A new master that cannot open one of its sockets leaves the old one's alone.
func TestFailureLeavesInheritedSockets(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "supervisor")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	f, err := listenOn(address{"admin", "unix", path})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(ownedEnv, "admin")
	listen := []string{"admin=unix://" + path, "made=unix://" + path + "2", "tcp://nowhere.invalid:1"}
	if _, err := openSockets(listen, []*os.File{os.NewFile(uintptr(fd), "admin")}); err == nil {
		t.Fatal("listens nowhere")
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the old master's socket: %v", err)
	} else {
		conn.Close()
	}
	if _, err := os.Lstat(path + "2"); !os.IsNotExist(err) {
		t.Errorf("the one that was opened is left: %v", err)
	}
}

func TestPIDFileThatIsNoneIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(path, []byte("notes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := claimPIDFile(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names %s", err, path)
	}
	if _, err := claimPIDFile(filepath.Join(path, "x", "pid")); err == nil {
		t.Error("a pid file in no directory was claimed")
	}
}

func TestPIDFileMakesWayAndIsPutBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	p, err := claimPIDFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.makeWay(); err != nil {
		t.Fatal(err)
	}
	// What a new master that was killed leaves behind. No process has this pid.
	if err := os.WriteFile(path, []byte("2147483646\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.putBack(); err != nil {
		t.Fatal(err)
	}
	if pid, err := readPID(path); err != nil || pid != os.Getpid() {
		t.Errorf("put back: %d, %v", pid, err)
	}
	// A live owner of .oldbin: an upgrade is under way. Pid 1 always lives.
	if err := os.WriteFile(path+OldSuffix, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.makeWay(); err == nil || !strings.Contains(err.Error(), "process 1") {
		t.Errorf("got %v, want a refusal that names process 1", err)
	}
	p.release()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("released: %v", err)
	}
}

func TestBackoffGrowsWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		least := time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "min"))
		most := time.Duration(rapid.Int64Range(int64(least), int64(time.Hour)).Draw(t, "max"))
		deaths := rapid.IntRange(1, 1<<20).Draw(t, "deaths")
		m := &master{cfg: Config{BackoffMin: least, BackoffMax: most}}
		full := float64(least)
		for range min(deaths-1, 60) {
			full *= 2
		}
		d := m.backoff(deaths)
		if upper := min(full, float64(most)); float64(d) > upper || float64(d) < upper/2-1 {
			t.Errorf("%v after %d deaths, not within half of %v", d, deaths, time.Duration(upper))
		}
	})
}

// The events that a worker can cause by datagrams, without a process.
func TestHear(t *testing.T) {
	m := &master{cfg: Config{}, log: slog.New(slog.DiscardHandler), workers: map[int]*worker{}}
	now := time.Now()
	w := &worker{release: &release{}, pid: 1 << 30, deadline: now}
	m.workers[w.pid] = w
	m.hear(notice{w, sdnotify.Message{ExtendTimeout: time.Hour}})
	if w.deadline.Before(now.Add(time.Hour)) {
		t.Error("a start was not extended")
	}
	m.hear(notice{w, sdnotify.Message{ExtendTimeout: time.Second}})
	if w.deadline.Before(now.Add(time.Hour)) {
		t.Error("an extension made the deadline sooner")
	}
	m.hear(notice{w, sdnotify.Message{Ready: true}})
	if w.state != stateReady || !w.deadline.IsZero() {
		t.Errorf("ready: %+v", w)
	}
	m.hear(notice{w, sdnotify.Message{ExtendTimeout: time.Hour}})
	if !w.deadline.IsZero() {
		t.Error("an extension of nothing was taken")
	}
	w.state, w.deadline = stateKilled, time.Time{}
	m.hear(notice{w, sdnotify.Message{Ready: true}})
	if w.state != stateKilled {
		t.Error("a killed worker became ready")
	}
	m.hear(notice{&worker{release: &release{}, pid: w.pid}, sdnotify.Message{Ready: true}}) // of an earlier worker
}

func TestEventsThatCannotBeWrittenEndOnce(t *testing.T) {
	var log bytes.Buffer
	m := &master{cfg: Config{Events: failing{}}, log: slog.New(slog.NewTextHandler(&log, nil))}
	m.emit(Event{Event: EventSignal})
	m.emit(Event{Event: EventSignal})
	if n := strings.Count(log.String(), "no space"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestCopyLinesKeepsTheTailAndGoesOn(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	text := strings.Repeat("line\n", 100) + long + "\nlast"
	var out bytes.Buffer
	var last tail
	copyLines(&out, &last, strings.NewReader(text))
	if out.String() != text {
		t.Error("the output was changed")
	}
	if s := last.String(); !strings.HasSuffix(s, "\nlast") || len(s) > tailLines*(tailLine+1) {
		t.Errorf("tail: %d bytes: %.100q", len(s), s)
	}
	r := strings.NewReader(text)
	copyLines(failing{}, &last, r)
	if r.Len() != 0 {
		t.Error("output was not read on after its writer failed")
	}
}

func TestSignalTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Signals() {
		if s.Name == "" || s.Does == "" || seen[s.Name] {
			t.Errorf("row %+v", s)
		}
		seen[s.Name] = true
	}
	for _, name := range strings.Fields("CHLD TERM INT QUIT HUP USR1 USR2 WINCH TTIN TTOU") {
		if !seen[name] {
			t.Errorf("no %s", name)
		}
	}
}

// Who may open the socket's file is not yet who may ask.
func TestGuardRefusesOtherUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	asks := make(chan request)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{asks: asks, gone: make(chan struct{})}
	srv := &http.Server{ConnContext: withPeer, Handler: guard{http.HandlerFunc(c.serveStatus), slog.New(slog.DiscardHandler), []uint32{uint32(os.Geteuid()) + 1}}}
	serving := loop.Go(func(context.Context) { _ = srv.Serve(l) })
	defer func() { srv.Close(); <-serving.Done() }()
	if _, err := (Control{path}).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "this master answers to users") {
		t.Errorf("got %v", err)
	}
}

func TestPrefixIsSetOncePerLine(t *testing.T) {
	long := strings.Repeat("x", 40<<10) // longer than what is written at once
	var out bytes.Buffer
	copyLines(&prefixWriter{w: &out, prefix: "[0 7] "}, &tail{}, strings.NewReader("a\n\n"+long+"\nlast"))
	if want := "[0 7] a\n[0 7] \n[0 7] " + long + "\n[0 7] last"; out.String() != want {
		t.Errorf("%d bytes, want %d: %.60q", out.Len(), len(want), out.String())
	}
}
