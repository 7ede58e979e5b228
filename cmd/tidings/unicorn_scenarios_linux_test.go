package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/internal/testkit"
)

// A difference is what we do otherwise than unicorn, and why. Each is a row of
// docs/processes.md.
type difference struct{ when, unicorn, tidings string }

var (
	hupOrder   = &difference{"HUP", "all workers are asked to go, then new ones boot: nobody answers meanwhile", "one after the other, each new worker is ready before its old one is asked to go"}
	hupBroken  = &difference{"HUP, and the new version does not boot", "no worker is left, and it is started again and again without a pause", "the old workers stay, and the log says why"}
	usr2Broken = &difference{"USR2, and the new version's workers do not boot", "the new master stays and starts them again and again; QUIT it", "the new master gives up; all is as before"}
	hupCount   = &difference{"HUP after TTIN or TTOU", "the configuration file's number of workers counts again", "what TTIN and TTOU have made of it stays"}
)

// A step does something to a peer and waits for its effect, as [peer.view] shows it,
// and what becomes of a request.
type step struct {
	make, end string         // files that are filled and emptied before
	signal    syscall.Signal // is sent
	to        string         // to a master or a worker: "" is the old master

	effect  string      // of unicorn
	tidings string      // ours, if another
	why     *difference // which must be given then
	known   bool        // new workers come and go: they are not shown
	cuts    bool        // requests may fail
	// log is what both logs say of it, unicorn's before the bar.
	log string
}

