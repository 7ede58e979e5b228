package spool_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/tidings-go/tidings/internal/spool"
)

// BenchmarkAppend compares the spool with bbolt, by callers that each wait until
// their record of 300 bytes is on the disk. The floor is what a disk does that gets
// 64 such records with each sync. Run it on the disk in question:
//
//	TMPDIR=… go test ./internal/spool -run '^$' -bench Append
func BenchmarkAppend(b *testing.B) {
	data := bytes.Repeat([]byte("x"), 300)
	callers := []int{1, 16, 64, 256}
	for _, n := range callers {
		b.Run(fmt.Sprintf("spool/callers=%d", n), func(b *testing.B) {
			s := open(b, b.TempDir(), quiet(b))
			share(b, n, func() error {
				done := make(chan error, 1)
				s.Append(data, func(_ uint64, err error) { done <- err })
				return <-done
			})
		})
	}
	for _, n := range callers {
		b.Run(fmt.Sprintf("bbolt/callers=%d", n), func(b *testing.B) {
			put := boltPut(b, n, data)
			share(b, n, put)
		})
	}
	for _, n := range callers {
		b.Run(fmt.Sprintf("floor/callers=%d", n), func(b *testing.B) { floor(b, bytes.Repeat(data, n), n) })
	}
}

// floor writes the records of n callers at once, without format or callers, and syncs.
func floor(b *testing.B, batch []byte, n int) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.ResetTimer()
	for i := 0; i < b.N; i += n {
		if _, err := f.Write(batch); err != nil {
			b.Fatal(err)
		}
		if err := spool.Fdatasync(f); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// share has n callers call put b.N times in all.
func share(b *testing.B, n int, put func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := put(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// boltPut puts records under numbers that rise, as a queue would, with the settings
// that make bbolt fastest and still sync each commit.
func boltPut(b *testing.B, callers int, data []byte) func() error {
	o := *bolt.DefaultOptions
	o.NoFreelistSync, o.FreelistType = true, bolt.FreelistMapType
	db, err := bolt.Open(filepath.Join(b.TempDir(), "bolt"), 0o600, &o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	db.MaxBatchSize, db.MaxBatchDelay = callers, time.Millisecond // nobody waits for more than there are
	bucket := []byte("spool")
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }); err != nil {
		b.Fatal(err)
	}
	return func() error {
		return db.Batch(func(tx *bolt.Tx) error {
			bk := tx.Bucket(bucket)
			n, err := bk.NextSequence()
			if err != nil {
				return err
			}
			bk.FillPercent = 0.9
			return bk.Put(binary.BigEndian.AppendUint64(nil, n), data)
		})
	}
}

// BenchmarkNext reads back, from what the kernel has in memory.
func BenchmarkNext(b *testing.B) {
	s := open(b, b.TempDir(), quiet(b))
	data := bytes.Repeat([]byte("x"), 300)
	const n = 100_000
	var all sync.WaitGroup
	all.Add(n)
	for range n {
		s.Append(data, func(_ uint64, err error) {
			if err != nil {
				b.Error(err)
			}
			all.Done()
		})
	}
	all.Wait()
	b.ReportAllocs()
	for b.Loop() {
		_, ok, err := s.Next()
		if err != nil {
			b.Fatal(err)
		}
		if !ok {
			s.Rewind(0)
		}
	}
}

// BenchmarkAdopt opens what a dead process has left, from what the kernel has in
// memory.
func BenchmarkAdopt(b *testing.B) {
	dir := b.TempDir()
	s := open(b, dir, quiet(b))
	data := bytes.Repeat([]byte("x"), 1000)
	const n = 256_000
	var all sync.WaitGroup
	all.Add(n)
	for range n {
		s.Append(data, func(_ uint64, err error) { all.Done() })
	}
	all.Wait()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(n * 1032)
	for b.Loop() {
		if err := adopt(b, dir, quiet(b)).Close(); err != nil {
			b.Fatal(err)
		}
	}
}
