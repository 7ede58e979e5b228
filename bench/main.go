// Command bench prints every figure that this project quotes, each beside a floor
// and beside its peers:
//
//	go run ./bench                 # all rows, a minute or two
//	go run ./bench -short          # the same with few rounds
//	go run ./bench -row '^5'       # rows whose number or name matches
//	go run ./bench -json           # for machines
//	go run ./bench -profile 6a     # a CPU profile of our side of one row
//
// What it holds to, so that the figures mean something:
//
//   - One operation is a whole event: from the call of Publish to the return of
//     the last handler. For queues that is N events published, and the wait until
//     every subscriber has handled N.
//   - A handler is a closure that calls a function which is not inlined; the
//     payload is a pointer allocated beforehand; the topic is "order.placed".
//   - Only ratios of one run count. A virtual machine drifts by a factor of 1.2 to
//     1.8 within hours, so floor, peers and ours take turns in one process, each
//     in slices of some 15 ms, and the fastest slice of each is reported. Every
//     round runs on a fresh goroutine at another stack depth, since some code
//     paths depend on where the stack happens to lie.
//   - A floor is the least that can do the job at all: a function call, a map
//     look-up, a channel. It does none of what a bus is for.
//   - Peers are seen with optimism: their fastest documented mode, no options that
//     cost, errors not looked at where they return none. Ours runs as users get
//     it, through the public API, with panic guard and counters.
//   - A figure counts only if every delivery happened, once: each row counts them
//     and fails otherwise. Nothing else fails: a time is never asserted.
//   - Rows with a broker have it in a process of its own, with nats-server's
//     defaults. All candidates consume the same stored events, headers and all.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"time"
)

func main() {
	if len(os.Args) >= 3 && os.Args[1] == serveArg {
		if err := serve(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "bench: the broker: %v\n", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the command; it returns the exit status: 0 unless a row could not be
// run, whatever the figures are.
func run(args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	var (
		asJSON  = f.Bool("json", false, "print JSON instead of a table")
		short   = f.Bool("short", false, "few rounds: a first look")
		rounds  = f.Int("rounds", 0, "rounds per row (default 20, with -short 5)")
		only    = f.String("row", "", "run the rows whose number or name matches this regular `expression`")
		cpu     = f.Int("cpu", 0, "run every row at this GOMAXPROCS (default: 1; queued rows at 1 and 2; row 8 at 2)")
		profile = f.String("profile", "", "write a CPU profile of our side of this `row`, by its number, and print no table")
	)
	if err := f.Parse(args); err != nil {
		return 2
	}
	which, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintf(stderr, "bench: -row: %v\n", err)
		return 2
	}
	e := effort{rounds: *rounds, slice: 15 * time.Millisecond, subs: 100_000}
	switch {
	case e.rounds > 0:
	case *short:
		e.rounds = 5
	default:
		e.rounds = 20
	}
	all := rows(e)
	if *cpu > 0 {
		all = atCPU(all, *cpu)
	}
	if *profile != "" {
		if err := writeProfile(all, *profile, stdout); err != nil {
			fmt.Fprintf(stderr, "bench: %v\n", err)
			return 1
		}
		return 0
	}
	rep := report{Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(), Rounds: e.rounds, Slice: e.slice}
	status := 0
	for _, r := range all {
		if !which.MatchString(r.id) && !which.MatchString(r.name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(stderr, "%-6s %s, GOMAXPROCS %d ... ", r.id, r.name, r.cpu)
		res, err := r.run(e)
		if err != nil {
			status = 1
			res.Error = err.Error()
			fmt.Fprintf(stderr, "FAILED: %v\n", err)
		} else {
			fmt.Fprintf(stderr, "%.1f s\n", time.Since(start).Seconds())
		}
		rep.Rows = append(rep.Rows, res)
	}
	if len(rep.Rows) == 0 {
		fmt.Fprintf(stderr, "bench: no row matches %q\n", *only)
		return 2
	}
	if *asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(rep)
	} else {
		err = rep.print(stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return status
}
