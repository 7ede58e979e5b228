// Package adapter is the driver side of Tidings, as database/sql/driver is for
// database/sql: what a transport implements so that buses in several processes
// hear each other. Applications do not use it; they open a URL.
//
// # Division of labour
//
// The bus decides who gets an event: which classes of delivery a topic has,
// which process of a group takes it, what a handler's outcome means. An adapter
// carries: it hands messages over, keeps its connection, and says the truth
// about what was accepted. It never interprets [Message.Source] or
// [Message.Served], never retries a handler, and never drops silently: what it
// cannot deliver goes to [Config.OnError] with its cause.
//
// # Conformance
//
// Package adaptertest checks every obligation stated here; a failure names it.
package adapter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors that adapters wrap, so that the bus can tell causes apart.
var (
	// ErrNotDurable: no durable storage covers a pattern.
	ErrNotDurable = errors.New("no durable route covers the pattern")
	// ErrFull: a buffer, stream or disk is at its bound; nothing was accepted.
	ErrFull = errors.New("at its bound")
	// ErrClosed: the adapter was drained or closed.
	ErrClosed = errors.New("closed")
	// ErrInDoubt: the message may or may not have been accepted.
	ErrInDoubt = errors.New("in doubt: it may have been accepted")
)

// Class is how a message is delivered beyond the process.
type Class uint8

const (
	// Live reaches the processes that are connected now, at most once.
	Live Class = iota + 1
	// Durable is stored, and waits for every durable group.
	Durable
)

// Message is one event on its way between processes. Adapters keep all fields
// as they are; Data and Header are not changed by anybody once handed over.
type Message struct {
	ID           string            // unique over all sources; what duplicates are known by
	Topic        string            // a valid topic, without any prefix
	Source       string            // //app/instance of the publisher
	Time         time.Time         // when it was published, wall clock
	ContentType  string            // media type of Data
	Data         []byte            // the encoded payload
	Instrumented bool              // the event of an instrumented block; only these have the next two
	Duration     time.Duration     // of the block
	Err          string            // the error of the block
	Header       map[string]string // the publisher's own headers; keys in lower case
	Served       []string          // the queue keys that the publishing process has served itself
}

// Delivery is one message handed to a subscription.
type Delivery struct {
	Message
	Sequence uint64 // place in the durable store; 0 for live messages
	Attempt  int    // 1 for the first delivery; above it what the store counted
	Settle   Settler
}

// Settler says what became of a durable delivery. It is nil for live ones. One
// of Ack, Nak and Term is called exactly once, from any goroutine; none blocks.
type Settler interface {
	// Ack: handled. confirmed is called once, with nil when the store has
	// confirmed the acknowledgement, or with an error when the subscription was
	// closed before that. An adapter repeats an acknowledgement that was lost
	// with a connection.
	Ack(confirmed func(error))
	// Nak: not handled; deliver again after at least delay.
	Nak(delay time.Duration)
	// Term: never deliver again, for this reason.
	Term(reason string)
}

// Spec is what a subscription asks for.
type Spec struct {
	Pattern string
	// Group: of all subscriptions with one Group and Pattern, in all processes,
	// one gets each message. Empty: this subscription gets every message.
	Group string
	// Durable: messages wait for (Group, Pattern) while it is away, and must be
	// settled. Group is then not empty.
	Durable bool
	// MaxInFlight bounds the durable deliveries that are not settled yet. 0: the
	// adapter's choice.
	MaxInFlight int
	// Deliver takes a message. It is called by one goroutine at a time, in the
	// order of each publisher. For live messages it may block (back-pressure);
	// for durable ones it does not as long as MaxInFlight is kept.
	Deliver func(Delivery)
}

// Caps says what an adapter can do; the bus refuses at once what it cannot.
type Caps struct {
	Durable bool // messages of class Durable, and durable subscriptions
	Spool   bool // acceptance by a local spool
}

// Stats are counters of a connection, and its present state.
type Stats struct {
	Connected   bool
	URL         string // without secrets
	Disconnects uint64 // connections lost since it was opened
	InDoubt     uint64 // live messages that may have been lost with a connection
	Dropped     uint64 // messages that were given up, each with a cause in the log
	Buffered    int    // messages accepted and not yet written
	LastError   string // why the connection was lost last
}

