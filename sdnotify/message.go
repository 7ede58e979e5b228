//go:build unix

package sdnotify

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"
)

// MaxDatagram is the longest datagram, systemd's own bound.
const MaxDatagram = 4096

// A Message is one datagram of a service.
type Message struct {
	Ready           bool
	Stopping        bool
	Reloading       bool
	Watchdog        bool          // WATCHDOG=1
	WatchdogTrigger bool          // WATCHDOG=trigger: treat me as hung
	Status          string        // STATUS=
	HasStatus       bool          // tells an empty STATUS= from none
	MainPID         int           // 0 if not sent
	ExtendTimeout   time.Duration // 0 if not sent
	Errno           int           // 0 if not sent
	Other           []string      // lines of keys that this package does not know
	Bad             []string      // lines that broke the protocol
}

// Parse reads a datagram. It takes every line it can and lists the rest in
// Bad, as systemd does: a service's one wrong line must not hide its READY=1.
// A datagram that is too long or contains a zero byte is Bad as a whole.
func Parse(datagram []byte) Message {
	var m Message
	if len(datagram) > MaxDatagram || bytes.IndexByte(datagram, 0) >= 0 {
		m.Bad = []string{string(datagram[:min(len(datagram), MaxDatagram)])}
		return m
	}
	for line := range strings.SplitSeq(string(datagram), "\n") {
		if line != "" && !m.set(line) {
			m.Bad = append(m.Bad, line)
		}
	}
	return m
}

// set applies one line and reports whether it could be read.
func (m *Message) set(line string) bool {
	key, value, found := strings.Cut(line, "=")
	if !found || key == "" {
		return false
	}
	switch key {
	case "READY":
		m.Ready = m.Ready || value == "1"
		return value == "1"
	case "STOPPING":
		m.Stopping = m.Stopping || value == "1"
		return value == "1"
	case "RELOADING":
		m.Reloading = m.Reloading || value == "1"
		return value == "1"
	case "WATCHDOG":
		m.Watchdog = m.Watchdog || value == "1"
		m.WatchdogTrigger = m.WatchdogTrigger || value == "trigger"
		return value == "1" || value == "trigger"
	case "STATUS":
		m.Status, m.HasStatus = value, true
		return true
	case "MAINPID":
		return positive(value, &m.MainPID)
	case "ERRNO":
		return positive(value, &m.Errno)
	case "EXTEND_TIMEOUT_USEC":
		return microseconds(value, &m.ExtendTimeout)
	}
	m.Other = append(m.Other, line)
	return true
}

func positive(value string, to *int) bool {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n <= 0 {
		return false
	}
	*to = int(n)
	return true
}

// microseconds saturates: a service that asks for longer than a Duration can
// hold means "as long as it takes".
func microseconds(value string, to *time.Duration) bool {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return false
	}
	*to = math.MaxInt64
	if n <= math.MaxInt64/uint64(time.Microsecond) {
		*to = time.Duration(n) * time.Microsecond
	}
	return true
}
