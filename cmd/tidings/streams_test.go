//go:build unix

package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/natsbus"
)

const scriptPatience = 20 * time.Second

// connected opens a connection as an app would have it.
func connected(ts *testscript.TestScript, app string, durable ...string) adapter.Adapter {
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	a, err := natsbus.Open(ctx, ts.Getenv("TIDINGS_URL"), adapter.Config{App: app, Durable: durable})
	ts.Check(err)
	ts.Defer(func() { _ = a.Close() })
	return a
}

// group APP PATTERN... makes processes of an app that take what is durable, one
// for each pattern, until the script ends or ungroup.
func group(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: group APP PATTERN...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	for _, pattern := range args[1:] {
		s, err := connected(ts, args[0]).Subscribe(ctx, adapter.Spec{Pattern: pattern, Group: args[0], Durable: true,
			Deliver: func(d adapter.Delivery) { d.Settle.Ack(func(error) {}) }})
		ts.Check(err)
		ts.Check(s.Ready(ctx))
		ts.Value(openedKey{}).(*opened).groups[args[0]+" "+pattern] = s
	}
}

// ungroup APP PATTERN... ends them.
func ungroup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: ungroup APP PATTERN...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	for _, pattern := range args[1:] {
		ts.Check(ts.Value(openedKey{}).(*opened).groups[args[0]+" "+pattern].Close(ctx))
	}
}

// opened is what the commands of one script share.
type opened struct {
	groups map[string]adapter.Subscription
	load   *load
}

type openedKey struct{}

func setup(e *testscript.Env) error {
	e.Values[openedKey{}] = &opened{groups: map[string]adapter.Subscription{}}
	return nil
}

// publish APP TOPIC N [ID] publishes durable events, ID0 and so on; the app's route is
// order.>.
func publish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: publish APP TOPIC N [ID]")
	}
	id := fmt.Sprint(time.Now().UnixNano(), "-")
	if len(args) > 3 {
		id = args[3]
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	a := connected(ts, args[0], "order.>")
	for i := range n {
		ts.Check(a.Publish(ctx, &adapter.Message{ID: fmt.Sprint(id, i), Topic: args[1], Source: "//" + args[0] + "/1", Data: []byte("1")}, adapter.Durable))
	}
}

// hubat FILE takes where the hub is from what it has printed.
func hubAt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hubat FILE")
	}
	await(ts, false, []string{args[0], "^ready"})
	var url string
	_, err := fmt.Sscanf(ts.ReadFile(args[0]), "url %s", &url)
	ts.Check(err)
	ts.Setenv("TIDINGS_URL", url)
}
