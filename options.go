package tidings

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidings-go/tidings/internal/bytesize"
	"github.com/tidings-go/tidings/internal/topic"
)

// Options configure a bus. The zero value works; [New] checks the rest once and
// names the field that is wrong.
type Options struct {
	// App names the program; all its processes share it. Default: TIDINGS_APP, then
	// the name of the executable.
	App string
	// Instance names this process among those of the app. Default: random.
	Instance string
	// Prefix is set before each topic on the wire and keeps environments apart on
	// one broker. Default: TIDINGS_PREFIX, then none.
	Prefix string
	// Routes say how topics are delivered beyond the process; the first that
	// matches wins, and those of TIDINGS_ROUTES ("order.>=durable,debug.>=local")
	// come first. Without any, what is published goes live and what is instrumented
	// stays local; with routes they alone decide, and what none matches stays local.
	Routes []Route
	// SpoolDir is a directory on a local disk where durable events are kept, in order,
	// while the broker is away: Publish returns nil once they are synced there, and they
	// are sent when it is back. What a process leaves behind, the next one of the app
	// sends before its own events; so all of an app's processes share the directory.
	// Default: TIDINGS_SPOOL_DIR, then none: Publish waits for the broker then. With a
	// SpoolDir, Attach succeeds though the broker is away.
	SpoolDir string
	// SpoolMax bounds what one process keeps there, in bytes; beyond it Publish fails.
	// Default: TIDINGS_SPOOL_MAX ("512MiB", or bytes), then 1 GiB.
	SpoolMax int64
	// Codec encodes payloads that leave the process. Default: [JSON].
	Codec Codec
	// Logger gets what has no caller to be told. Default: slog.Default().
	Logger *slog.Logger
	// OnError gets every error that has no caller: of handlers, of the transport.
	// It may be called concurrently and may call the bus. The log has them too.
	OnError func(context.Context, error)
	// Redact takes the secrets out of payloads: whatever is published or instrumented
	// here passes it before any subscriber, Start, or the transport gets it. It
	// returns a copy without them, of the same type, and does not change what it is
	// given; redact.New().Value is one. It is called concurrently, on the publisher's
	// goroutine, and not for topics that nobody listens to.
	Redact func(payload any) any
	// Middleware is put around the handler of each subscription when it is made, the
	// first outermost.
	Middleware []func(next Handler) Handler
	// PublishMiddleware is put around Publish, the first outermost: it may change
	// what is published, refuse it, or do something before and after. It runs also
	// for topics that nobody listens to, and not for Instrument, PublishEvent and
	// Request.
	PublishMiddleware []func(next PublishFunc) PublishFunc
	// Strict makes the failures of inline subscribers those of the publisher, as
	// ActiveSupport::Notifications does: Publish and Instrument return them, after
	// every subscriber has run, and OnError does not get them. A block is not run if
	// a Start fails. For tests.
	Strict bool
	// AlwaysEncode gives local subscribers the encoded form that remote ones would
	// get: for tests and staging.
	AlwaysEncode bool
}

// Route gives the topics that match Pattern a class of delivery.
type Route struct {
	Pattern string
	Class   Class
	Ack     Ack
}

// Class is how far an event reaches, and what is promised for it.
type Class uint8

const (
	// Local: subscribers of this process.
	Local Class = iota + 1
	// Live: also the processes that are connected now, at most once.
	Live
	// Durable: stored by the broker; waits for every durable group.
	Durable
)

// String returns the name used in TIDINGS_ROUTES.
func (c Class) String() string {
	if c < Local || c > Durable {
		return fmt.Sprintf("Class(%d)", uint8(c))
	}
	return [...]string{Local: "local", Live: "live", Durable: "durable"}[c]
}

// Ack is who has accepted a durable event once Publish has returned nil.
type Ack uint8

