//go:build unix

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/natsbus"
	"github.com/tidings-go/tidings/worker"
)

// runClerk is a worker that notes each durable event that it handles, and first which
// broker it was given.
func runClerk() {
	if err := clerk(); err != nil {
		fmt.Fprintln(os.Stderr, "clerk:", err)
		os.Exit(1)
	}
}

func clerk() error {
	journal, err := os.OpenFile(os.Getenv("CLERK_JOURNAL"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	note := func(what string) error {
		_, err := fmt.Fprintln(journal, os.Getpid(), what)
		return err
	}
	bus, err := tidings.New(tidings.Options{App: "clerk", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return err
	}
	return worker.Run(context.Background(), worker.Options{Bus: bus, Setup: func(ctx context.Context) error {
		if err := note("url=" + os.Getenv("TIDINGS_URL")); err != nil {
			return err
		}
		if err := bus.Attach(ctx, ""); err != nil {
			return err
		}
		_, err := bus.Subscribe(ctx, "order.*", func(_ context.Context, e tidings.Event) error { return note(e.ID()) }, &tidings.SubscribeOptions{Durable: true})
		return err
	}})
}
