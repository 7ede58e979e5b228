package tidings

import (
	"github.com/tidings-go/tidings/adapter"
)

// Debugger shows what a bus does, to tools and tests. It changes nothing. Its
// methods may be called concurrently and from inside handlers.
type Debugger struct{ b *Bus }

// Debugger returns the bus's debugger.
func (b *Bus) Debugger() *Debugger { return &Debugger{b} }

// Snapshot is the state of a bus at one moment.
type Snapshot struct {
	App, Instance string
	Attached      bool
	Transport     adapter.Stats // zero unless Attached
	Subscriptions []SubscriptionInfo
}

// SubscriptionInfo is the state of one subscription. Counts are since it began.
type SubscriptionInfo struct {
	Pattern, Group                     string
	Durable, Inline                    bool
	Queued                             int    // events that wait
	Running                            uint64 // handlers that run
	Handled, Failed, Panicked, Dropped uint64
}

// Snapshot returns the present state.
func (d *Debugger) Snapshot() Snapshot {
	subs, _, a := d.b.members()
	snap := Snapshot{App: d.b.opts.App, Instance: d.b.opts.Instance, Attached: a != nil}
	if a != nil {
		snap.Transport = a.Stats()
	}
	for _, s := range subs {
		info := SubscriptionInfo{Pattern: s.pattern, Group: s.opts.Group, Durable: s.opts.Durable, Inline: s.opts.Inline,
			Running: s.counts.running.Load(), Handled: s.counts.handled.Load(), Failed: s.counts.failed.Load(),
			Panicked: s.counts.panicked.Load(), Dropped: s.counts.dropped.Load()}
		for _, q := range s.lanes {
			info.Queued += q.len()
		}
		snap.Subscriptions = append(snap.Subscriptions, info)
	}
	return snap
}
