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
	// ErrNobody: no live subscription of any process matches the topic.
	ErrNobody = errors.New("nobody listens")
)

// Class is how a message is delivered beyond the process.
type Class uint8

const (
	// Live reaches the processes that are connected now, at most once.
	Live Class = iota + 1
	// Durable is stored, and waits for every durable group.
	Durable
	// Spooled is Durable for an adapter with a spool, where Caps say so: accepted as
	// soon as it is on this machine's disk, from where it is sent to the store.
	Spooled
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
	NotBefore    time.Time         // to be held back until then; only of class Durable, where Caps say Delay
	// Numbered: the ID ends in "-" and a number in base 36, and of all events of this
	// source and topic whose ids begin the same none has the same number; most often
	// they rise. It is told by the publisher and not carried.
	Numbered bool
	Expires  time.Time // of no use to anybody after that: the store may forget it then
}

// Delivery is one message handed to a subscription.
type Delivery struct {
	Message
	Sequence uint64 // place in the durable store; 0 for live messages
	Attempt  int    // 1 for the first delivery; above it what the store counted
	Settle   Settler
	// Broken says why a durable message cannot be read; empty if it can. Data is
	// then the body as it came, and of the other fields what could be read. A live
	// message that cannot be read is not delivered but counted as dropped.
	Broken string
	// Reply answers whoever has asked this, by a [Requester] or as others who speak to
	// the transport do; nil: nobody has. It does not block, and may be called
	// concurrently and more than once. Its errors are those of a live Publish.
	Reply func(Reply) error
}

// Reply is what comes back to a request: a message, or that there is none.
type Reply struct {
	Message *Message // of the topic that was asked; nil: there is none
	Err     error    // why there is none; of another process, only its text is kept
}

// Settler says what became of a durable delivery. It is nil for live ones. One
// of Ack, Nak, Term and Dead is called exactly once, from any goroutine; none of
// its methods blocks.
type Settler interface {
	// Begin notes in the store that a handler is about to begin, and tells how
	// often that was noted of this message and group without an outcome: so often
	// a process has died of it, or while it had it. Ack, Nak, Term and Dead take the
	// notes away, and so does the Close of a subscription that hands it back. It is for messages that were delivered suspiciously often, before
	// any of those is called. deaths is called once, from any goroutine.
	Begin(deaths func(n int, err error))
	// Ack: handled. confirmed is called once, with nil when the store has
	// confirmed the acknowledgement, or with an error when the subscription was
	// closed before that. An adapter repeats an acknowledgement that was lost
	// with a connection.
	Ack(confirmed func(error))
	// Nak: not handled; deliver again after at least delay.
	Nak(delay time.Duration)
	// Term: never deliver again, for this reason.
	Term(reason string)
	// Dead: given up; keep it as a dead letter, and deliver it never again.
	//   - The adapter fills ID, Event, Stream, Sequence and Deliveries of l, and
	//     l is its own until confirmed is called.
	//   - The letter is stored and acknowledged first; only then the delivery is
	//     terminated, and confirmed as an Ack is. confirmed is called once, with nil
	//     when both are done.
	//   - Whoever is killed in between leaves the letter, and a message that is
	//     delivered again: a second Dead of the same message in the same group, by
	//     any process and however much later, finds the letter and adds none.
	//   - A letter that cannot be stored is an error for confirmed (ErrFull when
	//     the store of dead letters is at its bound), and the message is not
	//     terminated but delivered again later.
	//   - A message that came as Broken is kept as it came.
	Dead(l *DeadLetter, confirmed func(error))
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
	// Prefetch, if not nil, is how many unsettled deliveries are worth holding now,
	// between 1 and MaxInFlight: it follows how long the handlers take. The adapter
	// asks before it takes more: when a delivery is settled and at Refill, and
	// whenever else it likes, on any goroutine. It is cheap and takes no locks. What was
	// taken before may be above it.
	Prefetch func() int
	// Deliver takes a message. It is called by one goroutine at a time, in the
	// order of each publisher. For live messages it may block (back-pressure);
	// for durable ones it does not as long as MaxInFlight is kept.
	Deliver func(Delivery)
}

// Caps says what an adapter can do; the bus refuses at once what it cannot.
type Caps struct {
	Durable bool // messages of class Durable, and durable subscriptions
	Spool   bool // acceptance by a local spool
	Delay   bool // Message.NotBefore; the adapter is a [Canceler] then
}

// Stats are counters of a connection, and its present state.
type Stats struct {
	Connected   bool
	Since       time.Time // when Connected became what it is; zero: not known
	URL         string    // without secrets
	Disconnects uint64    // connections lost since it was opened
	InDoubt     uint64    // live messages that may have been lost with a connection
	Dropped     uint64    // messages that were given up, each with a cause in the log
	Buffered    int       // messages accepted and not yet written
	Spooled     int       // durable messages that lie in the spool
	Purged      uint64    // stored messages that this process removed because every group had acknowledged them
	Possible    uint64    // durable messages that were sent again though they may be stored already
	LastError   string    // why the connection was lost last
	Stalled     uint64    // times a durable subscription was found to get nothing though it should; each has its cause in the log
}