const (
	// AckBroker: the broker has acknowledged it.
	AckBroker Ack = iota
	// AckSpool: it is on this machine's disk, in Options.SpoolDir, from where it is sent
	// to the broker. That takes a fraction of the time.
	AckSpool
)

// SubscribeOptions configure a subscription; nil means the defaults: one process
// of the app handles each event, by one worker, from a queue of 1024.
type SubscribeOptions struct {
	// Name is what the subscription is called in logs, errors and by the Debugger,
	// besides the line that made it. Default: none.
	Name string
	// Group is a set of processes of which one handles each event. Default:
	// Options.App.
	Group string
	// Broadcast: every process handles each event. Excludes Group and Durable.
	Broadcast bool
	// Durable: events wait for the group while it is away, and are retried as Retry
	// says; what is given up becomes a dead letter. A durable route must cover the
	// pattern.
	Durable bool
	// Inline: the handler runs on the goroutine that publishes or delivers. For
	// what is short and must not be queued, like metrics. Excludes Queue, Overflow,
	// BlockTimeout, Workers, Key, Retry, HungAfter and Durable. Handlers that publish
	// what they handle, without end, fail before the stack overflows.
	Inline bool
	// Prepend puts an inline subscription before those that are there. Order is:
	// first those that name the topic, then those with a wildcard; in each, the last
	// prepended first, then the oldest first.
	Prepend bool
	// Filter narrows the pattern: the handler gets only events for whose topic it
	// returns true. It is asked at each event, on the publisher's goroutine, so it can
	// silence a subscription for a while; an instrumented block asks when it begins.
	// For a regular expression: regexp.MustCompile(…).MatchString, with pattern ">".
	Filter func(topic string) bool
	// Start is called before an instrumented block, with the event as far as it is
	// known, and the context it returns is the block's and the handler's: a tracer
	// opens its span here and ends it in the handler. It makes the event known as
	// parent to what is published inside; see [Parent]. Needs Inline.
	Start func(ctx context.Context, e Event) context.Context
	// BatchSize and BatchWait are for SubscribeBatch: how many events at most (default
	// 100, or Queue if that is less), and how long to wait for more after the first
	// (default: not at all).
	BatchSize int
	BatchWait time.Duration
	// HungAfter is how long a queued handler may run before it is reported, with its
	// stack, in the log and by the Debugger. Default: 10 s, or Timeout and one second
	// if that is longer.
	HungAfter time.Duration
	// Queue bounds the events that wait for a handler. Default 1024. A worker takes up
	// to a sixteenth of that at a time. A durable subscription takes no more in advance
	// than its handlers do in 100 ms, as measured, and never more than Queue.
	Queue int
	// Overflow says what a full queue does. Default: Block. Durable subscriptions
	// take no more than their queue holds, so theirs never overflows.
	Overflow Overflow
	// BlockTimeout is how long Block waits; other policies do not. Default 5 s.
	BlockTimeout time.Duration
	// Workers is how many handlers may run at once in this process. Default 1, which
	// keeps the order of each publisher.
	Workers int
	// Key keeps the order of events with equal keys when Workers is above 1. On a
	// durable subscription it does so for retries too, also with one worker: an event
	// that is to be retried holds its key, later ones of the key wait behind it, and
	// other keys pass. Without Key a retried event comes again after those that came
	// meanwhile. Batch handlers hold no keys.
	Key func(Event) string
	// Timeout cancels the context of one attempt of a handler. Default: none.
	Timeout time.Duration
	// Retry says when a handler that failed is called again.
	Retry Retry
}

// Overflow is what a full queue does with one more event. Whatever is dropped is
// counted, and logged once per burst.
type Overflow uint8

const (
	// Block makes Publish wait up to BlockTimeout, then fail with ErrOverflow. A
	// handler that publishes into its own full queue fails at once.
	Block Overflow = iota
	// DropOldest drops what has waited longest.
	DropOldest
	// DropNewest drops the new event.
	DropNewest
	// Fail makes Publish fail with ErrOverflow at once.
	Fail
)

