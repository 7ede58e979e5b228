package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
)

// inline is for what is short and wants to be exact: logs and metrics.
var inline = &tidings.SubscribeOptions{Inline: true}

// Log writes a line for each request and each query that failed.
func Log(ctx context.Context, bus *tidings.Bus, log *slog.Logger) error {
	on := topicsOn(bus)
	_, err1 := on.requests.Subscribe(ctx, func(ctx context.Context, e tidings.Event, r *Request) error {
		log.InfoContext(ctx, "request", "method", r.Method, "path", r.Path, "status", r.Status, "took", e.Duration())
		return nil
	}, inline)
	_, err2 := on.queries.Subscribe(ctx, func(ctx context.Context, e tidings.Event, q *Query) error {
		if e.Err() != nil {
			log.WarnContext(ctx, "query", "table", q.Table, "key", q.Key, "err", e.Err())
		}
		return nil
	}, inline)
	return errors.Join(err1, err2)
}

// Metrics counts and adds up by topic. Its methods may be called concurrently.
type Metrics struct {
	mu    sync.Mutex
	count map[string]int
	took  map[string]time.Duration
}

// Measure subscribes metrics to everything that is instrumented or published.
func Measure(ctx context.Context, bus *tidings.Bus) (*Metrics, error) {
	m := &Metrics{count: map[string]int{}, took: map[string]time.Duration{}}
	_, err := bus.Subscribe(ctx, ">", func(_ context.Context, e tidings.Event) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		name := e.Topic()
		if e.Err() != nil {
			name += " failed"
		}
		m.count[name]++
		m.took[name] += e.Duration()
		return nil
	}, inline)
	return m, err
}

// WriteTo writes a line for each topic.
func (m *Metrics) WriteTo(w io.Writer) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m.count)) {
		fmt.Fprintf(&b, "%-20s %6d %v\n", name, m.count[name], m.took[name])
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Count says how often a topic, or "topic failed", came.
func (m *Metrics) Count(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count[name]
}
