// Package goid names the current goroutine.
//
// The bus needs it for one question that a context cannot answer, because user
// code may pass context.Background(): is this call made by a handler of mine? It
// is asked on slow paths only: a full queue, a drain.
package goid

import "runtime"

// ID is the runtime's number of the calling goroutine, as it stands in stack
// traces. It is never 0 and never used again within a process.
func ID() uint64 {
	var buf [40]byte
	// "goroutine 123 [running]:..."
	const skip = len("goroutine ")
	n := runtime.Stack(buf[:], false)
	var id uint64
	for _, c := range buf[skip:n] {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + uint64(c-'0')
	}
	return id
}
