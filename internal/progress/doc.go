// Package progress has a counter that one goroutine moves and any may read.
//
// On amd64 every store of sync/atomic is a locked instruction, which waits for all
// stores before it: 3 ns, where counting an event for a handler that takes 3 ns
// itself must not cost as much. There the counter is moved by a plain store. Go's
// memory model allows that: a read of one word sees some value that was stored. It
// says nothing about when, and on amd64 stores are seen in order and at once when
// the core's buffer drains. What else the writer wrote is not published by it.
//
// Under the race detector, and elsewhere, the store is atomic.
package progress
