package hub

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// serverLog hands nats-server's log to slog. The server calls it with locks
// held: its methods must not call the server back.
type serverLog struct {
	log   *slog.Logger
	token string
	// fatal gets the first fault for which nats-server wants its process to
	// end. An embedded one must not take the program with it.
	fatal chan error
	// ready is false during the start, whose banner is for debugging.
	ready atomic.Bool
}

func newServerLog(l *slog.Logger, token string) *serverLog {
	return &serverLog{log: l, token: token, fatal: make(chan error, 1)}
}

// write never lets the token through. The server takes care of that itself;
// this makes it independent of the server's version.
func (l *serverLog) write(level slog.Level, format string, v []any) string {
	msg := strings.ReplaceAll(fmt.Sprintf(format, v...), l.token, "[token]")
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
	// passwords that can be guessed; ours has 256 random bits.
	if strings.HasPrefix(format, "Plaintext passwords detected") {
		level = slog.LevelDebug
	}
	l.write(level, format, v)
}

func (l *serverLog) Errorf(format string, v ...any) { l.write(slog.LevelError, format, v) }
func (l *serverLog) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

func (l *serverLog) Fatalf(format string, v ...any) {
	msg := l.write(slog.LevelError, format, v)
	select {
	case l.fatal <- fmt.Errorf("nats-server: %s", msg):
	default: // the first cause is the one to tell
	}
}
