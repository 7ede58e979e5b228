//go:build !amd64 || race

package progress

import "sync/atomic"

// Counter counts up. The zero Counter is 0.
type Counter struct{ n atomic.Uint64 }

// Next adds one and returns the new count. One goroutine at a time calls it.
func (c *Counter) Next() uint64 {
	n := c.n.Load() + 1
	c.n.Store(n)
	return n
}

// Add adds n. One goroutine at a time calls it.
func (c *Counter) Add(n uint64) { c.n.Store(c.n.Load() + n) }

// Load returns the count, perhaps not the very last. Any goroutine may call it.
func (c *Counter) Load() uint64 { return c.n.Load() }