// Retry says how often and how fast a failed handler is called again with the
// same event. For local and live events the worker waits, and what is behind it
// waits too: that keeps the order. More Workers, with a Key, let others pass.
type Retry struct {
	// Attempts bounds how often the handler is called. Default: 1 for local and
	// live events; 100 for durable ones, which with the default waits takes some 45
	// minutes. A durable event that has failed so often becomes a dead letter.
	//
	// Each process counts the failures it has seen, and what the broker counts,
	// deliveries, are none. So a durable event gets never less attempts than that,
	// and more if several processes of the group share its failures, or one is
	// restarted meanwhile.
	Attempts int
	// Deaths bounds how many processes may die while their handler works on one
	// durable event, which then becomes a dead letter without having failed. It is
	// counted from the sixth delivery that no failure explains. Default: 3.
	Deaths int
	// Backoff is the wait before the second attempt; it doubles up to MaxBackoff.
	// Defaults: 100 ms and 30 s.
	Backoff, MaxBackoff time.Duration
}

// delay is the wait after the given failed attempt, the first being 1.
func (r Retry) delay(attempt int) time.Duration {
	d := r.Backoff
	for ; attempt > 1 && d < r.MaxBackoff; attempt-- {
		d *= 2
	}
	return min(d, r.MaxBackoff)
}

func (o Options) withDefaults() (Options, error) {
	if o.App == "" {
		o.App = os.Getenv("TIDINGS_APP")
	}
	if o.App == "" {
		o.App = appFromExecutable()
	}
	if o.Instance == "" {
		o.Instance = nonce()
	}
	if o.Prefix == "" {
		o.Prefix = os.Getenv("TIDINGS_PREFIX")
	}
	if o.SpoolDir == "" {
		o.SpoolDir = os.Getenv("TIDINGS_SPOOL_DIR")
	}
	if limit := os.Getenv("TIDINGS_SPOOL_MAX"); o.SpoolMax == 0 && limit != "" {
		var err error
		if o.SpoolMax, err = bytesize.Parse(limit); err != nil {
			return o, &Error{Op: "new", Err: fmt.Errorf("TIDINGS_SPOOL_MAX is %q: %w", limit, err)}
		}
	}
	if o.SpoolMax < 0 {
		return o, &Error{Op: "new", Err: fmt.Errorf("Options.SpoolMax is %d: give a number of bytes, or 0 for 1 GiB", o.SpoolMax)}
	}
	if o.Codec == nil {
		o.Codec = JSON
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for field, name := range map[string]string{"App": o.App, "Instance": o.Instance} {
		if err := checkName(name); err != nil {
			return o, &Error{Op: "new", Err: fmt.Errorf("the field Options.%s is %q: %w", field, name, err)}
		}
	}
	if o.Prefix != "" {
		if err := topic.Check(o.Prefix); err != nil {
			return o, &Error{Op: "new", Err: fmt.Errorf("Options.Prefix: %w", err)}
		}
	}
	env, err := parseRoutes(os.Getenv("TIDINGS_ROUTES"))
	if err != nil {
		return o, &Error{Op: "new", Err: fmt.Errorf("TIDINGS_ROUTES: %w", err)}
	}
	for i, r := range o.Routes {
		if err := r.check(); err != nil {
			return o, &Error{Op: "new", Err: fmt.Errorf("Options.Routes[%d]: %w", i, err)}
		}
	}
	o.Routes = append(env, o.Routes...)
	return o, nil
}

func (r Route) check() error {
	if err := topic.CheckPattern(r.Pattern); err != nil {
		return err
	}
	if r.Class < Local || r.Class > Durable {
		return fmt.Errorf("the field Class is %v; it must be Local, Live or Durable", r.Class)
	}
	if r.Ack > AckSpool || (r.Ack == AckSpool && r.Class != Durable) {
		return fmt.Errorf("the field Ack: AckSpool is for durable routes, not for %v", r.Class)
	}
	return nil
}

// parseRoutes reads "pattern=class" pairs joined by commas.
func parseRoutes(s string) ([]Route, error) {
	var routes []Route
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		pattern, class, _ := strings.Cut(pair, "=")
		r := Route{Pattern: strings.TrimSpace(pattern)}
		switch strings.TrimSpace(class) {
		case "local":
			r.Class = Local
		case "live":
			r.Class = Live
		case "durable":
			r.Class = Durable
		case "durable+spool":
			r.Class, r.Ack = Durable, AckSpool
		default:
			return nil, fmt.Errorf("%q: want PATTERN=local, PATTERN=live, PATTERN=durable or PATTERN=durable+spool", pair)
		}
		if err := r.check(); err != nil {
			return nil, err
		}
		routes = append(routes, r)
	}
	return routes, nil
}

