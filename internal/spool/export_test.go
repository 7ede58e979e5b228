package spool

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
)

// Fdatasync is what the benchmarks compare with.
var Fdatasync = fdatasync

// The format, to make files by hand.
var (
	AppendHeader = appendHeader
	AppendRecord = appendRecord
	ErrVersion   = errVersion
	ReadRange    = readRange
)

// StopAt sets what is called at the named points of the process's spools, and returns
// what was.
func StopAt(f func(point string)) (before func(point string)) {
	before, stopAt = stopAt, f
	return before
}

// SetSync replaces the sync of what is appended from now on. Nothing may be in work.
func (s *Spool) SetSync(f func(*os.File) error) {
	s.mu.Lock() // the loop takes it before it writes
	defer s.mu.Unlock()
	s.writer.sync = f
}

// OnSync sets what is called when a file or a directory was synced, and returns what
// was.
func OnSync(f func(path string)) (before func(path string)) {
	before, onSync = onSync, f
	return before
}

// OnRead sets what files are read through, and returns what was.
func OnRead(f func(io.ReaderAt) io.ReaderAt) (before func(io.ReaderAt) io.ReaderAt) {
	before, onRead = onRead, f
	return before
}

// Points are the stop points where something is on the disk that was not before.
var Points = []string{"created", "written", "synced", "trimming", "emptied", "trimmed", "adopted", "closing", "removing", "noting", "noted"}

// WithVersion is a segment's file as another version would begin it.
func WithVersion(b []byte, name string, v uint32) []byte {
	_, salt, _ := parseName(name, segmentSuffix)
	binary.LittleEndian.PutUint32(b[8:], v)
	binary.LittleEndian.PutUint32(b[20:], crc32.Update(salt, castagnoli, b[:20]))
	return b
}
