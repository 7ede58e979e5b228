package tidingstest

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/tidings-go/tidings"
)

// calls are the handlers that run: the kit's middleware is around each, but for
// those of SubscribeBatch, which has none.
type calls struct {
	mu        sync.Mutex
	running   []*call // in the order they began
	changed   chan struct{}
	recorders []*Recorder
}

// call is one run of one handler.
type call struct {
	place     string // of the subscription
	event     tidings.Event
	goroutine string // as it begins in a dump: "goroutine 12 ["
}

// watch is the outermost middleware. It is called when a subscription is made, on
// the goroutine that makes it.
func (b *Bus) watch(next tidings.Handler) tidings.Handler {
	place := subscribedAt()
	return func(ctx context.Context, e tidings.Event) error {
		c := b.calls.begin(place, e)
		defer b.calls.end(c) // handlers may panic, and end their goroutine
		return next(ctx, e)
	}
}

func (cs *calls) begin(place string, e tidings.Event) *call {
	c := &call{place: place, event: e, goroutine: self()}
	cs.mu.Lock()
	cs.running = append(cs.running, c)
	recorders := cs.recorders
	cs.mu.Unlock()
	for _, r := range recorders {
		r.handled(e)
	}
	return c
}

func (cs *calls) end(c *call) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.running = slices.DeleteFunc(cs.running, func(x *call) bool { return x == c })
	if cs.changed != nil {
		close(cs.changed)
		cs.changed = nil
	}
}

// look returns the handlers that run, and a channel that is closed when the next
// of them ends.
func (cs *calls) look() ([]*call, <-chan struct{}) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.changed == nil {
		cs.changed = make(chan struct{})
	}
	return slices.Clone(cs.running), cs.changed
}

func (cs *calls) follow(r *Recorder) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.recorders = append(slices.Clone(cs.recorders), r) // begin ranges over it without the lock
}

// subscribedAt is the line outside the library that asked for a subscription, as
// the Debugger names it.
func subscribedAt() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "github.com/tidings-go/tidings.") &&
			!strings.HasPrefix(f.Function, "github.com/tidings-go/tidings/tidingstest.") {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		if !more {
			return ""
		}
	}
}

// self is how this goroutine's stack begins in a dump.
func self() string {
	var buf [64]byte
	head, _, _ := bytes.Cut(buf[:runtime.Stack(buf[:], false)], []byte("["))
	return string(head) + "["
}

// stacks are all goroutines of the process.
func stacks() []string {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= 1<<24 {
			return strings.Split(string(buf[:n]), "\n\n")
		}
	}
}
