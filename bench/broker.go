package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// serveArg makes the command a nats-server in a process of its own, as brokers
// are: in one process with its clients it would use their processors and they its.
const serveArg = "-serve-nats"

// serve runs a server with a file store in dir, with nats-server's own defaults,
// until stdin ends. It prints its URL.
func serve(dir string, stdin io.Reader, stdout io.Writer) error {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true})
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

func startBroker() (*broker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tidings-bench-")
	if err != nil {
		return nil, err
	}
	b := &broker{dir: dir, cmd: exec.Command(self, serveArg, dir)}
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