func (o *SubscribeOptions) withDefaults(b *Bus, batch bool) (SubscribeOptions, error) {
	var s SubscribeOptions
	if o != nil {
		s = *o
	}
	if err := s.check(); err != nil {
		return s, err
	}
	if batch && s.Inline {
		return s, errors.New("SubscribeOptions.Inline handles one event at a time: leave it out for SubscribeBatch")
	}
	if s.Group == "" && !s.Broadcast {
		s.Group = b.opts.App
	}
	if s.Queue == 0 {
		s.Queue = 1024
	}
	if s.BlockTimeout == 0 {
		s.BlockTimeout = 5 * time.Second
	}
	s.Workers = max(s.Workers, 1)
	if s.HungAfter == 0 {
		s.HungAfter = max(10*time.Second, s.Timeout+time.Second)
	}
	if s.BatchSize == 0 {
		s.BatchSize = min(100, s.Queue)
	}
	if s.BatchSize > s.Queue {
		return s, fmt.Errorf("SubscribeOptions.BatchSize %d would never be reached: the queue holds %d events: raise Queue, or lower BatchSize", s.BatchSize, s.Queue)
	}
	if s.Durable && s.Retry.Attempts == 0 {
		s.Retry.Attempts = 100
	}
	if s.Retry.Deaths == 0 {
		s.Retry.Deaths = 3
	}
	if s.Retry.Backoff == 0 {
		s.Retry.Backoff = 100 * time.Millisecond
	}
	if s.Retry.MaxBackoff == 0 {
		s.Retry.MaxBackoff = max(30*time.Second, s.Retry.Backoff)
	}
	return s, nil
}

