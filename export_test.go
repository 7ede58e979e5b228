package tidings

// Entries counts the topics that a bus remembers.
func Entries(b *Bus) (n int) {
	b.topics.Range(func(any, any) bool { n++; return true })
	return n
}
