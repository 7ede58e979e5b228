// Package idempotent keeps a handler from doing its work twice.
//
// Durable events are delivered at least once: again when a process died before
// its acknowledgement, when the broker lost one, when an event is published once
// more or redriven. A handler whose work may not be repeated has to know what it
// has done, and that knowledge must be kept where the work is.
//
// This package is for work that is done in a SQL database. The id of each event
// is inserted into a table in the transaction that holds the handler's own
// writes:
//
//	inbox := idempotent.Table{Dialect: idempotent.PostgreSQL}
//	bus.Subscribe(ctx, "order.placed", inbox.Handler(db, "billing",
//		func(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
//			_, err := tx.ExecContext(ctx, "INSERT INTO invoices …")
//			return err
//		}), &tidings.SubscribeOptions{Durable: true})
//
// What it promises:
//
//   - The handler's writes and the id are committed together, or neither is. A
//     process that is killed anywhere, the commit included, leaves both or none;
//     the event comes again, and is handled only in the second case.
//   - Of two processes that handle one event at the same time, one waits for the
//     other's commit or gets the database's error, and does not commit a second
//     time.
//   - It holds for as long as the id is in the table: see [Table.Forget].
//   - It holds for what is written by that transaction, and for nothing else: a
//     mail that the handler sends is sent again when the commit fails.
//
// For work that is done elsewhere, package natskv keeps the ids in JetStream;
// its promise is a weaker one. This package imports no driver and nothing of
// NATS.
package idempotent
