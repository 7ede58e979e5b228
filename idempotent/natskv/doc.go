// Package natskv keeps a handler from doing its work twice, by ids kept in a
// JetStream key-value bucket. It is for work that no SQL transaction holds: a
// mail, a call of somebody else's API. For work in a database package idempotent
// promises more.
//
//	nc, err := nats.Connect(url)
//	js, err := jetstream.New(nc)
//	seen, err := natskv.Open(ctx, js, nil)
//	bus.Subscribe(ctx, "order.placed", seen.Handler("mail", sendMail), &tidings.SubscribeOptions{Durable: true})
//
// Before the handler runs, the (group, event id) is claimed in the bucket; when
// it has returned nil the claim is turned into a mark, which stays for
// Options.Window; when it has failed the claim is released. What it promises:
//
//   - An event that is marked is not handled again while the mark is kept.
//   - While a claim holds, no other process runs the handler with that event: it
//     waits. A claim holds for Options.Lease since it was last renewed, by the
//     server's clock; it is renewed while the handler runs.
//   - A claim that could not be renewed in time, because the server was away or
//     the process stood still, may be taken by another process. The handler's
//     context is cancelled then, with [ErrLeaseLost] as its cause; a handler that
//     goes on all the same may do the work a second time.
//   - A process that is killed leaves its claim. Another waits until the lease
//     has ended, and then handles the event: so what was done between the effect
//     and the mark is done again. No bucket can prevent that.
//   - A handler that returns an error, or panics, has its claim released at once.
//     What it had done by then is done again when it is retried.
//   - When the bucket does not answer before the handler, it does not run, and
//     the event is retried. When it does not answer after it, the event is not
//     marked and counts as handled: that is logged and counted in
//     [Store.Unmarked].
//
// # The connection
//
// It is the application's own, not that of the bus: which server, account and
// bucket hold the ids is the application's to choose, and a handler that waits
// for the bucket does not hold up the bus. It needs nats-server 2.11 or newer.
package natskv
