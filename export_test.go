package tidings

// Entries counts the topics that a bus remembers.
func Entries(b *Bus) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.names.len()
}
