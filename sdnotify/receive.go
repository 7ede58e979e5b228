//go:build unix

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Receiver is the manager's end of one service's NOTIFY_SOCKET. Its methods
// may be called concurrently.
type Receiver struct {
	path string
	conn *net.UnixConn
	loop *loop.Loop
}

// Receive opens a socket at path and calls f for each datagram, in order, on
// a goroutine of the Receiver's own; f must not call [Receiver.Close]. The
// directory should be private to the user: whoever can write to the socket is
// believed. A path of "@name" is an abstract socket (Linux only), which is
// not protected by any directory. The error names the path.
func Receive(path string, f func(Message)) (*Receiver, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("sdnotify: listen on %s: %w", path, err)
	}
	r := &Receiver{path: path, conn: conn}
	r.loop = loop.Go(func(context.Context) { r.read(f) })
	return r, nil
}

// Path is what the service's NOTIFY_SOCKET must be.
func (r *Receiver) Path() string { return r.path }

// Close ends the Receiver, waits until f is not running any more, and removes
// the socket. Datagrams that were not read yet are dropped.
func (r *Receiver) Close() error {
	err := r.conn.Close()
	<-r.loop.Done()
	if r.path[0] != '@' {
		if rm := os.Remove(r.path); err == nil && !errors.Is(rm, os.ErrNotExist) {
			err = rm
		}
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("sdnotify: close %s: %w", r.path, err)
	}
	return nil
}

// read ends when the socket is closed. Descriptors that a service attaches
// (FDSTORE=1, BARRIER=1) are closed by the kernel, as no control buffer is
// offered: for a barrier that is the right answer.
func (r *Receiver) read(f func(Message)) {
	// One byte more than is allowed, to tell what was cut from what fits.
	buf := make([]byte, MaxDatagram+1)
	for {
		n, err := r.conn.Read(buf)
		if err != nil {
			return
		}
		f(Parse(buf[:n]))
	}
}