// LeftError names what a durable subscription could not settle before it was
// closed.
type LeftError struct {
	HandedBack  []Message // taken and not settled: delivered again
	Unconfirmed []Message // settled, but the store has not confirmed it: may be delivered again
	Undelivered int       // of HandedBack, those that Deliver never got
	Err         error     // why; nil if nothing was lacking but the settling
}

// Error counts them.
func (e *LeftError) Error() string {
	s := fmt.Sprintf("%d events handed back, %d acknowledgements not confirmed", len(e.HandedBack), len(e.Unconfirmed))
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *LeftError) Unwrap() error { return e.Err }

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
	//   - With NotBefore it returns nil when the message is stored. At that time, or
	//     as soon as may be after it, the message is delivered as if it was published
	//     then: to every durable group and to live subscriptions, this adapter's own
	//     included. It waits while no process of the app runs. Another message of the
	//     same Topic and ID takes the place of one that still waits. Order is kept
	//     with nothing.
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

// AsyncPublisher is implemented by adapters whose Caps say Durable, if they can have
// many messages on the way to the store at once for one caller.
type AsyncPublisher interface {
	// PublishAsync hands a message of class Durable or Spooled over.
	//   - It returns nil as soon as the message has its place among those that wait for
	//     their acknowledgement. They are bounded: at the bound it waits, as long as ctx
	//     allows.
	//   - After nil, done is called once, with what Publish would have returned, by a
	//     goroutine of the adapter or before PublishAsync returns. It does not block.
	//     After an error it is not called, and nothing was accepted.
	//   - When Close is called, or Drain's ctx ends, done is called with an error for all
	//     that is left.
	//   - Messages of one caller keep their order, with those of Publish as well.
	PublishAsync(ctx context.Context, m *Message, c Class, done func(error)) error
}

// Requester is implemented by adapters that can carry requests and replies.
type Requester interface {
	// Request publishes a live message that can be replied to.
	//   - It returns as Publish does for a live message, which it is for everybody who
	//     gets it, but for Delivery.Reply.
	//   - After nil, reply is called with whatever comes back, in no order, on any
	//     goroutine, until stop has returned, and perhaps before Request has. It does
	//     not block, and does not call stop.
	//   - A Reply whose Err wraps ErrNobody says that nobody gets the message, one with
	//     ErrClosed that the adapter was closed: nothing comes after those. While
	//     subscribers may be on their way back after an outage the adapter tries again
	//     before it says ErrNobody.
	//   - A Reply whose Err wraps ErrInDoubt says that the request or its replies may have
	//     been lost with a connection; they may come yet.
	//   - Any other Reply without a message says that one process has none: others may.
	//   - What comes later than stop, or is lost with a connection, is nobody's.
	Request(ctx context.Context, m *Message, reply func(Reply)) (stop func(), err error)
}

// Subscription is one open subscription. All methods may be called
// concurrently; Drain and Close not from inside Deliver.
type Subscription interface {
	// Ready returns nil once messages are seen to flow: for a durable
	// subscription, once this process's own pull was answered by a message or an
	// idle heartbeat.
	Ready(ctx context.Context) error
	// Refill says that Spec.Prefetch has risen though nothing was settled. It does
	// not block, and may be called from inside Deliver.
	Refill()
	// Drain stops taking: the broker is told, what it had already sent is still
	// delivered. When it has returned, Deliver is not running and will not be
	// called again. When ctx ends first, what was taken but not delivered is
	// handed back if durable, and dropped and counted if live; the error says so.
	Drain(ctx context.Context) error
	// Close drains if that was not done, waits until every Ack was confirmed or
	// ctx ends, hands unsettled messages back, and forgets the subscription. The
	// durable group itself stays. If anything was handed back, or not confirmed in
	// time, the error is or wraps a *LeftError that names each such message.
	Close(ctx context.Context) error
}

// Lagger is implemented by durable subscriptions of adapters that can tell how far
// the group is behind.
type Lagger interface {
	// Lag is how many messages the store has for the group that it has given to no
	// process of it yet, as was heard last: it asks nobody and does not block. Known is
	// false when that was never heard, or too long ago to mean anything. While the
	// store answers, what was heard is at most some seconds old, also when nothing is
	// taken.
	Lag() (waiting uint64, known bool)
}

// MissCounter is implemented by live subscriptions of adapters that can tell what was
// lost on the way.
type MissCounter interface {
	// Missing is how many messages were sent that no process of the group got, since
	// this subscription began to count and as far as is known: lost with a connection,
	// dropped from a full buffer, or taken by a process that was killed. It is the same
	// in every process of the group, and may fall when what was only late arrives. It
	// asks nobody and does not block.
	Missing() uint64
}

// Config is what an adapter is opened with.
type Config struct {
	App, Instance string
	Prefix        string   // set before each subject, with a dot; may be empty
	Durable       []string // patterns of the durable routes this app declares
	SpoolDir      string   // where durable messages are kept while the broker is away; empty: nowhere
	SpoolMax      int64    // how many bytes may lie there; 0: the adapter's default
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
