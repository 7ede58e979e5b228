//go:build unix

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/loop"
)

// A Receiver is the manager's end of one service's NOTIFY_SOCKET. Its methods
// may be called concurrently.
type Receiver struct {
	path     string
	conn     *net.UnixConn
	loop     *loop.Loop
	draining atomic.Bool
}

// drainMost bounds what [Receiver.Drain] reads: more than a socket holds. What a
// child of the service goes on sending must not keep it for ever.
const drainMost = 1 << 14

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

// Drain has f called for what was sent before, and then ends the Receiver but for
// [Receiver.Close]. It does not wait, since f may wait for its caller: [Receiver.Done]
// tells. It is for a service that has ended, whose last words still lie in the socket.
func (r *Receiver) Drain() {
	r.draining.Store(true)
	_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // fails if it is closed, and then nobody reads
}

// Done is closed once f is not running and will not be called any more.
func (r *Receiver) Done() <-chan struct{} { return r.loop.Done() }

// Path is what the service's NOTIFY_SOCKET must be.
func (r *Receiver) Path() string { return r.path }

// Close ends the Receiver, waits until f is not running any more, and removes
// the socket. Datagrams that were not read yet are dropped: see [Receiver.Drain].
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

// read ends when the socket is closed or drained. Descriptors that a service attaches
// (FDSTORE=1, BARRIER=1) are closed by the kernel, as no control buffer is
// offered: for a barrier that is the right answer.
func (r *Receiver) read(f func(Message)) {
	// One byte more than is allowed, to tell what was cut from what fits.
	buf := make([]byte, MaxDatagram+1)
	for {
		n, err := r.conn.Read(buf)
		if err != nil {
			break
		}
		f(Parse(buf[:n]))
	}
	if r.draining.Load() {
		r.readRest(buf, f)
	}
}

// readRest takes what is there. A read of package net with a deadline that is over
// would not look.
func (r *Receiver) readRest(buf []byte, f func(Message)) {
	raw, err := r.conn.SyscallConn()
	if err != nil {
		return
	}
	for range drainMost {
		n, failed := 0, error(nil)
		err := raw.Control(func(fd uintptr) {
			for {
				n, _, failed = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				if failed != unix.EINTR {
					return
				}
			}
		})
		if err != nil || failed != nil {
			return // closed, or empty
		}
		f(Parse(buf[:n]))
	}
}
