package natsbus

import (
	"context"

	"github.com/tidings-go/tidings/adapter"
)

// ReportOrphans is what a process does a minute after it has subscribed.
func ReportOrphans(ctx context.Context, a adapter.Adapter) error { return a.(*conn).reportOrphans(ctx) }