var unicornScenarios = map[string][]step{
	"workers": {
		{signal: syscall.SIGKILL, to: "a", cuts: true, effect: "old: b c | pid old | answers"},
		{signal: syscall.SIGQUIT, to: "b", effect: "old: c d | pid old | answers"},
		{signal: syscall.SIGTERM, to: "c", cuts: true, effect: "old: d e | pid old | answers"},
		{signal: syscall.SIGINT, to: "d", cuts: true, effect: "old: e f | pid old | answers"},
		{signal: syscall.SIGUSR1, effect: "old: e f | pid old | answers", log: "worker=1 done reopening logs|logs opened again"},
		{signal: syscall.SIGUSR1, to: "f", effect: "old: e f | pid old | answers", log: "worker=1 done reopening logs|logs opened again"},
		{signal: syscall.SIGWINCH, effect: "old: none | pid old | waits"},
		{signal: syscall.SIGHUP, effect: "old: g h | pid old | answers"},
		{signal: syscall.SIGWINCH, effect: "old: none | pid old | waits"},
		{signal: syscall.SIGTTIN, effect: "old: i | pid old | answers"},
		{signal: syscall.SIGKILL, cuts: true, effect: "old: signal: killed | pid old | refuses"},
	},
	"TTIN and TTOU": {
		{signal: syscall.SIGTTIN, effect: "old: a b c | pid old | answers"},
		{signal: syscall.SIGTTOU, effect: "old: a b | pid old | answers"},
		{signal: syscall.SIGTTOU, effect: "old: a | pid old | answers"},
		{signal: syscall.SIGTTOU, effect: "old: none | pid old | waits"},
		{signal: syscall.SIGTTIN, effect: "old: d | pid old | answers"},
		{signal: syscall.SIGHUP, effect: "old: e f | pid old | answers", tidings: "old: e | pid old | answers", why: hupCount},
	},
	"HUP": {
		{make: "hold", signal: syscall.SIGHUP, effect: "old: (c) (d) | pid old | waits", tidings: "old: (c) a b | pid old | answers", why: hupOrder},
		{end: "hold", effect: "old: c d | pid old | answers"},
		{signal: syscall.SIGHUP, effect: "old: e f | pid old | answers"},
	},
	"HUP to a version that does not boot": {
		{make: "broken", signal: syscall.SIGHUP, known: true, log: "exit 1|old workers stay",
			effect: "old: none | pid old | waits", tidings: "old: a b | pid old | answers", why: hupBroken},
		{end: "broken", effect: "old: c d | pid old | answers", tidings: "old: a b | pid old | answers", why: hupBroken},
		{signal: syscall.SIGHUP, effect: "old: e f | pid old | answers", tidings: "old: c d | pid old | answers", why: hupBroken},
	},
	"the upgrade by hand": {
		{signal: syscall.SIGUSR2, effect: "old: a b | new: c d | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGUSR2, effect: "old: a b | new: c d | pid new | pid.oldbin old | answers", log: "reexec-ed child already running|USR2 refused"},
		{signal: syscall.SIGUSR2, to: "new", effect: "old: a b | new: c d | pid new | pid.oldbin old | answers", log: "refusing rexec|QUIT it first"},
		{signal: syscall.SIGWINCH, effect: "old: none | new: c d | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGQUIT, effect: "old: exit status 0 | new: c d | pid new | answers"},
		{signal: syscall.SIGUSR1, to: "new", effect: "old: exit status 0 | new: c d | pid new | answers", log: "worker=1 done reopening logs|logs opened again"},
		{signal: syscall.SIGTTIN, to: "new", effect: "old: exit status 0 | new: c d e | pid new | answers"},
		{signal: syscall.SIGHUP, to: "new", effect: "old: exit status 0 | new: f g | pid new | answers", tidings: "old: exit status 0 | new: f g h | pid new | answers", why: hupCount},
		{signal: syscall.SIGQUIT, to: "new", cuts: true, effect: "old: exit status 0 | refuses"},
	},
	"the way back, and on again": {
		{signal: syscall.SIGUSR2, effect: "old: a b | new: c d | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGWINCH, effect: "old: none | new: c d | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGHUP, effect: "old: e f | new: c d | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGQUIT, to: "new", effect: "old: e f | pid old | answers"},
		{signal: syscall.SIGUSR2, effect: "old: e f | new: g h | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGQUIT, effect: "old: exit status 0 | new: g h | pid new | answers"},
	},
	"USR2, and the new master does not come that far": {
		{make: "hold", signal: syscall.SIGUSR2, effect: "old: a b | new: (c) (d) | pid new | pid.oldbin old | answers"},
		{signal: syscall.SIGUSR2, effect: "old: a b | new: (c) (d) | pid new | pid.oldbin old | answers", log: "reexec-ed child already running|USR2 refused"},
		{signal: syscall.SIGTERM, to: "new", effect: "old: a b | pid old | answers"},
		{end: "hold", make: "unreadable", signal: syscall.SIGUSR2, effect: "old: a b | pid old | answers", log: "exec()-ed|new master died"},
		{end: "unreadable", signal: syscall.SIGUSR2, effect: "old: a b | new: e f | pid new | pid.oldbin old | answers"},
	},
	"USR2 to a version whose workers do not boot": {
		{make: "broken", signal: syscall.SIGUSR2, known: true, log: "exit 1|upgrade given up",
			effect: "old: a b | new: none | pid new | pid.oldbin old | answers", tidings: "old: a b | pid old | answers", why: usr2Broken},
		{signal: syscall.SIGQUIT, to: "new", effect: "old: a b | pid old | answers"},
	},
}

// What the real unicorn does in each scenario is what tidings run does, but for the
// differences that are listed.
func TestUnicorn(t *testing.T) {
	t.Parallel()
	// They mostly wait, so more of them run at once than there are processors.
	slots := make(chan struct{}, 6)
	var running sync.WaitGroup
	defer running.Wait()
	for name, steps := range unicornScenarios {
		for _, make := range peers {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				t.Run(name+"/"+make.name, func(t *testing.T) {
					p := newPeer(t, make.start)
					for i, s := range steps {
						t.Logf("step %d: %v to %q, with %q, without %q", i+1, s.signal, s.to, s.make, s.end)
						p.play(s, make.name == "tidings")
					}
				})
			})
		}
	}
}

func (p *peer) play(s step, ours bool) {
	p.t.Helper()
	want := s.effect
	log, own, _ := strings.Cut(s.log, "|")
	if ours {
		log = own
	}
	if ours && s.why != nil {
		want = s.tidings
	}
	if (s.why != nil) != (s.tidings != "") {
		p.t.Fatalf("a difference without a reason, or none: %+v", s)
	}
	v := visit(p.addr)
	stop := func() { v.loop.StopAndWait() }
	if strings.HasSuffix(want, "waits") || s.cuts {
		v.loop.Stop() // it would wait, or fail
		stop = func() {}
	}
	p.prepare(s)
	if s.signal != 0 {
		if pid := p.pid(s.to); pid != 0 {
			p.check(syscall.Kill(pid, s.signal))
		}
	}
	if log != "" {
		testkit.Until(p.t, unicornPatience, func() bool { return strings.Contains(p.log(), log) })
	}
	p.await(want, s.known)
	stop()
	if n := v.failed.Load(); n > 0 && !s.cuts {
		p.t.Errorf("%d requests failed, the first: %v", n, *v.first.Load())
	}
	if !s.known {
		p.await(want, false) // not only for a moment
	}
}

// prepare changes the files, and begins a new log: what is there was said before.
func (p *peer) prepare(s step) {
	p.t.Helper()
	if s.make != "" {
		p.write(s.make, "not an assignment\n")
	}
	if s.end != "" {
		p.write(s.end, "")
	}
	if s.log == "" {
		return
	}
	p.readLog()
	if s.signal == syscall.SIGUSR1 && len(s.to) != 1 { // masters are to open it again
		p.check(os.Rename(filepath.Join(p.dir, "log"), filepath.Join(p.dir, "log.old")))
	} else {
		p.check(os.Truncate(filepath.Join(p.dir, "log"), 0))
	}
}

// What workers have in hand is answered at QUIT, and cut off at TERM and INT.
func TestUnicornRequestsInHand(t *testing.T) {
	t.Parallel()
	for sig, answered := range map[syscall.Signal]bool{syscall.SIGQUIT: true, syscall.SIGTERM: false, syscall.SIGINT: false} {
		for _, make := range peers {
			t.Run(sig.String()+"/"+make.name, func(t *testing.T) {
				t.Parallel()
				p := newPeer(t, make.start)
				v := testkit.Begin(p.addr, unicornPatience)
				p.check(v.Err)
				testkit.Accepted(t, unicornPatience, p.addr)
				p.check(syscall.Kill(p.cmd.Process.Pid, sig))
				// Those that have nothing in hand are gone.
				testkit.Until(t, unicornPatience, func() bool { return len(children(p.cmd.Process.Pid)) < 2 })
				if _, err := v.Finish(); (err == nil) != answered {
					t.Errorf("answered: %v, want %v", err, answered)
				}
				p.await("old: exit status 0 | refuses", false)
			})
		}
	}
}

// The differences are told to users.
func TestUnicornDifferencesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/processes.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[*difference]bool{}
	for _, steps := range unicornScenarios {
		for _, s := range steps {
			if d := s.why; d != nil && !told[d] {
				told[d] = true
				if row := "| " + d.when + " | " + d.unicorn + " | " + d.tidings + " |\n"; !strings.Contains(string(text), row) {
					t.Errorf("docs/processes.md lacks the row\n%s", row)
				}
			}
		}
	}
}
