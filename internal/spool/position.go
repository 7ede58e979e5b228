package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
)

// A position is what a spool's file of that name holds: how far records are done, and
// up to which number they were on the disk when that was written. The second tells a
// damaged record at the end from one that was never accepted.
//
// The file is two slots that are written in turn, so that there always is a whole
// one. Its space is taken when the spool is made: on a full disk records can still
// be trimmed.
type position struct {
	mu      sync.Mutex
	file    *os.File
	turn    uint64
	trimmed uint64
	synced  uint64
	closed  bool
}

const (
	positionFile = "position"
	slotSize     = 32 // turn[8] trimmed[8] synced[8] crc[4] and room
)

// openPosition reads the file, or makes it. lost means that it cannot be read.
func openPosition(dir string) (p *position, lost bool, err error) {
	p = new(position)
	p.file, err = os.OpenFile(filepath.Join(dir, positionFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	var b [2 * slotSize]byte
	n, _ := p.file.ReadAt(b[:], 0)
	p.turn, p.trimmed, p.synced = readSlots(b[:])
	// Zeros are what a file has of which no write reached the disk.
	lost = p.turn == 0 && b != [2 * slotSize]byte{}
	if n < len(b) {
		if _, err := p.file.WriteAt(b[n:], int64(n)); err != nil {
			return nil, false, errors.Join(err, p.file.Close())
		}
	}
	return p, lost, nil
}

func readSlots(b []byte) (turn, trimmed, synced uint64) {
	for ; len(b) >= slotSize; b = b[slotSize:] {
		t := binary.LittleEndian.Uint64(b)
		if t > turn && crc32.Checksum(b[:24], castagnoli) == binary.LittleEndian.Uint32(b[24:]) {
			turn, trimmed, synced = t, binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		}
	}
	return turn, trimmed, synced
}

// set writes the position if it is further than what was written.
func (p *position) set(trimmed, synced uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || trimmed <= p.trimmed && synced <= p.synced {
		return nil
	}
	trimmed, synced = max(trimmed, p.trimmed), max(synced, p.synced)
	b := make([]byte, 0, slotSize)
	b = binary.LittleEndian.AppendUint64(b, p.turn+1)
	b = binary.LittleEndian.AppendUint64(b, trimmed)
	b = binary.LittleEndian.AppendUint64(b, synced)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err := p.file.WriteAt(b[:slotSize], int64(p.turn%2)*slotSize); err != nil {
		return err
	}
	p.turn++
	p.trimmed, p.synced = trimmed, synced
	return nil
}

func (p *position) sync() error { return syncFile(p.file) }

func (p *position) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.file.Close()
}
