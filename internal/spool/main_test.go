package spool_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/internal/spool"
)

// processes are what this test binary is instead of the tests, by the variable of the
// environment that says so and gives the directory.
var processes = map[string]func(dir string) error{envDir: userProcess}

func TestMain(m *testing.M) {
	for env, process := range processes {
		if dir := os.Getenv(env); dir != "" {
			if err := process(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	goleak.VerifyTestMain(m)
}

// quiet are options for a spool that must not meet an error without a caller.
func quiet(t testing.TB) spool.Options {
	return spool.Options{
		Logger:  slog.New(slog.DiscardHandler),
		OnError: func(err error) { t.Errorf("OnError: %v", err) },
	}
}

func open(t testing.TB, dir string, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(dir, "shop", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// adopt expects that there is one to adopt.
func adopt(t testing.TB, dir string, o spool.Options) *spool.Spool {
	t.Helper()
	all, err := spool.Adopt(dir, "shop", o)
	if err != nil || len(all) != 1 {
		t.Fatalf("Adopt: %d spools, %v; want one", len(all), err)
	}
	t.Cleanup(func() { _ = all[0].Close() })
	return all[0]
}

// put appends and waits.
func put(s *spool.Spool, data string) (n uint64, err error) {
	done := make(chan struct{})
	s.Append([]byte(data), func(number uint64, e error) {
		n, err = number, e
		close(done)
	})
	<-done
	return n, err
}

func mustPut(t testing.TB, s *spool.Spool, data ...string) {
	t.Helper()
	for _, d := range data {
		if _, err := put(s, d); err != nil {
			t.Fatal(err)
		}
	}
}

// rest reads all there is.
func rest(t testing.TB, s *spool.Spool) (out []spool.Record) {
	t.Helper()
	for {
		r, ok, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		out = append(out, r)
	}
}

func texts(records []spool.Record) string {
	var out []string
	for _, r := range records {
		out = append(out, string(r.Data))
	}
	return strings.Join(out, " ")
}

func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// copyDir is what a crash leaves whose page cache survives.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
