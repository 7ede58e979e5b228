//go:build unix

package supervisor_test

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
)

// A deploy that moves a symbolic link and changes the environment file is taken by
// HUP; a file that cannot be read leaves things as they were.
func TestSurroundingsAreThoseOfTheMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	dir, err := filepath.EvalSymlinks(r.dir)
	check(t, err)
	for _, release := range []string{"1", "2"} {
		check(t, os.MkdirAll(filepath.Join(dir, "releases", release), 0o755))
		program := "#!/bin/sh\necho \"release " + release + " in $(pwd -P), umask $(umask), color $COLOR, size $SIZE\"\nexec \"$@\"\n"
		check(t, os.WriteFile(filepath.Join(dir, "releases", release, "app"), []byte(program), 0o755))
	}
	current, env := filepath.Join(dir, "current"), filepath.Join(dir, "env")
	point := func(release string) {
		t.Helper()
		check(t, os.Symlink(filepath.Join("releases", release), current+".new"))
		check(t, os.Rename(current+".new", current))
	}
	point("1")
	check(t, os.WriteFile(env, []byte("# of release 1\nCOLOR='dark red'\n\nSIZE=1=2\n"), 0o600))
	r.cfg.Command = append([]string{"./app"}, r.cfg.Command...)
	r.cfg.Dir, r.cfg.EnvFile, r.cfg.Umask = current, env, "027"
	r.start("COLOR=of the master")
	says := func(line string) {
		t.Helper()
		testkit.Until(t, patience, func() bool { return strings.Contains(r.stderr.String(), line+"\n") })
	}
	r.awaitKind(supervisor.EventGenerationReady)
	says("release 1 in " + dir + "/releases/1, umask 0027, color dark red, size 1=2")
	if w := r.status().Workers[0]; w.Program != dir+"/releases/1/app" {
		t.Errorf("program: %+v", w)
	}

	check(t, os.WriteFile(env, []byte("COLOR blue\nLISTEN_FDS=3\n"), 0o600))
	point("2")
	r.signal(syscall.SIGHUP)
	e := r.awaitKind(supervisor.EventRollFailed)
	for _, want := range []string{"env:1: write NAME=VALUE", "env:2: LISTEN_FDS is set by the master"} {
		if !strings.Contains(e.Reason, want) {
			t.Errorf("the roll failed with %q, want %q", e.Reason, want)
		}
	}
	if s := r.status(); len(s.Workers) != 1 || s.Workers[0].Generation != 1 || s.Workers[0].State != "ready" {
		t.Errorf("status: %+v", s)
	}

	check(t, os.WriteFile(env, []byte("COLOR=\"blue\""), 0o600))
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventGenerationReady)
	says("release 2 in " + dir + "/releases/2, umask 0027, color blue, size ")

	// Without the directory there are no new workers, and the old one stays.
	check(t, os.Remove(current))
	r.signal(syscall.SIGHUP)
	r.awaitKind(supervisor.EventRollFailed)
	if s := r.status(); len(s.Workers) != 1 || s.Workers[0].State != "ready" {
		t.Errorf("status: %+v", s)
	}
	if !strings.Contains(r.stderr.String(), "Dir "+current+": ") {
		t.Error("the log does not name the directory")
	}
	r.signal(syscall.SIGTERM)
	r.awaitExit(0)
}

func TestTermInBothModes(t *testing.T) {
	t.Parallel()
	for _, graceful := range []bool{false, true} {
		r := newRig(t, testConfig{TermGraceful: graceful})
		startReady(r)
		r.signal(syscall.SIGTERM)
		want := map[bool]string{false: "TERM", true: "QUIT"}[graceful]
		if e := r.awaitKind(supervisor.EventWorkerQuitSent); e.Signal != want {
			t.Errorf("graceful %v: the worker was sent %s, want %s", graceful, e.Signal, want)
		}
		r.awaitExit(0)
	}
}

// Who is root can start workers as somebody else; nobody else can.
func TestWorkersRunAsAnotherUser(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig{})
	self, err := os.ReadFile(r.cfg.Command[0])
	check(t, err)
	// They must be able to reach the program and to read their mode.
	program := filepath.Join(r.dir, "program")
	check(t, os.WriteFile(program, self, 0o755))
	check(t, errors.Join(os.Chmod(r.dir, 0o755), os.Chmod(filepath.Join(r.dir, "mode"), 0o644)))
	r.cfg.Command = []string{"sh", "-c", `echo "I am $(id -u):$(id -g), at home in $HOME"; exec "$@"`, "sh", program, "worker", r.dir}
	refused := func(name, why string) {
		t.Helper()
		r.cfg.User = name
		cmd := r.command()
		cmd.Stdout, cmd.Stderr = nil, nil
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), why) {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	refused("no-such-user", `there is no user "no-such-user"`)
	me := strconv.Itoa(os.Geteuid())
	refused(me+":no-such-group", `there is no group "no-such-group"`)
	r.cfg.User = me
	as := me + ":" + strconv.Itoa(os.Getegid())
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		check(t, err)
		r.cfg.User, as = "nobody", nobody.Uid+":"+nobody.Gid
	} else {
		refused("root", "only root can start workers as another")
		r.cfg.User = me
	}
	startReady(r) // it has reached its NOTIFY_SOCKET
	says := "I am " + as + ", at home in /"
	testkit.Until(t, patience, func() bool { return strings.Contains(r.stderr.String(), says) })
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
}
