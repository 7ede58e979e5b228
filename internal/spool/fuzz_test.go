package spool_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/spool"
)

// Whatever is in the files of a dead process, whoever adopts it reads only what was
// written as a record, in order and once.
func FuzzAdopt(f *testing.F) {
	const salt = 0x1234abcd
	at := time.Unix(1700000000, 0)
	segment := spool.AppendHeader(nil, salt, 1)
	for n := range uint64(5) {
		segment = spool.AppendRecord(segment, salt, n+1, at, bytes.Repeat([]byte{byte(n)}, int(20*n)))
	}
	// A record in a record is data.
	segment = spool.AppendRecord(segment, salt, 6, at, spool.AppendRecord(nil, salt+1, 7, at, []byte("invented")))
	note := spool.AppendRecord(nil, salt, 1, at, []byte("\x03\x00keyvalue"))
	f.Add(segment, segment[:100], make([]byte, 64), note)
	f.Add(segment[24:], []byte{}, []byte{}, note[:20])
	f.Add(bytes.Repeat(segment, 2), segment, bytes.Repeat([]byte{1}, 64), bytes.Repeat(note, 3))
	f.Fuzz(func(t *testing.T, first, second, position, notes []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "shop.0123456789abcdef")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{
			"000000000001-1234abcd.seg":   first,
			"000000000002-1234abcd.seg":   second,
			"position":                    position,
			"000000000001-1234abcd.notes": notes,
		} {
			if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o := quiet(t)
		o.OnError = func(error) {}
		all, err := spool.Adopt(dir, "shop", o)
		if err != nil && !errors.Is(err, spool.ErrVersion) {
			t.Fatal(err)
		}
		for _, s := range all {
			last := uint64(0)
			for _, r := range rest(t, s) {
				if r.N <= last {
					t.Errorf("record %d is read after %d", r.N, last)
				}
				last = r.N
				whole := spool.AppendRecord(nil, salt, r.N, r.At, r.Data)
				if !bytes.Contains(first, whole) && !bytes.Contains(second, whole) {
					t.Errorf("record %d, %q, was never written", r.N, r.Data)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
