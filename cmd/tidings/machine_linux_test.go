package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

var systemd = flag.Bool("systemd", false, "run examples/deploying/pay.service under a real systemd, which is booted in namespaces: Linux, root, half a minute")

// patience is far above what a busy machine needs.
const patience = 60 * time.Second

// A machine is a systemd, pid 1 of namespaces of its own, for which a user pay, a
// release of the program pay and a tidings are installed where pay.service wants
// them. The network is that of the test, with a broker of its own.
//
// Methods fail the test instead of returning errors.
type machine struct {
	t      *testing.T
	dir    string // what the machine has of the test's file system, as /run/test
	pid    int    // of systemd, outside
	broker *testkit.Broker
	bus    *tidings.Bus // publishes
	kmsg   lockedBuffer // what systemd logs
}

// bootScript $DIR $NAME becomes systemd. It gives the machine file systems of its
// own where systemd or the unit write, and none of the host's units.
const bootScript = `
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/lock /run/test /run/upper /run/work /run/dev/shm /run/dev/pts
mount --bind "$1" /run/test
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work none /etc
sed -i /^pay:/d /etc/passwd /etc/group
echo pay:x:64990:64990::/:/bin/false >>/etc/passwd
echo pay:x:64990: >>/etc/group
mkdir -p /etc/pay /etc/systemd/system
mount --bind /run/test/env /etc/pay
mount --bind /run/test/units /etc/systemd/system
mount --bind /run/test/bin /usr/local/bin
mount --bind /run/test/srv /srv
mount --bind /run/test/lib /var/lib
for hide in /tmp /var/tmp /lib/systemd/system /lib/systemd/system-generators; do mount -t tmpfs none $hide; done
for f in null zero full random urandom tty; do touch /run/dev/$f; mount --bind /dev/$f /run/dev/$f; done
mkfifo /run/dev/kmsg
mount --bind /run/test/kmsg /run/dev/kmsg
mount --rbind /run/dev /dev
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/$2
echo 0 >/sys/fs/cgroup/$2/cgroup.procs
exec unshare --cgroup sh -c '
	umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
	exec env -i PATH=$PATH container=other /lib/systemd/systemd --system --unit=test.target --show-status=false --log-target=kmsg'
`

// keepScript runs the machine for as long as its standard input is open, so that
// none outlives a test that was killed.
const keepScript = `
unshare --kill-child=KILL --fork --pid --mount --mount-proc --uts --ipc sh -c "$1" sh "$2" "$3" &
echo $!
read -r _
kill -KILL $!
`

