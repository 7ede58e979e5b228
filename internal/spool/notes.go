package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Notes are a log of records, each a key and a value, in a file named as segments
// are. A file that has grown is replaced by one that holds the last values.
type notes struct {
	dir    string
	report func(error)

	mu     sync.Mutex
	values map[string][]byte
	seq    uint64   // of the newest file
	old    []string // files that the next one replaces
	file   *os.File // nil: the next note begins a new one
	salt   uint32
	n      uint64
	size   int64
}

const (
	notesSuffix = ".notes"
	notesMin    = 64 << 10 // what a file may grow to, however little is worth keeping
	maxKey      = 1 << 10
)

// Note stores a small value under a key; the last one counts. With sync it returns
// once the value is on the disk, without, it survives kill -9, but perhaps not the
// loss of power. After an error the value before counts for this process; the next
// owner may find either. It may be called concurrently and by callbacks, and blocks on
// the disk.
func (s *Spool) Note(key string, value []byte, sync bool) error {
	if len(key) > maxKey {
		return fmt.Errorf("spool %s: the key of a note has %d bytes, more than %d", s.path, len(key), maxKey)
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return s.errClosed()
	}
	if err := s.notes.set(key, value, sync); err != nil {
		return s.diskError("write the note "+key, err)
	}
	return nil
}

// Notes returns the values that are stored, those of the former owner included.
func (s *Spool) Notes() map[string][]byte {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	return maps.Clone(s.notes.values)
}

func (n *notes) set(key string, value []byte, sync bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	values := maps.Clone(n.values)
	values[key] = bytes.Clone(value)
	var err error
	if live := weigh(values); n.file == nil || n.size > max(notesMin, 4*live) {
		err = n.replace(values)
	} else {
		err = n.append(key, value, sync)
	}
	if err == nil {
		n.values = values
	}
	return err
}

// append writes one more record. A partial one is cut off again.
func (n *notes) append(key string, value []byte, sync bool) error {
	b := appendNote(nil, n.salt, n.n+1, key, value)
	_, err := n.file.WriteAt(b, n.size)
	if err != nil {
		if cut := n.file.Truncate(n.size); cut != nil {
			n.abandon()
		}
		return err
	}
	if sync {
		if err := syncFile(n.file); err != nil {
			n.abandon() // what is in it is not known any more
			return err
		}
	}
	n.n++
	n.size += int64(len(b))
	return nil
}

func (n *notes) abandon() {
	n.old = append(n.old, n.file.Name())
	_ = n.file.Close()
	n.file = nil
}

// replace writes all values to a new file, and removes the old ones once it is on the
// disk.
func (n *notes) replace(values map[string][]byte) error {
	salt := newSalt()
	path := filepath.Join(n.dir, fmt.Sprintf("%012d-%08x%s", n.seq+1, salt, notesSuffix))
	var b []byte
	count := uint64(0)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		count++
		b = appendNote(b, salt, count, key, values[key])
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = syncFile(f)
	}
	stopAt("noting")
	if err == nil {
		err = syncDir(n.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	if n.file != nil {
		n.abandon()
	}
	n.file, n.seq, n.salt, n.n, n.size = f, n.seq+1, salt, count, int64(len(b))
	stopAt("noted")
	for _, path := range n.old {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.report(fmt.Errorf("spool: cannot remove old notes, which does no harm: %w", err))
		}
	}
	n.old = nil
	return nil
}

func appendNote(b []byte, salt uint32, number uint64, key string, value []byte) []byte {
	data := binary.LittleEndian.AppendUint16(nil, uint16(len(key)))
	data = append(append(data, key...), value...)
	return appendRecord(b, salt, number, time.Now(), data)
}

// weigh is what a file with nothing but these values takes.
func weigh(values map[string][]byte) (size int64) {
	for k, v := range values {
		size += recordHeader + 2 + int64(len(k)+len(v))
	}
	return size
}

// load reads what a former owner noted. Values from a file that is damaged count
// where they can be read.
func (n *notes) load(damaged func(f *segment, b []byte, d damage)) error {
	files, err := listFiles(n.dir, notesSuffix)
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := f.bytes()
		if err != nil {
			return err
		}
		n.seq, n.old = f.seq, append(n.old, f.path)
		after := uint64(0)
		for off := 0; off < len(b); {
			r, from, to, ok := find(b[off:], f.salt, after)
			if from > 0 && ok { // at the end it was being written
				damaged(f, b, damage{int64(off), int64(off + from), after, r.N})
			}
			if ok && len(r.Data) >= 2 {
				if size := int(binary.LittleEndian.Uint16(r.Data)); len(r.Data) >= 2+size {
					n.values[string(r.Data[2:2+size])] = bytes.Clone(r.Data[2+size:])
				}
			}
			after, off = r.N, off+to
		}
	}
	return nil
}

func (n *notes) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		return nil
	}
	return errors.Join(syncFile(n.file), n.file.Close())
}
