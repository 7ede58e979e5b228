package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// serveArg makes the command a nats-server in a process of its own, as brokers
// are: in one process with its clients it would use their processors and they its.
const serveArg = "-serve-nats"

// syncArg has the server sync each message before it acknowledges it, as the hub does.
const syncArg = "-sync"

// serve runs a server with a file store in the directory that the first argument names,
// with nats-server's own defaults but for syncArg, until stdin ends. It prints its URL.
func serve(args []string, stdin io.Reader, stdout io.Writer) error {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: args[0], NoSigs: true,
		SyncAlways: slices.Contains(args, syncArg)})
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		return errors.New("the server is not ready after 10 s")
	}
	fmt.Fprintln(stdout, s.ClientURL())
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// broker is a server in a child process.
type broker struct {
	url   string
	dir   string
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func startBroker(args ...string) (*broker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tidings-bench-")
	if err != nil {
		return nil, err
	}
	b := &broker{dir: dir, cmd: exec.Command(self, append([]string{serveArg, dir}, args...)...)}
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err == nil {
		b.stdin, err = b.cmd.StdinPipe()
	}
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if b.url = strings.TrimSpace(line); err != nil {
		return nil, errors.Join(fmt.Errorf("the server said %q: %w", b.url, err), b.close())
	}
	return b, nil
}

func (b *broker) close() error {
	return errors.Join(b.stdin.Close(), b.cmd.Wait(), os.RemoveAll(b.dir))
}
