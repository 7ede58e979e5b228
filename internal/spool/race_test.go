package spool_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/spool"
)

const envRace = "TEST_SPOOL_RACE"

func init() { processes[envRace] = racerProcess }

// racerProcess adopts what is in the directory of which it is told the name, says how
// many spools and what it read, and closes them when it is told the next.
func racerProcess(dir string) error {
	var owned []*spool.Spool
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for _, s := range owned {
			if err := s.Close(); err != nil {
				return err
			}
		}
		var err error
		owned, err = spool.Adopt(filepath.Join(dir, in.Text()), "shop", spool.Options{})
		if err != nil {
			return err
		}
		said := []string{fmt.Sprint(len(owned))}
		for _, s := range owned {
			r, _, err := s.Next()
			if err != nil {
				return err
			}
			s.Trim(r.N)
			said = append(said, string(r.Data))
		}
		fmt.Println(strings.Join(said, " "))
	}
	return nil
}

// A racer is such a process.
type racer struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startRacer(t *testing.T, dir string) *racer {
	t.Helper()
	r := &racer{t: t, cmd: exec.Command(os.Args[0])}
	r.cmd.Env = append(os.Environ(), envRace+"="+dir)
	r.cmd.Stderr = t.Output()
	in, err := r.cmd.StdinPipe()
	out, err2 := r.cmd.StdoutPipe()
	if err := errors.Join(err, err2, r.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	r.in, r.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		in.Close()
		if err := r.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *racer) tell(what string) {
	if _, err := fmt.Fprintln(r.in, what); err != nil {
		r.t.Error(err)
	}
}

func (r *racer) hear() string {
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Error(err)
	}
	return strings.TrimSpace(line)
}

// Two processes are told of the same spools at the same time, some of which hold
// nothing, while a third one lists them.
func TestTwoAdopters(t *testing.T) {
	const rounds, each = 100, 4
	dir := t.TempDir()
	a, b := startRacer(t, dir), startRacer(t, dir)
	for round := range rounds {
		name := fmt.Sprint(round)
		made := filepath.Join(dir, "made-"+name)
		for i := range each {
			s := open(t, made, quiet(t))
			if i > 0 {
				mustPut(t, s, fmt.Sprint(round, "/", i))
			}
		}
		copyDir(t, made, filepath.Join(dir, name)) // they were killed
		lists := loop.Go(func(ctx context.Context) {
			for ctx.Err() == nil {
				if _, err := spool.List(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
		})
		a.tell(name)
		b.tell(name)
		all := append(strings.Fields(a.hear())[1:], strings.Fields(b.hear())[1:]...)
		lists.StopAndWait()
		seen := map[string]int{}
		for _, s := range all {
			seen[s]++
		}
		for i := 1; i < each; i++ {
			if n := seen[fmt.Sprint(round, "/", i)]; n != 1 {
				t.Errorf("round %d: %d processes adopted spool %d: %q", round, n, i, all)
			}
		}
		if len(all) != each-1 {
			t.Errorf("round %d: adopted were %q", round, all)
		}
	}
	a.tell("none")
	b.tell("none")
	a.hear()
	b.hear()
	for round := range rounds {
		if left := files(t, filepath.Join(dir, fmt.Sprint(round)), "*"); len(left) > 0 {
			t.Errorf("round %d: everything is done, but there is %q", round, left)
		}
	}
}
