package natsbus_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/internal/testkit"
)

// nodeEnv makes this binary a nats-server, with the configuration in that file.
const nodeEnv = "TIDINGS_TEST_NODE"

func runNode(conf string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
	}
	opts, err := server.ProcessConfigFile(conf)
	fail(err)
	opts.NoLog = true // and it handles signals, as nats-server does
	s, err := server.NewServer(opts)
	fail(err)
	s.Start()
	if !s.ReadyForConnections(patience) {
		fail(fmt.Errorf("%s: not ready after %v: is a port of its taken?", conf, patience))
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	os.Exit(0)
}

// A node is a nats-server that is a process of its own, so that it can be killed.
type node struct {
	t    *testing.T
	name string
	addr string
	make func() *exec.Cmd
	cmd  *exec.Cmd
	end  io.Closer
}

func (n *node) url() string { return "nats://" + n.addr }

func (n *node) start() {
	n.t.Helper()
	n.cmd = n.make()
	n.cmd.Stderr = n.t.Output()
	in, err := n.cmd.StdinPipe() // one that this process leaves behind ends
	if err == nil {
		n.end, err = in, n.cmd.Start()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	testkit.Until(n.t, patience, func() bool {
		conn, err := net.Dial("tcp", n.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// signal ends it by a signal, if it runs.
func (n *node) signal(sig syscall.Signal) {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Signal(sig)
	_ = n.cmd.Wait()
	_ = n.end.Close()
	n.cmd = nil
}

// kill is kill -9.
func (n *node) kill() { n.signal(syscall.SIGKILL) }

// nodes starts a cluster of so many processes.
func nodes(t *testing.T, count int) (all []*node, url string) {
	t.Helper()
	var routes, addrs []string
	for range count {
		routes = append(routes, "nats://"+testkit.FreeAddr(t))
	}
	for i := range count {
		name, dir := fmt.Sprint("node", i), t.TempDir()
		n := &node{t: t, name: name, addr: testkit.FreeAddr(t)}
		conf := filepath.Join(dir, "conf")
		text := fmt.Sprintf("server_name: %s\nlisten: %q\njetstream { store_dir: %q }\ncluster { name: test, listen: %q, no_advertise: true, routes: [%s] }\n",
			name, n.addr, filepath.Join(dir, "store"), strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "))
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.make = func() *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), nodeEnv+"="+conf)
			return cmd
		}
		n.start()
		t.Cleanup(n.kill)
		all, addrs = append(all, n), append(addrs, n.addr)
	}
	return all, "nats://" + strings.Join(addrs, ",")
}

func named(all []*node, name string) (*node, error) {
	for _, n := range all {
		if n.name == name {
			return n, nil
		}
	}
	return nil, errors.New("there is no node " + name)
}
