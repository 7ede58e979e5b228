package tidingstest

import (
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
