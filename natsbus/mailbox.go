package natsbus

import "sync"

// A mailbox hands values to the one goroutine that owns it, in order. It is
// unbounded: what goes in is bounded by whoever puts it there.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{} // holds one token while items may be waiting
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{wake: make(chan struct{}, 1)} }

func (m *mailbox[T]) put(v ...T) {
	m.mu.Lock()
	m.items = append(m.items, v...)
	m.mu.Unlock()
	m.poke()
}

func (m *mailbox[T]) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take returns everything that waits, oldest first.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	v := m.items
	m.items = nil
	m.mu.Unlock()
	return v
}
