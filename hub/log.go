package hub

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
)

// serverLog hands nats-server's log to slog. The server calls it with locks
// held: its methods must not call the server back.
type serverLog struct {
	log *slog.Logger
	// secrets makes [secret] of what must not be seen.
	secrets atomic.Pointer[strings.Replacer]
	// broken is the last fault of a store, "" if there is none.
	broken atomic.Pointer[string]
	// fatal gets the first fault for which nats-server wants its process to
	// end. An embedded one must not take the program with it.
	fatal chan error
	// ready is false during the start, whose banner is for debugging.
	ready atomic.Bool
}

func newServerLog(l *slog.Logger, secrets map[string]string) *serverLog {
	s := &serverLog{log: l, fatal: make(chan error, 1)}
	s.hide(secrets)
	s.forget()
	return s
}

// hide adds secrets to what is not let through.
func (l *serverLog) hide(secrets map[string]string) {
	var pairs []string
	for _, s := range secrets {
		pairs = append(pairs, s, "[secret]")
	}
	l.secrets.Store(strings.NewReplacer(pairs...))
}

// What nats-server says when a store cannot be written, after which it takes nothing
// more: it tells nobody else.
var faults = []string{"ritical write error", "will be DISABLED", "disabling JetStream"}

func (l *serverLog) blame(msg string) { l.broken.Store(&msg) }
func (l *serverLog) forget()          { l.broken.Store(new(string)) }
func (l *serverLog) fault() string    { return *l.broken.Load() }

// write never lets a secret through. The server takes care of that itself;
// this makes it independent of the server's version.
func (l *serverLog) write(level slog.Level, format string, v []any) string {
	msg := l.secrets.Load().Replace(fmt.Sprintf(format, v...))
	l.log.Log(context.Background(), level, "nats-server: "+msg)
	return msg
}

func (l *serverLog) Noticef(format string, v ...any) {
	level := slog.LevelDebug
	if l.ready.Load() {
		level = slog.LevelInfo
	}
	l.write(level, format, v)
}

func (l *serverLog) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	// Its advice is bcrypt, which costs every connect 100 ms and protects
	// passwords that can be guessed; ours have 256 random bits.
	if strings.HasPrefix(format, "Plaintext passwords detected") {
		level = slog.LevelDebug
	}
	l.write(level, format, v)
}

func (l *serverLog) Errorf(format string, v ...any) {
	msg := l.write(slog.LevelError, format, v)
	if slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(msg, f) }) {
		l.blame(msg)
	}
}

func (l *serverLog) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

func (l *serverLog) Fatalf(format string, v ...any) {
	msg := l.write(slog.LevelError, format, v)
	select {
	case l.fatal <- fmt.Errorf("nats-server: %s", msg):
	default: // the first cause is the one to tell
	}
}
