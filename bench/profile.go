package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"time"
)

// profiled is how long a profile is taken: some 300 samples.
const profiled = 3 * time.Second

// writeProfile runs our side of one row alone, under the CPU profiler.
func writeProfile(all []row, id string, w io.Writer) error {
	for _, r := range all {
		if r.id != id {
			continue
		}
		for _, c := range r.candidates {
			if c.kind == ours {
				return r.profile(c, w)
			}
		}
		return fmt.Errorf("-profile %s: the row has nothing of ours", id)
	}
	return fmt.Errorf("-profile %s: no such row; the table's first column has their numbers", id)
}

func (r row) profile(c candidate, w io.Writer) (err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(r.cpu))
	g, err := c.build()
	if err != nil {
		return err
	}
	if g.close != nil {
		defer func() { err = errors.Join(err, g.close()) }()
	}
	var fixed int
	if r.effort != nil {
		fixed = r.effort.fixed
	}
	n, err := calibrate(g, 50*time.Millisecond, fixed)
	if err != nil {
		return err
	}
	name := "bench-" + r.id + ".cpu.out"
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	err = g.during(func() error {
		for start := time.Now(); time.Since(start) < profiled; {
			if err := g.op(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "wrote %s: row %s, %s, GOMAXPROCS %d\n"+
		"  go tool pprof -top %[1]s             where the time goes, by function\n"+
		"  go tool pprof -list 'Publish' %[1]s  the same by line; also 'deliver', 'call'\n"+
		"  go tool pprof -http : %[1]s          as a flame graph in a browser\n", name, r.id, r.name, r.cpu)
	return err
}
