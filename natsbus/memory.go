package natsbus

import (
	"sync"
	"time"
)

// memorySize is how many settled events a process remembers for each consumer.
// A broker that was killed sends again about the last tenth of a second.
const memorySize = 100_000

// A memory knows which events of a consumer this process has settled, by their
// place in the stream. Acknowledgements are not durable in nats-server: after a
// kill -9 it sends again what was acknowledged just before (53 to 96 events at
// 1000/s were measured), marked as delivered for the first time. It outlives
// the subscription, since a handler may be subscribed again.
type memory struct {
	mu      sync.Mutex
	created time.Time // of the stream: another one counts from 1 again
	seqs    map[uint64]struct{}
	ring    []uint64
	next    int
}

// memoryOf returns the memory of a consumer.
func (c *conn) memoryOf(stream, consumer string) *memory {
	key := stream + "/" + consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.settled[key]
	if m == nil {
		m = &memory{seqs: map[uint64]struct{}{}}
		c.settled[key] = m
	}
	return m
}

// of says which stream the sequences are of. It forgets those of another and
// reports whether it did.
func (m *memory) of(created time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.created.Equal(created) {
		return false
	}
	changed := !m.created.IsZero()
	m.created = created
	clear(m.seqs)
	m.ring, m.next = nil, 0
	return changed
}

// since is when the stream was made.
func (m *memory) since() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.created
}

func (m *memory) add(seq uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.seqs[seq]; ok {
		return
	}
	if len(m.ring) < memorySize {
		m.ring = append(m.ring, seq)
	} else {
		delete(m.seqs, m.ring[m.next])
		m.ring[m.next] = seq
		m.next = (m.next + 1) % memorySize
	}
	m.seqs[seq] = struct{}{}
}

func (m *memory) has(seq uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.seqs[seq]
	return ok
}
