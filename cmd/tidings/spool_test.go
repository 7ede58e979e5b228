//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/natsbus"
)

// spool APP N [BYTES] is the life of a process of the app that publishes N events, of
// that many bytes, while there is no broker, and leaves them in $WORK/spool.
func spoolAway(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: spool APP N [BYTES]")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	size := 1
	if len(args) > 2 {
		size, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	a, err := natsbus.Open(ctx, "nats://127.0.0.1:1", adapter.Config{App: args[0], Durable: []string{"order.>"}, SpoolDir: ts.MkAbs("spool")})
	ts.Check(err)
	for i := range n {
		ts.Check(a.Publish(ctx, &adapter.Message{ID: fmt.Sprintf("%s-%d", args[0], i), Topic: "order.placed", Source: "//" + args[0] + "/1",
			ContentType: "application/json", Data: bytes.Repeat([]byte("7"), size)}, adapter.Durable))
	}
	ts.Check(a.Close())
}
