//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/worker"
)

// failing is an application for scripts:
//
//	failing publish TOPIC ID…       publishes
//	failing handle GROUP N [fixed]  handles until N events were handled or have died
//	failing serve VERSION           is a worker: good, broken (does not boot) or refusing (fails every event)
//
// Its handler cannot handle ids that begin with "bad", and panics at "panic",
// unless it is fixed.
func failing(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if args[0] == "serve" {
		return serve(args[1])
	}
	app := "shop"
	if args[0] == "handle" {
		app = args[1]
	}
	bus, err := tidings.Open(ctx, "", tidings.Options{App: app, Instance: "one", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return err
	}
	if args[0] == "publish" {
		for _, id := range args[2:] {
			err = errors.Join(err, bus.Publish(tidings.WithTags(ctx, map[string]any{"tenant": "acme"}), args[1], map[string]string{"id": id}))
		}
		return errors.Join(err, bus.Drain(ctx))
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	outcomes := make(chan string, n)
	_, err1 := bus.Subscribe(ctx, "tidings.dead", func(_ context.Context, e tidings.Event) error {
		outcomes <- "died " + e.Payload().(tidings.DeadLettered).Letter
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	_, err2 := bus.Subscribe(ctx, "order.*", func(_ context.Context, e tidings.Event) error {
		var order struct{ ID string }
		if err := e.Decode(&order); err != nil {
			return tidings.Permanent(err)
		}
		if len(args) < 4 {
			switch {
			case order.ID == "panic":
				panic("no customer in " + order.ID)
			case strings.HasPrefix(order.ID, "bad"):
				return errors.New("no customer " + order.ID)
			}
		}
		outcomes <- fmt.Sprint("handled ", order.ID, " from ", e.Source(), " attempt ", e.Attempt())
		return nil
	}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Attempts: 3, Backoff: time.Millisecond}})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for range n {
		select {
		case s := <-outcomes:
			fmt.Println(s)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return bus.Drain(ctx)
}

func serve(version string) error {
	bus, err := tidings.New(tidings.Options{App: "billing", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		return err
	}
	return worker.Run(context.Background(), worker.Options{Bus: bus, Setup: func(ctx context.Context) error {
		if version == "broken" {
			return errors.New("cannot reach the database")
		}
		if err := bus.Attach(ctx, ""); err != nil {
			return err
		}
		_, err := bus.Subscribe(ctx, "order.*", func(context.Context, tidings.Event) error {
			if version == "refusing" {
				return errors.New("no handler for this schema")
			}
			return nil
		}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Backoff: time.Millisecond}})
		return err
	}})
}

func runFailing() {
	if err := failing(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
