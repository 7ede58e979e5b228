package spool

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"time"
)

// A Record is one that was accepted.
type Record struct {
	N    uint64    // its number in this spool, from 1, without gaps
	At   time.Time // the wall clock when it was appended
	Data []byte    // the receiver's to keep
}

// A record on disk, little endian:
//
//	magic[4] length[4] number[8] time[8] header-crc[4] data-crc[4] data
//
// Both sums are CRC32C. That of the header begins with the file's salt, that of the
// data with the header's, so that data which looks like a record, or a record of
// another file, is not taken for one when reading goes on behind damage. With a sum
// of its own the header can be believed when the data is broken, and nothing can
// make the search for the next record slow.
const (
	recordHeader = 32
	maxData      = 1 << 30
)

// magic holds two bytes that no UTF-8 text has.
var magic = []byte{0xf5, 'R', 'e', 0xfe}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(b []byte, salt uint32, n uint64, at time.Time, data []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint64(b, n)
	b = binary.LittleEndian.AppendUint64(b, uint64(at.UnixNano()))
	sum := crc32.Update(salt, castagnoli, b[start:])
	b = binary.LittleEndian.AppendUint32(b, sum)
	b = binary.LittleEndian.AppendUint32(b, crc32.Update(sum, castagnoli, data))
	return append(b, data...)
}

func sizeOf(data []byte) int64 { return recordHeader + int64(len(data)) }

type verdict int

const (
	broken verdict = iota
	whole
	short // its header is whole, or all there is of it may be; more bytes are needed
)

// parse reads the record that b begins with. size is what it takes, or, if b is too
// short, what is needed to say more.
func parse(b []byte, salt uint32) (r Record, size int64, v verdict) {
	if len(b) < recordHeader {
		return Record{}, recordHeader, short
	}
	sum := binary.LittleEndian.Uint32(b[24:])
	if !bytes.Equal(b[:4], magic) || crc32.Update(salt, castagnoli, b[:24]) != sum {
		return Record{}, 0, broken
	}
	length := int64(binary.LittleEndian.Uint32(b[4:]))
	if length > maxData {
		return Record{}, 0, broken
	}
	size = recordHeader + length
	if int64(len(b)) < size {
		return Record{}, size, short
	}
	data := b[recordHeader:size:size]
	if crc32.Update(sum, castagnoli, data) != binary.LittleEndian.Uint32(b[28:]) {
		return Record{}, 0, broken
	}
	r.N = binary.LittleEndian.Uint64(b[8:])
	r.At = time.Unix(0, int64(binary.LittleEndian.Uint64(b[16:])))
	r.Data = data
	return r, size, whole
}

// find looks for the first record in b with a number above after. It takes from
// from to to; without one both are len(b). b[:from] is damage.
func find(b []byte, salt uint32, after uint64) (r Record, from, to int, ok bool) {
	for {
		if r, size, v := parse(b[from:], salt); v == whole && r.N > after {
			return r, from, from + int(size), true
		}
		i := -1
		if from < len(b) {
			i = bytes.Index(b[from+1:], magic)
		}
		if i < 0 {
			return Record{}, len(b), len(b), false
		}
		from += 1 + i
	}
}