// bootMachine starts a machine. dropIn is added to the unit.
func bootMachine(t *testing.T, dropIn string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a systemd of its own needs root: run the test with -exec sudo")
	}
	m := &machine{t: t, dir: t.TempDir(), broker: testkit.Server(t)}
	for _, d := range []string{"", "units", "bin", "lib", "env", "srv/pay/releases/1"} {
		must(t, os.MkdirAll(filepath.Join(m.dir, d), 0o755))
	}
	must(t, os.Chmod(m.dir, 0o755))
	self, err := os.Executable()
	must(t, err)
	m.copy(self, "bin/tidings")
	m.copy(self, "srv/pay/releases/1/pay")
	must(t, os.Symlink("releases/1", filepath.Join(m.dir, "srv/pay/current")))
	unit, err := os.ReadFile(deploying + "pay.service")
	must(t, err)
	m.write("units/pay.service", string(unit))
	m.write("units/pay.service.d/test.conf", "[Service]\nStandardOutput=append:/run/test/log\nStandardError=append:/run/test/log\n"+dropIn)
	for _, target := range []string{"test", "sysinit", "basic", "network-online", "sockets", "shutdown"} {
		m.write("units/"+target+".target", "[Unit]\nDefaultDependencies=no\n")
	}
	m.write("env/env", "TIDINGS_URL="+m.broker.URL()+"\n")
	m.boot()
	m.bus, err = tidings.Open(t.Context(), m.broker.URL(), tidings.Options{App: "shop", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	must(t, err)
	t.Cleanup(func() { _ = m.bus.Close() })
	return m
}

func (m *machine) boot() {
	m.t.Helper()
	fifo := filepath.Join(m.dir, "kmsg")
	must(m.t, syscall.Mkfifo(fifo, 0o600))
	log, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(m.t, err)
	reading := loop.Go(func(context.Context) { _, _ = io.Copy(&m.kmsg, log) })
	name := fmt.Sprintf("tidings-test-%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(m.t.Name(), "/", "-")))
	cmd := exec.Command("sh", "-c", keepScript, "sh", bootScript, m.dir, name)
	stdin, err := cmd.StdinPipe()
	must(m.t, err)
	out, err := cmd.StdoutPipe()
	must(m.t, err)
	cmd.Stderr = &m.kmsg
	must(m.t, cmd.Start())
	m.t.Cleanup(func() {
		if m.t.Failed() {
			text, _ := os.ReadFile(filepath.Join(m.dir, "log"))
			m.t.Logf("systemd says:\n%s\nthe unit says:\n%s", m.kmsg.String(), text)
		}
		stdin.Close()
		_ = cmd.Wait()
		m.removeCgroup(name)
		log.Close()
		reading.StopAndWait()
	})
	var unshare int
	_, err = fmt.Fscan(out, &unshare)
	must(m.t, err)
	m.until("systemd runs", func() bool {
		child, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", unshare, unshare))
		m.pid, _ = strconv.Atoi(strings.TrimSpace(string(child)))
		return m.pid != 0 && m.show("test.target", "ActiveState") == "active"
	})
}

// removeCgroup waits until the last process of the machine has ended.
func (m *machine) removeCgroup(name string) {
	script := `mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && find /sys/fs/cgroup/` + name + ` -depth -type d -exec rmdir {} +`
	m.until("all its processes are gone", func() bool {
		return exec.Command("unshare", "--mount", "sh", "-c", script).Run() == nil
	})
}

// enter is a command within the machine.
func (m *machine) enter(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-u", "-i", "--"}, args...)...)
}

// systemctl returns what it writes, and what became of it.
func (m *machine) systemctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := m.enter(ctx, append([]string{"systemctl"}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// do is systemctl that must succeed.
func (m *machine) do(args ...string) {
	m.t.Helper()
	_, err := m.systemctl(args...)
	must(m.t, err)
}

// begin is do that is not waited for.
func (m *machine) begin(args ...string) *loop.Loop {
	return loop.Go(func(context.Context) {
		if _, err := m.systemctl(args...); err != nil {
			m.t.Error(err)
		}
	})
}

// show is a property of a unit; empty while systemd does not answer.
func (m *machine) show(unit, property string) string {
	out, err := m.systemctl("show", "-P", property, unit)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// mainPID is that of the unit, as the machine counts.
func (m *machine) mainPID(unit string) int {
	pid, _ := strconv.Atoi(m.show(unit, "MainPID"))
	return pid
}

// execAgain is USR2 to a master. It returns the pid of the new one, once that is ready.
func (m *machine) execAgain(master int) (next int) {
	m.t.Helper()
	m.signal(master, "USR2")
	m.until("the new master is ready", func() bool {
		n, _ := fmt.Sscanf(m.show("pay.service", "StatusText"), "upgrade: new master %d has 4 of 4 workers", &next)
		return n == 1
	})
	return next
}

// expect compares a property.
func (m *machine) expect(unit, property, want string) {
	m.t.Helper()
	if got := m.show(unit, property); got != want {
		m.t.Errorf("%s of %s is %q, want %q", property, unit, got, want)
	}
}

// signal sends one to a process of the machine.
func (m *machine) signal(pid int, name string) {
	m.t.Helper()
	if out, err := m.enter(m.t.Context(), "kill", "-s", name, strconv.Itoa(pid)).CombinedOutput(); err != nil {
		m.t.Fatalf("kill -s %s %d: %v: %s", name, pid, err, out)
	}
}

// alive reports whether the machine has such a process.
func (m *machine) alive(pid int) bool {
	return m.enter(m.t.Context(), "kill", "-0", strconv.Itoa(pid)).Run() == nil
}

// until waits for what cannot call back.
func (m *machine) until(what string, cond func() bool) {
	m.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			status, _ := m.systemctl("status", "pay*")
			m.t.Fatalf("never came true: %s\n%s", what, status)
		}
	}
}

// pass lets so much time go by: more than systemd was told to wait.
func (m *machine) pass(d time.Duration) {
	m.t.Helper()
	begun := time.Now()
	m.until(d.String()+" pass", func() bool { return time.Since(begun) > d })
}

// untilShown waits until a property has a value that contains text.
func (m *machine) untilShown(unit, property, text string) {
	m.t.Helper()
	m.until(property+" of "+unit+" contains "+strconv.Quote(text), func() bool { return strings.Contains(m.show(unit, property), text) })
}

// write makes a file of the machine, by rename.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	must(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	mode := os.FileMode(0o755)
	if strings.HasPrefix(name, "units/") {
		mode = 0o644
	}
	must(m.t, os.WriteFile(path+".new", []byte(text), mode))
	must(m.t, os.Rename(path+".new", path))
}

func (m *machine) copy(from, name string) {
	m.t.Helper()
	text, err := os.ReadFile(from)
	must(m.t, err)
	m.write(name, string(text))
}

// edit replaces text in the unit.
func (m *machine) edit(old, new string) {
	m.t.Helper()
	unit, err := os.ReadFile(filepath.Join(m.dir, "units/pay.service"))
	must(m.t, err)
	if !bytes.Contains(unit, []byte(old)) {
		m.t.Fatalf("pay.service has no %q", old)
	}
	m.write("units/pay.service", strings.ReplaceAll(string(unit), old, new))
	m.do("daemon-reload")
}

// order publishes one. Its handler takes so long.
func (m *machine) order(id string, takes time.Duration) {
	m.t.Helper()
	must(m.t, m.bus.Publish(m.t.Context(), "order.placed", order{id, takes}))
}

// journal is what the workers noted.
func (m *machine) journal() []string {
	text, _ := os.ReadFile(filepath.Join(m.dir, "lib/pay/journal")) // there is none before the first worker
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}

// count is how many lines of the journal are that one, but for who wrote it.
func (m *machine) count(line string) (n int) {
	for _, l := range m.journal() {
		if _, text, _ := strings.Cut(l, " "); text == line {
			n++
		}
	}
	return n
}

func (m *machine) untilNoted(line string) {
	m.t.Helper()
	m.until("a worker notes "+line, func() bool { return m.count(line) > 0 })
}

// handledOnce fails unless each was, and the broker waits for no more answers.
func (m *machine) handledOnce(ids ...string) {
	m.t.Helper()
	for _, id := range ids {
		if begun, ended := m.count("begins "+id), m.count("ends "+id); begun != 1 || ended != 1 {
			m.t.Errorf("order %s was begun %d times and handled %d times\n%s", id, begun, ended, strings.Join(m.journal(), "\n"))
		}
	}
	nc, err := nats.Connect(m.broker.URL())
	must(m.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(m.t, err)
	ctx := m.t.Context()
	consumers := 0
	for name := range js.StreamNames(ctx).Name() {
		stream, err := js.Stream(ctx, name)
		must(m.t, err)
		for c := range stream.ListConsumers(ctx).Info() {
			consumers++
			if c.NumPending != 0 || c.NumAckPending != 0 {
				m.t.Errorf("consumer %s: %d pending, %d without an acknowledgement", c.Name, c.NumPending, c.NumAckPending)
			}
		}
	}
	if consumers == 0 {
		m.t.Error("the broker has no consumer: nothing was shown")
	}
}

// A lockedBuffer is written to by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needSystemd is for tests that boot one.
func needSystemd(t *testing.T) {
	t.Helper()
	if !*systemd {
		t.Skip("needs root and half a minute: run with -systemd")
	}
	t.Parallel()
}
