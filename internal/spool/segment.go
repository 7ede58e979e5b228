package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A segment is one file of a spool. Its name is SEQ-SALT.seg, so that the salt is
// known however broken the file is. seq says the order of files; the numbers of
// records cannot, since a file whose sync failed is followed by one that begins with
// the same number.
type segment struct {
	path        string
	seq         uint64
	salt        uint32
	first, last uint64 // numbers of records; last is first-1 as long as it has none
	start       int64  // where the first record begins, or damage instead of a header
	end         int64  // where the last record ends: what follows is not to be read
	size        int64  // of the file
	unreadable  bool   // the disk could not read some of it, at the last try
	marks       []mark
}

// A mark is where a record begins. There is one for each stretch of a file, so that
// reading can begin near any record.
type mark struct {
	n   uint64
	off int64
}

const markEach = 64 << 10

func (f *segment) mark(n uint64, off int64) {
	if i := len(f.marks); i == 0 || off-f.marks[i-1].off >= markEach {
		f.marks = append(f.marks, mark{n, off})
	}
}

// before returns where to begin in order to read record n, and a number that is below
// those from there on.
func (f *segment) before(n uint64) (off int64, last uint64) {
	i, _ := slices.BinarySearchFunc(f.marks, n+1, func(m mark, n uint64) int { return cmp.Compare(m.n, n) })
	if i == 0 {
		return f.start, f.first - 1
	}
	return f.marks[i-1].off, f.marks[i-1].n - 1
}

// A segment begins with
//
//	"tidspool" version[4] first[8] crc[4]
const (
	segmentMagic   = "tidspool"
	segmentVersion = 1
	segmentHeader  = 24
	segmentSuffix  = ".seg"
)

func segmentName(seq uint64, salt uint32) string {
	return fmt.Sprintf("%012d-%08x%s", seq, salt, segmentSuffix)
}

// parseName is the reverse of segmentName, for any suffix.
func parseName(name, suffix string) (seq uint64, salt uint32, ok bool) {
	stem, isOne := strings.CutSuffix(name, suffix)
	a, b, cut := strings.Cut(stem, "-")
	if !isOne || !cut || len(b) != 8 {
		return 0, 0, false
	}
	seq, err := strconv.ParseUint(a, 10, 64)
	s, err2 := strconv.ParseUint(b, 16, 32)
	return seq, uint32(s), err == nil && err2 == nil
}

func appendHeader(b []byte, salt uint32, first uint64) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, segmentVersion)
	b = binary.LittleEndian.AppendUint64(b, first)
	return binary.LittleEndian.AppendUint32(b, crc32.Update(salt, castagnoli, b[start:]))
}

var errVersion = errors.New("written by a newer version")

// parseHeader returns the number of the first record; ok is false when the header is
// damaged or cut off.
func parseHeader(b []byte, salt uint32) (first uint64, ok bool, err error) {
	if len(b) < segmentHeader || !bytes.HasPrefix(b, []byte(segmentMagic)) ||
		crc32.Update(salt, castagnoli, b[:20]) != binary.LittleEndian.Uint32(b[20:]) {
		return 0, false, nil
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != segmentVersion {
		return 0, false, errVersion
	}
	first = binary.LittleEndian.Uint64(b[12:])
	return first, first > 0, nil
}

// A contents is what a segment's file was found to hold.
type contents struct {
	headed bool // the header is whole
	first  uint64
	last   uint64
	start  int64    // of what follows the header
	end    int64    // of the last record, or of the header
	damage []damage // in order, the last one perhaps at the end of the file
}

// A damage is a range of bytes that hold no record, between the records before and
// after it. before is 0 if none in this file is known, after is 0 if none follows.
type damage struct {
	from, to      int64
	before, after uint64
}

// examine goes through a file's bytes. Records above limit are not of the spool: a
// later segment has these numbers.
func examine(b []byte, salt uint32, limit uint64, each func(r Record, off int64) bool) (c contents, err error) {
	c.first, c.headed, err = parseHeader(b, salt)
	if err != nil {
		return c, err
	}
	off := 0
	if c.headed {
		off = segmentHeader
		c.last = c.first - 1
	}
	c.start, c.end = int64(off), int64(off)
	for off < len(b) {
		r, from, to, ok := find(b[off:], salt, c.last)
		if ok && r.N > limit {
			break
		}
		if from > 0 {
			c.damage = append(c.damage, damage{int64(off), int64(off + from), c.last, r.N})
		}
		if !ok {
			break
		}
		if c.first == 0 {
			c.first = r.N
		}
		at := int64(off + from)
		off += to
		c.last, c.end = r.N, int64(off)
		if each != nil && !each(r, at) {
			break
		}
	}
	return c, nil
}

const noLimit = math.MaxUint64

// bytes reads the whole file.
func (f *segment) bytes() ([]byte, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	b, whole, err := readRange(file, 0, st.Size())
	f.unreadable = !whole
	return b, err
}

// What a disk cannot read, it cannot read a page of at least.
const (
	page      = 4096
	pageTries = 3
)

// readRange reads n bytes. Zeros, which are no record, stand for what is not there
// because the file is shorter, and for what the disk cannot read: it must not hide
// what is around it. whole is false then.
func readRange(f io.ReaderAt, off, n int64) (b []byte, whole bool, err error) {
	b, whole = make([]byte, n), true
	err = readAt(f, b, off)
	if !errors.Is(err, syscall.EIO) {
		return b, true, err
	}
	for at := off; at < off+n; {
		next := min(off+n, at-at%page+page)
		part := b[at-off : next-off]
		err := readAt(f, part, at)
		for try := 1; try < pageTries && errors.Is(err, syscall.EIO); try++ {
			err = readAt(f, part, at)
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			return nil, false, err
		}
		whole = whole && err == nil
		at = next
	}
	return b, whole, nil
}

// readAt clears what it does not read.
func readAt(f io.ReaderAt, b []byte, off int64) error {
	n, err := onRead(f).ReadAt(b, off)
	clear(b[n:])
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// listFiles lists the files with such names of a directory in order, without opening them.
func listFiles(dir, suffix string) (out []*segment, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries { // sorted by name, which for these is the order
		if seq, salt, ok := parseName(e.Name(), suffix); ok {
			out = append(out, &segment{path: filepath.Join(dir, e.Name()), seq: seq, salt: salt})
		}
	}
	return out, nil
}