func (o *SubscribeOptions) check() error {
	if err := checkLabel(o.Name); err != nil {
		return fmt.Errorf("SubscribeOptions.Name %.100q: %w", o.Name, err)
	}
	if o.Group != "" {
		if err := checkName(o.Group); err != nil {
			return fmt.Errorf("SubscribeOptions.Group %q: %w", o.Group, err)
		}
	}
	for field, n := range map[string]int64{"Queue": int64(o.Queue), "Workers": int64(o.Workers),
		"BlockTimeout": int64(o.BlockTimeout), "BatchSize": int64(o.BatchSize), "BatchWait": int64(o.BatchWait), "HungAfter": int64(o.HungAfter),
		"Timeout": int64(o.Timeout), "Retry.Attempts": int64(o.Retry.Attempts),
		"Retry.Deaths": int64(o.Retry.Deaths), "Retry.Backoff": int64(o.Retry.Backoff), "Retry.MaxBackoff": int64(o.Retry.MaxBackoff)} {
		if n < 0 {
			return fmt.Errorf("SubscribeOptions.%s is negative", field)
		}
	}
	if err := o.checkInline(); err != nil {
		return err
	}
	switch {
	case o.Overflow > Fail:
		return fmt.Errorf("SubscribeOptions.Overflow: no such policy: %d", o.Overflow)
	case o.Broadcast && o.Group != "":
		return fmt.Errorf("SubscribeOptions.Broadcast reaches every process, Group %q one of them: choose one", o.Group)
	case o.Broadcast && o.Durable:
		return fmt.Errorf("SubscribeOptions.Durable needs a group for the events to wait for: leave out Broadcast")
	case !o.Durable && o.Retry.Deaths != 0:
		return fmt.Errorf("SubscribeOptions.Retry.Deaths is counted by a broker: set Durable, or leave it out")
	case o.Key != nil && o.Workers <= 1 && !o.Durable:
		return fmt.Errorf("SubscribeOptions.Key keeps order between workers: set Workers above 1, or leave it out")
	case o.BlockTimeout != 0 && o.Overflow != Block:
		return fmt.Errorf("SubscribeOptions.BlockTimeout is how long Block waits: leave it out, or Overflow")
	case (o.Retry.Backoff != 0 || o.Retry.MaxBackoff != 0) && !o.retries():
		return fmt.Errorf("SubscribeOptions.Retry.Backoff and MaxBackoff are waits before another attempt: set Retry.Attempts above 1")
	case o.Retry.MaxBackoff != 0 && o.Retry.MaxBackoff < o.Retry.Backoff:
		return fmt.Errorf("SubscribeOptions.Retry.MaxBackoff is below Backoff: raise it")
	}
	return nil
}

// retries reports whether a handler that failed may be called again.
func (o *SubscribeOptions) retries() bool {
	return o.Retry.Attempts > 1 || (o.Durable && o.Retry.Attempts == 0)
}

// checkInline refuses what means something only inline, or only with a queue.
func (o *SubscribeOptions) checkInline() error {
	if !o.Inline {
		switch {
		case o.Prepend:
			return fmt.Errorf("SubscribeOptions.Prepend orders inline subscriptions: set Inline")
		case o.Start != nil:
			return fmt.Errorf("SubscribeOptions.Start runs where the block does: set Inline")
		}
		return nil
	}
	for field, set := range map[string]bool{"Queue": o.Queue != 0, "Overflow": o.Overflow != Block, "BlockTimeout": o.BlockTimeout != 0,
		"Workers": o.Workers > 1, "Key": o.Key != nil, "Retry": o.Retry != Retry{}} {
		if set {
			return fmt.Errorf("SubscribeOptions.%s is of a queue, and Inline has none: leave out one of them", field)
		}
	}
	switch {
	case o.HungAfter != 0:
		return fmt.Errorf("SubscribeOptions.HungAfter is for handlers with a worker; what hangs inline holds up its publisher: leave out one of them")
	case o.Durable:
		return fmt.Errorf("SubscribeOptions.Durable settles events from a queue: leave out Inline")
	}
	return nil
}

// maxLabel bounds a subscription's name, in bytes.
const maxLabel = 200

// checkLabel holds for what people read and the broker does not.
func checkLabel(s string) error {
	switch {
	case len(s) > maxLabel:
		return fmt.Errorf("it has %d bytes; at most %d are allowed", len(s), maxLabel)
	case !utf8.ValidString(s):
		return errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%q is not allowed: it does not print", r)
		}
	}
	return nil
}

// checkName holds for apps, instances and groups, which become parts of a URL
// and of names on the broker.
func checkName(s string) error {
	if err := topic.Check(s); err != nil {
		return err
	}
	if i := strings.IndexAny(s, "./\\|,"); i >= 0 {
		return fmt.Errorf("%q is not allowed in a name", s[i])
	}
	return nil
}

func appFromExecutable() string {
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("./\\|,*>$ \t", r) {
			return '-'
		}
		return r
	}, name)
}

// nonce is 80 random bits as 16 characters fit for a name.
func nonce() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return strings.ToLower(base32.HexEncoding.EncodeToString(b[:]))
}
