package tidings

import (
	"errors"
	"runtime"
)

// Inline handlers that publish what they handle, for ever, would overflow the
// stack, which ends the process and cannot be recovered from. Asking at each event
// how deep the stack is would cost more than the handler, so it is asked where
// events take the slower way anyway, which is that of one in 1024 at least: a
// recursion without end comes by there again and again, each time within the last.
const (
	// maxFrames is far above what programs need, and far below the limit of the
	// runtime: 1 GB, or 10 kB a frame.
	maxFrames = 100_000
	// A look takes as long as the stack is deep: it is for one event in 512, or in 64
	// of those that come after a thousand others.
	deepEvery, deepSampled = 512, 8
)

var errTooDeep = errors.New("inline handlers are nested too deep: one of them publishes, by others or itself, what it handles, without end; let it stop, or leave out Inline")

// tooDeep reports whether there is no room on this stack for further handlers. It
// looks now and then only.
func (b *Bus) tooDeep(ev *Event) bool {
	step := uint64(1)
	if sampled(ev.num >> attemptBits) {
		step = deepSampled
	}
	if b.measured.Add(step)%deepEvery >= step {
		return false
	}
	var pc [1]uintptr
	return runtime.Callers(maxFrames, pc[:]) > 0
}
