package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// serveArg makes the command a nats-server in a process of its own, as brokers
// are: in one process with its clients it would use their processors and they its.
const serveArg = "-serve-nats"

// syncArg has the server sync each message before it acknowledges it, as the hub does.
const syncArg = "-sync"

// portArg names a port; else it is any that is free.
const portArg = "-port="

// serve runs a server with a file store in the directory that the first argument names,
// with nats-server's own defaults but for syncArg, until stdin ends. It prints its URL.
func serve(args []string, stdin io.Reader, stdout io.Writer) error {
	port := server.RANDOM_PORT
	for _, a := range args {
		if p, ok := strings.CutPrefix(a, portArg); ok {
			var err error
			if port, err = strconv.Atoi(p); err != nil {
				return err
			}
		}
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: args[0], NoSigs: true,
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
	self  string // this program
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
	b := &broker{dir: dir, self: self}
	if err := b.start(args...); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, nil
}

// start returns once the server listens, and has its store open.
func (b *broker) start(args ...string) error {
	b.cmd = exec.Command(b.self, append([]string{serveArg, b.dir}, args...)...)
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err == nil {
		b.stdin, err = b.cmd.StdinPipe()
	}
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if b.url = strings.TrimSpace(line); err != nil {
		return errors.Join(fmt.Errorf("the server said %q: %w", b.url, err), b.stop())
	}
	return nil
}

func (b *broker) stop() error { return errors.Join(b.stdin.Close(), b.cmd.Wait()) }

func (b *broker) close() error { return errors.Join(b.stop(), os.RemoveAll(b.dir)) }
