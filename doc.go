// Package tidings is ActiveSupport::Notifications for Go, made distributed:
// application code instruments and publishes named events, subscribers in the
// same process get them, and, with no change to that code, so do subscribers in
// other processes once a transport is attached.
//
//	var Placed = tidings.NewTopic[Order]("order.placed")
//
//	Placed.Subscribe(ctx, func(ctx context.Context, e tidings.Event, o Order) error {
//		return charge(ctx, o)
//	}, nil)
//
//	err := Placed.Publish(ctx, Order{ID: "7"})
//
// This package imports the standard library only. Transports are packages of
// their own (natsbus), imported by main for their URL scheme.
//
// # Topics
//
// Topics are tokens joined by dots, as NATS subjects are: order.placed. A pattern
// may have "*" for one token and ">" at the end for one or more. Topics that
// begin with "tidings." are the bus's own events and never leave the process.
//
// # Delivery
//
// A route gives each topic a class. Local events reach this process. Live ones
// also reach the processes connected now, at most once. Durable ones are stored
// by the broker and wait for each durable group, at least once, with an id to
// know duplicates by. Never is anything delivered "exactly once".
//
// Without options a subscription means: each event is handled once per app. If
// the publishing process has the subscription, it takes the event itself;
// otherwise one process of the app does. SubscribeOptions.Broadcast reaches every
// process. Several subscriptions of one process with the same group and pattern
// are one member of the group, and each of them runs.
//
// Publish returns nil if and only if every route and queue has accepted the
// event. The transport comes first, then local subscribers. What cannot be
// accepted is an error; what is dropped by a policy is counted and logged.
//
// [Bus.Request] publishes an event and waits for the first [Reply] of a handler, here
// or, for a live topic, in any process.
//
// [EventFields] may delay an event, or say when it becomes of no use: both for
// topics with a durable route, since the broker keeps it. Delayed events reach
// everybody when they are due, are never early, and keep no order. An event that
// has expired before a durable group's handler is called is not handled, but
// counted and logged.
//
// # Promises
//
//	                     local               live                       durable
//	reaches              this process        processes connected now    every durable group, also later ones
//	Publish is nil when  queues accepted     in the bounded buffer      the broker acknowledged it
//	broker away          unaffected          buffered, then an error    spooled on disk; without a SpoolDir Publish waits
//	subscriber away      n/a                 not delivered              waits
//	deploy by hand-over  n/a                 0 lost, 0 doubled          0 lost, 0 redelivered but what a deadline cut
//	kill -9, subscriber  n/a                 what it had taken is lost  redelivered
//	kill -9, publisher   n/a                 what was not flushed       nothing for which Publish was nil
//	kill -9, broker      n/a                 as an outage               nothing accepted is lost
//	handler's error      reported            reported                   retried, then a dead letter
//
// README.md has the table in full.
//
// # Ordering
//
// Events of one publisher reach one subscription in order, as long as it has one
// worker, or per SubscribeOptions.Key with several. A publisher is whoever waits
// for one Publish before the next. A durable event that is retried is passed by
// later ones; with Key it holds its key until it was handled or given up. Inline
// subscriptions of one topic run in a fixed order, see SubscribeOptions.Prepend. All
// run though one fails.
//
// # Instrumenting
//
// Instrument runs a block and publishes its duration, by the monotonic clock, and
// its error or panic; it returns exactly what the block did. SubscribeOptions.Start
// sees blocks begin, and may give the block a context. What is published inside
// knows its [Parent]. [WithTags] sends values along with a context. Who listens is
// fixed when the block begins.
//
// # Handlers
//
// Handlers run on their subscription's workers, from a bounded queue, unless
// Inline, and get the publisher's context values, not its cancellation. Inline
// handlers get the publisher's context as it is. An error is reported, and retried
// as Retry says. A panic, or a handler that never returns, stays in its own
// subscription; the latter is named in the log with its stack. Inline handlers that
// publish what they handle, without end, fail before the stack is full. Every
// method of the bus may be called inside every handler, and wherever else the bus
// calls user code: no lock of the bus is held meanwhile.
//
// # Dead letters
//
// A durable event that its handler gives up, by [Permanent] or by Retry.Attempts
// failures, that cannot be decoded, or that its processes die of is kept as a dead
// letter, with its bytes, the error, the stack of a panic and the counts, before the
// broker is told that it is done. Package deadletter and "tidings dlq" show, redrive
// and drop them; "tidings.dead" tells of each. docs/durable.md has every fate of an
// event.
//
// # Publishing much
//
// Durable events of callers that wait at once are stored together where that is faster,
// which is measured. [Bus.PublishAsync] publishes without waiting for each, and
// [Bus.Flush] waits for all. With Options.SpoolDir, events are kept on this machine's
// disk while the broker is away, and with [AckSpool] at any time. docs/publishing.md has
// every outcome.
//
// # Replay
//
// Package replay and "tidings replay" give one durable group stored events once
// more, from a sequence, a time or the start, and by pattern; nobody else gets
// them. docs/replay.md says how.
//
// # Back-pressure
//
// A full queue makes its publishers wait, or drops, as SubscribeOptions.Overflow
// says. Nothing is dropped without a counter, a line in the log and a cause. Topics
// that nobody listens to cost one look-up and no memory.
//
// # Shutdown
//
// Drain stops taking, finishes what was taken, confirms the acknowledgements,
// flushes and closes; its error names what a deadline cut, durable events one by
// one in a [LeftError]. Close ends at once.
//
// # Debugging and testing
//
// [Bus.Debugger] shows topics, subscriptions and where they were made, queues,
// latencies and hung handlers, and lets one watch events pass; all of it can be
// written as JSON. Package tidingstest has a bus for tests. Packages subscriber,
// report and redact have what ActiveSupport has beside its notifications;
// docs/notifications.md compares both, rule by rule.
//
// # Errors
//
// Every error is an *[Error] and wraps one of the few sentinels where a program
// may want to tell causes apart. Errors without a caller go to Options.OnError
// and to the log.
package tidings
