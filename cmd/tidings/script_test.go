//go:build unix

package main

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this test binary the command that scripts run.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"tidings":     func() { os.Exit(run(os.Args[1:])) },
		"failing":     runFailing,
		"pay":         runPay,
		"nats-server": runServer,
		"clerk":       runClerk,
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":    await,
			"status":   status,
			"hubat":    hubAt,
			"group":    group,
			"ungroup":  ungroup,
			"publish":  publish,
			"spool":    spoolAway,
			"load":     startLoad,
			"handled":  handled,
			"loaded":   loaded,
			"serverat": serverAt,
			"userof":   userOf,
			"stream":   changeStream,
			"pause":    pause,
		},
	})
}

// await FILE REGEXP waits until the file has a match.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		b, _ := os.ReadFile(ts.MkAbs(args[0])) // it may not be there yet
		if re.Match(b) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%s never matched %q; it holds:\n%s", args[0], args[1], b)
		}
	}
}

// status N COMMAND... runs a command that must end with status N. Its output is
// kept as that of exec is.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	ts.Check(ts.Exec("sh", append([]string{"-c", `n=$1; shift; "$@"; s=$?; [ $s = $n ] || { echo "exit status $s, want $n" >&2; exit 1; }`, "sh"}, args...)...))
}
