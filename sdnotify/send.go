//go:build unix

package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// States without a value, for [Notify].
const (
	Ready    = daemon.SdNotifyReady    // started, or done reloading
	Stopping = daemon.SdNotifyStopping // draining, then going
	Watchdog = daemon.SdNotifyWatchdog // still alive

	WatchdogTrigger = "WATCHDOG=trigger" // not alive: treat me as if the watchdog had run out
)

// SendTimeout bounds a [Notify] whose manager does not read its socket.
const SendTimeout = time.Second

// envSocket names the manager's socket.
const envSocket = "NOTIFY_SOCKET"

// Notify sends states such as [Ready] and [Status] to the manager as one
// datagram, which the manager applies as a whole. It returns nil when
// NOTIFY_SOCKET is unset or no state is given, and an error that names the
// socket when the manager cannot be reached within [SendTimeout]. It may be
// called concurrently.
//
// It does not use daemon.SdNotify, which waits without bound for a manager
// that has stopped reading.
func Notify(state ...string) error {
	name := os.Getenv(envSocket)
	if name == "" || len(state) == 0 {
		return nil
	}
	return send(name, strings.Join(state, "\n"))
}

func send(name, text string) error {
	if len(text) > MaxDatagram {
		return fmt.Errorf("sdnotify: %d bytes for %s exceed the %d of one datagram: shorten STATUS", len(text), envSocket, MaxDatagram)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("sdnotify: %s=%s: is the manager gone? %w", envSocket, name, err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(SendTimeout)); err != nil {
		return fmt.Errorf("sdnotify: %s=%s: %w", envSocket, name, err)
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		return fmt.Errorf("sdnotify: %s=%s: %w", envSocket, name, err)
	}
	return nil
}

// Reloading is the state of a service that is about to reload. It carries the
// monotonic clock, without which systemd's Type=notify-reload would take an
// earlier [Ready] for the end of this reload.
func Reloading() string {
	state := daemon.SdNotifyReloading
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err == nil {
		state += "\nMONOTONIC_USEC=" + strconv.FormatInt(ts.Nano()/1000, 10)
	}
	return state
}

// Status is a line for people. Line breaks become spaces: the protocol would
// read what follows them as another state.
func Status(text string) string {
	return "STATUS=" + strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == 0 {
			return ' '
		}
		return r
	}, text)
}

// MainPID tells the manager which process the service now is.
func MainPID(pid int) string { return "MAINPID=" + strconv.Itoa(pid) }

// ExtendTimeout asks the manager to wait for d from now, whatever its own
// bound on the start or stop in progress. It must be repeated within d.
func ExtendTimeout(d time.Duration) string {
	return "EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(max(d.Microseconds(), 0), 10)
}

// WatchdogInterval returns how often at least the manager expects [Watchdog],
// or 0 when it does not. Send twice as often. The error names a variable that
// cannot be read.
func WatchdogInterval() (time.Duration, error) {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("sdnotify: WATCHDOG_USEC, WATCHDOG_PID: %w", err)
	}
	return d, nil
}
