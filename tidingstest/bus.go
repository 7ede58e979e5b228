package tidingstest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/tidings-go/tidings"
)

// defaultTimeout is far above what a busy machine needs: it turns a hang into a
// failure that names it.
const defaultTimeout = 5 * time.Second

// Options configure a [Bus]; the zero value is what most tests want.
type Options struct {
	// Bus is passed on to [tidings.New]: Strict, Routes, Middleware and the rest.
	// App defaults to the test's name, Logger to the test's log. AlwaysEncode is on
	// whatever stands here. Handlers' errors go to OnError and are collected too.
	Bus tidings.Options
	// NoEncode gives local subscribers the very payloads that are published. Without
	// it they get what a remote subscriber would.
	NoEncode bool
	// Timeout bounds Settle, the drain at the end, and what the bus's recorders wait
	// for. Default 5 s; all are shorter if the test's own deadline is near.
	Timeout time.Duration
}

// Bus is a bus for one test, ended and examined when that ends. Give code under
// test the field Bus.
type Bus struct {
	*tidings.Bus
	t       testing.TB
	timeout time.Duration
	calls   calls
	errs    failures
	log     *output

	dropsAllowed atomic.Bool
}

// kits finds the Bus of a bus: Record is given the latter. Entries go when their
// test ends.
var kits sync.Map // *tidings.Bus → *Bus

// New makes a bus for the test; at most one Options may be given. It fails the
// test at once if they are wrong. When the test and its later clean-ups are over,
// the bus is drained and the test fails for each of:
//
//   - a handler that does not end in time, with its stack and the place of its
//     subscription, and events that are left;
//   - an error that went to OnError and that neither [Bus.ExpectError] nor
//     [Bus.AllowErrors] knows, and an expected one that did not come;
//   - events that were dropped, unless [Bus.AllowDrops] was called.
//
// A payload that cannot be encoded is an error of Publish, and of Instrument one
// that goes to OnError. The environment (TIDINGS_ROUTES, …) counts as for any bus.
func New(t testing.TB, o ...Options) *Bus {
	t.Helper()
	var opts Options
	switch {
	case len(o) > 1:
		t.Fatalf("tidingstest.New: %d Options given; at most one is taken", len(o))
	case len(o) == 1:
		opts = o[0]
	}
	b := &Bus{t: t, timeout: opts.Timeout, log: &output{t: t}}
	if b.timeout <= 0 {
		b.timeout = defaultTimeout
	}
	var err error
	if b.Bus, err = tidings.New(b.options(opts)); err != nil {
		t.Fatalf("tidingstest.New: %v", err)
	}
	kits.Store(b.Bus, b)
	t.Cleanup(b.finish)
	return b
}

// options adds to the test's own what the kit needs to see.
func (b *Bus) options(opts Options) tidings.Options {
	o := opts.Bus
	o.AlwaysEncode = !opts.NoEncode
	if o.App == "" {
		o.App = appName(b.t.Name())
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	theirs := o.OnError
	o.OnError = func(ctx context.Context, err error) {
		b.errs.add(err)
		if theirs != nil {
			theirs(ctx, err)
		}
	}
	o.Middleware = append([]func(tidings.Handler) tidings.Handler{b.watch}, o.Middleware...)
	return o
}

// appName makes a test's name one that an app may have.
func appName(test string) string {
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune(`./\|,*>$`, r) || unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '-'
		}
		return r
	}, test)
	if r := []rune(name); len(r) > 100 {
		name = string(r[:100])
	}
	if name == "" || name == "_INBOX" {
		return "test"
	}
	return name
}

// Record is the function [Record] for this bus and its test.
func (b *Bus) Record(pattern string) *Recorder {
	b.t.Helper()
	return Record(b.t, b.Bus, pattern)
}

// limit is how long the test may wait: d, or less if the test's deadline is near,
// so that what is wrong can still be said.
func limit(t testing.TB, d time.Duration) (left time.Duration) {
	left = d
	timed, ok := t.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return left
	}
	defer func() { _ = recover() }() // in a synctest bubble Deadline panics, and no deadline counts
	if at, ok := timed.Deadline(); ok {
		left = max(min(d, time.Until(at)*9/10), 0)
	}
	return left
}
