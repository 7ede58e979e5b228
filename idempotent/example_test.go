package idempotent_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/idempotent"
)

// The same event comes twice, and is written once.
func ExampleTable_Handler() {
	ctx := context.Background()
	db, err := sql.Open("sqlite", ":memory:") // a driver of your choice
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // of :memory: each connection has its own

	inbox := idempotent.Table{Dialect: idempotent.SQLite}
	if _, err := db.Exec(inbox.Schema() + "; CREATE TABLE invoices (order_id TEXT)"); err != nil {
		fmt.Println(err)
		return
	}
	handler := inbox.Handler(db, "billing", func(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO invoices VALUES (?)", e.Payload())
		return err
	})
	// bus.Subscribe(ctx, "order.placed", handler, &tidings.SubscribeOptions{Durable: true})
	e := tidings.NewEvent(tidings.EventFields{Topic: "order.placed", Payload: "A-17"})
	fmt.Println(handler(ctx, e), handler(ctx, e))

	var n int
	err = db.QueryRow("SELECT COUNT(*) FROM invoices").Scan(&n)
	fmt.Println(n, "invoice", err)
	// Output:
	// <nil> <nil>
	// 1 invoice <nil>
}
