package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
)

// command runs the tools, as people do: with the URL in the environment.
func (e *ears) command(t *testing.T, url, wrong, spool string) {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"streams"}, {"streams", "--json"}, {"dlq", "list"}, {"dlq", "list", "--json"}, {"apply", "--dry-run"}, {"event", "none"},
		{"spool", "list"}, {"spool", "drain"}, {"replay", "--group=shop", "--from=1h", "--dry-run"},
		{"doctor", "--save=" + filepath.Join(dir, "report.json")}, {"doctor", "--compare", wrong}, {"doctor", url}, {"streams", "--nonsense"},
	} {
		for _, u := range []string{url, wrong, strings.Replace(url, "nats:", "nats:/", 1)} {
			cmd := exec.Command("tidings", args...)
			cmd.Env = append(os.Environ(), "TIDINGS_URL="+u, "TIDINGS_SPOOL_DIR="+spool, "TIDINGS_APP=shop", "TIDINGS_ROUTES=order.>=durable")
			out, _ := cmd.CombinedOutput() // most fail with the wrong one
			if len(out) == 0 && cmd.ProcessState.ExitCode() == 127 {
				t.Fatalf("tidings %v did not run", args)
			}
			e.hear("tidings "+strings.Join(args[:1], " "), string(out))
		}
	}
	out, _ := exec.Command("tidings", "doctor", "--compare", url, wrong).CombinedOutput()
	e.hear("tidings doctor --compare", string(out))
	e.tree(t, dir)
}

// A master and its workers: what they are given in files and in the environment is in no
// log, status, event or command line, and in the environment of nobody but the worker.
func TestNoSecretComesOutOfAMaster(t *testing.T) {
	e := newEars()
	dir, err := os.MkdirTemp("/tmp", "secrets") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // so that it hides nothing
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	key := e.secret("key in the env file")
	if err := os.WriteFile(at("env"), []byte("API_KEY="+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hub := exec.Command("tidings", "hub", "--dir", at("hub"), "--listen", "127.0.0.1:0")
	hubURL := start(t, hub, at("hub.out"))
	token, err := os.ReadFile(at("hub/token"))
	if err != nil {
		t.Fatal(err)
	}
	e.keep("the hub's token", strings.TrimSpace(string(token)))
	var said bytes.Buffer
	master := exec.Command("tidings", "run", "-n", "2", "--pid-file", at("pid"), "--log", at("log"), "--events", at("events"),
		"--env-file", at("env"), "--state", at("state"), "--", "failing", "serve", "refusing")
	master.Env = append(os.Environ(), "TIDINGS_URL="+hubURL, "TIDINGS_SPOOL_DIR="+at("spool"))
	master.Stdout, master.Stderr = &said, &said
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = master.Process.Kill() }()
	tool := func(name string, args ...string) string {
		cmd := exec.Command("tidings", args...)
		cmd.Env = append(os.Environ(), "TIDINGS_URL="+hubURL, "TIDINGS_SPOOL_DIR="+at("spool"))
		out, _ := cmd.CombinedOutput()
		e.hear("tidings "+name, string(out))
		return string(out)
	}
	testkit.Until(t, 2*scriptPatience, func() bool {
		out, err := exec.Command("tidings", "status", "--ready", "--pid-file", at("pid")).CombinedOutput()
		e.hear("tidings status", string(out))
		return err == nil
	})
	publisher := exec.Command("failing", "publish", "order.placed", "bad1", "bad2", "good")
	publisher.Env = append(os.Environ(), "TIDINGS_URL="+hubURL)
	if out, err := publisher.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	testkit.Until(t, scriptPatience, func() bool {
		return strings.Contains(tool("status", "status", "--json", "--pid-file", at("pid")), `"failed": `)
	})
	for _, args := range [][]string{{"status", "--pid-file", at("pid")}, {"streams"}, {"doctor"}, {"doctor", "--json"}, {"dlq", "list"}, {"spool", "list"},
		{"deploy", "--pid-file", at("pid"), "--probation=1s", "--junit", at("junit.xml")}} {
		tool(args[0], args...)
	}
	workers := 0
	for _, pid := range children(master.Process.Pid) {
		e.hear("a command line", proc(pid, "cmdline"))
		workers++
		if env := proc(pid, "environ"); !strings.Contains(env, key) {
			t.Error("the worker did not get what the env file says")
		} else {
			e.hear("a worker's environment", strings.ReplaceAll(env, key, ""))
		}
	}
	if workers < 2 {
		t.Errorf("%d workers", workers)
	}
	for _, p := range []*os.Process{master.Process, hub.Process} {
		e.hear("a master's command line", proc(p.Pid, "cmdline"))
		e.hear("a master's environment", proc(p.Pid, "environ"))
	}
	e.tree(t, dir, "env", "token", "pid")
	for _, cmd := range []*exec.Cmd{master, hub} {
		if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}
	e.hear("the master's output", said.String())
	e.judge(t, 20)
}

// start starts a hub whose output goes to a file, and returns its URL.
func start(t *testing.T, cmd *exec.Cmd, path string) (url string) {
	t.Helper()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	testkit.Until(t, scriptPatience, func() bool {
		b, _ := os.ReadFile(path)
		_, rest, ready := strings.Cut(string(b), "url ")
		url, _, _ = strings.Cut(rest, "\n")
		return ready && strings.Contains(rest, "export ")
	})
	return url
}

func proc(pid int, what string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, what))
	return string(b)
}
