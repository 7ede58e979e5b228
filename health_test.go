package tidings_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// problem waits until there is one that says all of it.
func problem(t *testing.T, b *tidings.Bus, parts ...string) {
	t.Helper()
	var h tidings.Health
	defer func() {
		if t.Failed() {
			t.Logf("%+v", h)
		}
	}()
	testkit.Until(t, 20*time.Second, func() bool {
		h = b.Debugger().Health()
		for _, p := range h.Problems {
			line := p.String()
			missing := false
			for _, part := range parts {
				missing = missing || !strings.Contains(line, part)
			}
			if !missing {
				return true
			}
		}
		return false
	})
	if h.OK {
		t.Errorf("OK with %v", h.Problems)
	}
}

func healthy(t *testing.T, b *tidings.Bus) {
	t.Helper()
	testkit.Until(t, 20*time.Second, func() bool { h := b.Debugger().Health(); return h.OK && len(h.Problems) == 0 })
}

// What does not work is named, with what to do, until it works again.
func TestHealth(t *testing.T) {
	srv := testkit.Server(t)
	b := process(t, srv.URL(), "shop", tidings.Options{Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	hold := make(chan struct{})
	subscribe(t, b, "order.*", func(context.Context, tidings.Event) error { <-hold; return nil }, &tidings.SubscribeOptions{Durable: true, Name: "invoices", HungAfter: 20 * time.Millisecond})
	problem(t, b, `"invoices" to order.*`, "not proven")
	if err := b.Ready(deadline(t)); err != nil {
		t.Fatal(err)
	}
	healthy(t, b)

	if err := b.Publish(deadline(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	problem(t, b, "does not return", "order.placed", "since", "invoices")
	close(hold)
	healthy(t, b)

	srv.Shutdown()
	problem(t, b, "no connection", srv.URL(), "since", "tried again", "0 events wait")
	srv.Start()
	healthy(t, b)

	drain(t, b)
	problem(t, b, "drains, or has ended")
}
