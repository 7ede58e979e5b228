package tidingstest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
)

// output is the test's log until the test ends; then it takes and drops: the
// testing package panics if it is written to.
type output struct {
	mu   sync.Mutex
	t    testing.TB
	over bool
}

// Write is called by the logger, on any goroutine.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return len(p), nil
	}
	return o.t.Output().Write(p)
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
}

// drops are the first drops of each burst, as the bus logs them: a Snapshot has
// exact counts, but none of subscriptions that have ended.
type drops struct {
	mu      sync.Mutex
	all     []string
	allowed bool
	over    bool // the deadline of the drain has passed: its own report names what is lost
}

// AllowDrops says that dropped events are no failure of this test: for tests of
// Overflow, or that stop a subscription with work in its queue.
func (b *Bus) AllowDrops() {
	b.drops.mu.Lock()
	defer b.drops.mu.Unlock()
	b.drops.allowed = true
}

func (d *drops) note(r slog.Record) {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	so, dropped := attrs["dropped_so_far"]
	if !dropped {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over {
		what := attrs["topic"] // of one event; of what a whole queue held there is a count
		if what == "" {
			what = attrs["events"] + " events"
		}
		d.all = append(d.all, fmt.Sprintf("%s by the subscription %s of group %q, %s so far: %s",
			what, attrs["pattern"], attrs["group"], so, r.Message))
	}
}

func (d *drops) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
}

// report is what the test fails for.
func (d *drops) report() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.allowed {
		return nil
	}
	return d.all
}

// dropHandler looks at what the bus logs on its way to the log.
type dropHandler struct {
	slog.Handler
	drops *drops
}

// Enabled: warnings are needed even if the log does not want them.
func (h dropHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || h.Handler.Enabled(ctx, l)
}

// Handle notes drops and passes the record on.
func (h dropHandler) Handle(ctx context.Context, r slog.Record) error {
	h.drops.note(r)
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps looking.
func (h dropHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return dropHandler{h.Handler.WithAttrs(attrs), h.drops}
}

// WithGroup keeps looking.
func (h dropHandler) WithGroup(name string) slog.Handler {
	return dropHandler{h.Handler.WithGroup(name), h.drops}
}
