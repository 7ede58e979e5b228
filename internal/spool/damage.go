package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const corruptPrefix = "corrupt-"

// setAside copies bytes that hold no record to a file of their own, and says so: once,
// however often they are met, which the file tells. It is called without a lock held.
func (s *Spool) setAside(f *segment, d damage, b []byte) {
	gone := hole{d.before + 1, d.after - 1}
	what := "no record is missing as far as the numbers tell"
	switch {
	case gone.from > gone.to:
	case strings.HasSuffix(f.path, notesSuffix):
		what = gone.missing("note")
	default:
		s.lose(gone)
		what = gone.missing("record")
	}
	aside := filepath.Join(s.path, fmt.Sprintf("%s%s-%d-%d", corruptPrefix, filepath.Base(f.path), d.from, d.to-d.from))
	if st, err := os.Stat(aside); err == nil && st.Size() == int64(len(b)) {
		return
	}
	err := os.WriteFile(aside, b, 0o600)
	where := "copied to " + aside + ": remove it when it is of no use"
	if err != nil {
		where = "not copied because of what follows"
	}
	s.opts.OnError(errors.Join(fmt.Errorf("spool: %s is damaged: %d bytes from offset %d on cannot be read, %s; reading goes on behind them; they were %s", f.path, d.to-d.from, d.from, what, where), err))
}

// lose notes that records cannot be read, and reports whether that is new of some.
func (s *Spool) lose(gone hole) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone.from = max(gone.from, s.trimmed+1)
	if gone.from > gone.to {
		return false
	}
	all, known := gone, uint64(0)
	var kept []hole
	for _, h := range s.lost {
		from, to := max(h.from, gone.from), min(h.to, gone.to)
		if from > to {
			kept = append(kept, h)
			continue
		}
		known += to - from + 1
		all = hole{min(all.from, h.from), max(all.to, h.to)}
	}
	s.lost = append(kept, all)
	return known < gone.to-gone.from+1
}

// countCorrupt is how many parts were set aside in a directory.
func countCorrupt(dir string) (n int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), corruptPrefix) {
			n++
		}
	}
	return n, nil
}
