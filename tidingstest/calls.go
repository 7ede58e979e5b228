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
	running   []*call       // in the order they began
	begun     uint64        // ever
	none      chan struct{} // closed when none runs; nil when nobody waits
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
	cs.begun++
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
	if len(cs.running) == 0 && cs.none != nil {
		close(cs.none)
		cs.none = nil
	}
}

// wait returns once no handler runs, with how many ever did.
func (cs *calls) wait(ctx context.Context) (begun uint64, err error) {
	for {
		begun, none := cs.look()
		if none == nil {
			return begun, nil
		}
		select {
		case <-none:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// look returns how many handlers ever began, and a channel that is closed when
// none runs; nil if that is so already.
func (cs *calls) look() (begun uint64, none <-chan struct{}) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.running) > 0 && cs.none == nil {
		cs.none = make(chan struct{})
	}
	return cs.begun, cs.none
}

func (cs *calls) list() []*call {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return slices.Clone(cs.running)
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
