package tidings

import (
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// The sentinels of this package, for errors.Is. Errors that reach a caller wrap
// them in an [*Error] with the operation and the topic.
var (
	// ErrTopic: a topic or pattern breaks the grammar; the text names the token.
	ErrTopic = topic.ErrSyntax
	// ErrClosed: the bus or the subscription has ended. Make a new one.
	ErrClosed = adapter.ErrClosed
	// ErrDraining: the bus is being drained and takes nothing new from outside its
	// own handlers.
	ErrDraining = errors.New("draining: nothing new is taken")
	// ErrOverflow: a queue, buffer or store is at its bound. Raise the bound named
	// in the text, add workers, or publish less.
	ErrOverflow = adapter.ErrFull
	// ErrNotDurable: a durable subscription's pattern is not covered by a durable
	// route. Declare one in Options.Routes or TIDINGS_ROUTES.
	ErrNotDurable = adapter.ErrNotDurable
	// ErrInDoubt: the broker was lost before it answered: the event may have been
	// stored. Publishing it again may double it.
	ErrInDoubt = adapter.ErrInDoubt
	// ErrNoResponder: nobody listens to a request, or nobody answered it. Subscribe a
	// handler that calls Reply before asking.
	ErrNoResponder = errors.New("no responder")
	// ErrAttached: the bus has a transport already; there is one per bus.
	ErrAttached = errors.New("a transport is attached already")
)

// Error is what every failing call of this package returns.
type Error struct {
	Op    string // "publish", "subscribe", "attach", "drain", …
	Topic string // the topic or pattern; empty if there is none
	// Accepted: the event was stored, sent, or taken by a local queue, though
	// something else failed; publishing it again would double it.
	Accepted bool
	Err      error
}

// Error names the operation, the topic and the cause.
func (e *Error) Error() string {
	s := "tidings: " + e.Op
	if e.Topic != "" {
		s += " " + e.Topic
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// PanicError is a panic of user code, contained in the subscription or the
// instrumented block that it came from.
type PanicError struct {
	Value any    // what was passed to panic
	Stack []byte // the stack at the panic, as runtime/debug.Stack prints it
}

// Error gives the value; the stack is in the field.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap returns the panic's value if it was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks a handler's error as one that no retry can mend: the event is
// given up at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type retryAfterError struct {
	err   error
	delay time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter marks a handler's error as one to retry after d instead of what
// [Retry] says. RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, d}
}