// Adapter is an open connection to a transport. All methods may be called
// concurrently, and from inside Deliver and confirmed.
type Adapter interface {
	// Caps does not change while the adapter lives.
	Caps() Caps
	// Publish hands a message over.
	//   - Live: returns nil as soon as the message is in a bounded buffer or on
	//     the wire; ErrFull when the buffer is at its bound. Never blocks on the
	//     network.
	//   - Durable: returns nil if and only if the store has acknowledged it. While
	//     the broker is away it waits, as long as ctx and the adapter's own limit
	//     allow; then the error wraps ErrInDoubt if the message was written.
	//   - Messages of one adapter keep their order, whatever their class, for
	//     callers that wait for one Publish before the next.
	//   - The adapter does not keep m or change it after it has returned, but may
	//     keep m.Data.
	Publish(ctx context.Context, m *Message, c Class) error
	// Subscribe returns once the subscription is certain to get what is published
	// from now on: a live one was confirmed by the broker, the settings of a
	// durable one were checked. Errors name the subject and the way out; missing
	// permission is an error here, not silence.
	Subscribe(ctx context.Context, s Spec) (Subscription, error)
	// Stats is a snapshot; it does not block.
	Stats() Stats
	// Drain flushes what was accepted, and closes. Subscriptions must have been
	// closed before. When ctx ends first it closes and says what was left.
	Drain(ctx context.Context) error
	// Close lets go at once. Buffered live messages are counted as dropped;
	// waiting Publish calls fail.
	Close() error
}

// Subscription is one open subscription. All methods may be called
// concurrently; Drain and Close not from inside Deliver.
type Subscription interface {
	// Ready returns nil once messages are seen to flow: for a durable
	// subscription, once this process's own pull was answered by a message or an
	// idle heartbeat.
	Ready(ctx context.Context) error
	// Drain stops taking: the broker is told, what it had already sent is still
	// delivered. When it has returned, Deliver is not running and will not be
	// called again. When ctx ends first, what was taken but not delivered is
	// handed back if durable, and dropped and counted if live; the error says so.
	Drain(ctx context.Context) error
	// Close drains if that was not done, waits until every Ack was confirmed or
	// ctx ends, hands unsettled messages back, and forgets the subscription. The
	// durable group itself stays.
	Close(ctx context.Context) error
}

// Config is what an adapter is opened with.
type Config struct {
	App, Instance string
	Prefix        string   // set before each subject, with a dot; may be empty
	Durable       []string // patterns of the durable routes this app declares
	Logger        *slog.Logger
	// OnError is told of everything that has no caller to return an error to. It
	// does not block.
	OnError func(error)
}

// Opener opens a connection for a URL of its scheme. It fails when the broker
// does not answer, refuses the credentials, or cannot serve cfg.
type Opener func(ctx context.Context, url string, cfg Config) (Adapter, error)

var (
	mu      sync.RWMutex
	openers = map[string]Opener{}
)

// Register makes a scheme known, as database/sql's Register does for drivers.
// It is meant to be called by the init function of a transport's package, and
// panics when the scheme is taken.
func Register(scheme string, o Opener) {
	mu.Lock()
	defer mu.Unlock()
	if _, taken := openers[scheme]; taken {
		panic("adapter: scheme " + scheme + " is registered twice")
	}
	openers[scheme] = o
}

// Open opens url with the opener registered for its scheme.
func Open(ctx context.Context, url string, cfg Config) (Adapter, error) {
	scheme, _, ok := strings.Cut(url, ":")
	if !ok {
		return nil, errors.New("a transport URL begins with its scheme, like nats://127.0.0.1:4222")
	}
	mu.RLock()
	o := openers[scheme]
	known := slices.Sorted(maps.Keys(openers))
	mu.RUnlock()
	if o == nil {
		return nil, fmt.Errorf("no transport for URLs that begin with %q: import its package (nats: is in github.com/tidings-go/tidings/natsbus); known here: %s",
			scheme+":", strings.Join(known, ", "))
	}
	return o(ctx, url, cfg)
}
