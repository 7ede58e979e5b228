package hub_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

// An app is a process that opens embed:DIR, publishes, and handles. It writes what it
// does to files beside DIR: of those that it publishes under durable topics
// accepted.PID, of those that it handles handled.PID, and of live ones beats.PID, all
// with one line "ID NANOSECONDS" an event, written before anything else happens.
type app struct {
	dir  string
	bus  *tidings.Bus
	pid  string
	quit atomic.Bool
}

// Each app publishes so many durable events a second, from so many goroutines.
const (
	appRate    = 500
	appWorkers = 16
	beatEvery  = 20 * time.Millisecond
)

func runApp(dir string) error  { return (&app{dir: dir}).serve(true) }
func runIdle(dir string) error { return (&app{dir: dir}).serve(false) }

func (a *app) serve(publishes bool) error {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	ctx := context.Background()
	a.pid = strconv.Itoa(os.Getpid())
	var err error
	a.bus, err = tidings.Open(ctx, "embed:"+a.dir, tidings.Options{
		App: "shop", Instance: a.pid,
		Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}, {Pattern: "beat.*", Class: tidings.Live}},
	})
	if err != nil {
		return err
	}
	for _, s := range []struct {
		pattern, journal string
		o                tidings.SubscribeOptions
	}{
		{"order.>", "handled", tidings.SubscribeOptions{Durable: true}},
		{"beat.*", "beats", tidings.SubscribeOptions{Broadcast: true}},
	} {
		note, err := a.journal(s.journal)
		if err != nil {
			return err
		}
		if _, err = a.bus.Subscribe(ctx, s.pattern, func(_ context.Context, e tidings.Event) error {
			var id string
			if err := e.Decode(&id); err != nil {
				return err
			}
			return note(id)
		}, &s.o); err != nil {
			return err
		}
	}
	var all []*loop.Loop
	if publishes {
		if all, err = a.publish(); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	<-told
	a.quit.Store(true)
	for _, l := range all {
		l.StopAndWait()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.bus.Drain(ctx)
}

// journal returns what writes a line to a file.
func (a *app) journal(kind string) (func(id string) error, error) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(a.dir), kind+"."+a.pid), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return func(id string) error {
		_, err := fmt.Fprintf(f, "%s %d\n", id, time.Now().UnixNano())
		return err
	}, nil
}

// publish publishes until it is told to quit.
func (a *app) publish() (all []*loop.Loop, err error) {
	accepted, err := a.journal("accepted")
	if err != nil {
		return nil, err
	}
	for w := range appWorkers {
		all = append(all, loop.Go(func(context.Context) {
			tick := time.NewTicker(appWorkers * time.Second / appRate)
			defer tick.Stop()
			for i := 0; !a.quit.Load(); i++ {
				<-tick.C
				id := fmt.Sprintf("%s-%d-%d", a.pid, w, i)
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				err := a.bus.Publish(ctx, "order.placed", id)
				cancel()
				if err == nil {
					err = accepted(id)
				}
				if err != nil {
					fmt.Println("error", err)
				}
			}
		}))
	}
	return append(all, loop.Go(func(context.Context) {
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for i := 0; !a.quit.Load(); i++ {
			<-tick.C
			if err := a.bus.Publish(context.Background(), "beat."+a.pid, fmt.Sprintf("%s-%d", a.pid, i)); err != nil {
				fmt.Println("error", err)
			}
		}
	})), nil
}

// A line is one of a journal.
type line struct {
	id  string
	pid string
	at  time.Time
}

// journals reads those of a kind.
func journals(t *testing.T, dir, kind string) (all []line) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(dir), kind+".*"))
	must(t, err)
	for _, name := range files {
		f, err := os.Open(name)
		must(t, err)
		in := bufio.NewReader(f)
		for {
			text, err := in.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break // a line without an end is being written
			}
			must(t, err)
			id, at, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
			ns, err := strconv.ParseInt(at, 10, 64)
			must(t, err)
			all = append(all, line{id, strings.TrimPrefix(filepath.Ext(name), "."), time.Unix(0, ns)})
		}
		f.Close()
	}
	return all
}

// crew are the processes of a test, by pid.
type crew struct {
	t     *testing.T
	dir   string
	procs map[int]*testkit.Process
}

func newCrew(t *testing.T) *crew {
	dir := filepath.Join(t.TempDir(), "hub")
	return &crew{t: t, dir: dir, procs: map[int]*testkit.Process{}}
}

// start starts a process, which is at work when it returns.
func (c *crew) start(role string) int {
	c.t.Helper()
	p := testkit.Spawn(c.t, as(role, c.dir)...)
	p.Expect("ready")
	c.procs[p.PID()] = p
	return p.PID()
}

// host is the pid of the process that runs the hub, once that is ready and not the
// one that was.
func (c *crew) host(was int) (pid int) {
	c.t.Helper()
	testkit.Until(c.t, patience, func() bool {
		r, err := hub.Find(c.dir)
		must(c.t, err)
		if r == nil || r.URL == "" || r.PID == was {
			return false
		}
		pid = r.PID
		return true
	})
	if c.procs[pid] == nil {
		c.t.Fatalf("pid %d runs the hub, which is none of %v", pid, c.pids())
	}
	return pid
}

func (c *crew) pids() (all []int) {
	for pid := range c.procs {
		all = append(all, pid)
	}
	return all
}

// gone is the end of a process: by kill -9, or by TERM, after which it must end well.
func (c *crew) gone(pid int, sig syscall.Signal) {
	c.t.Helper()
	p := c.procs[pid]
	delete(c.procs, pid)
	must(c.t, syscall.Kill(pid, sig))
	for l := range p.Lines() {
		c.t.Errorf("process %d says %q", pid, l)
	}
	if state := p.Wait(); sig == syscall.SIGTERM && !state.Success() {
		c.t.Errorf("process %d ends by %v", pid, state)
	}
}

// lively waits until each process has live events that another one has published
// just now.
func (c *crew) lively() {
	c.t.Helper()
	begun := time.Now()
	testkit.Until(c.t, patience, func() bool {
		heard := map[string]bool{}
		for _, l := range journals(c.t, c.dir, "beats") {
			if l.at.After(begun) && !strings.HasPrefix(l.id, l.pid+"-") {
				heard[l.pid] = true
			}
		}
		for pid := range c.procs {
			if !heard[strconv.Itoa(pid)] {
				return false
			}
		}
		return true
	})
}

// An outage is from when the hub's process is told to go to when events were accepted
// again.
type outage struct{ from, to time.Time }

// judge ends all, and counts: what was accepted is handled, and what is handled twice
// is so by two processes: by one that could not tell the hub any more, or that the hub
// forgot to have told it, and by another after the outage had begun.
func (c *crew) judge(outages []outage) {
	c.t.Helper()
	for _, pid := range c.pids() {
		c.gone(pid, syscall.SIGTERM)
	}
	rest := c.start("idle")
	accepted := journals(c.t, c.dir, "accepted")
	testkit.Until(c.t, patience, func() bool { return len(lacking(accepted, journals(c.t, c.dir, "handled"))) == 0 })
	c.gone(rest, syscall.SIGTERM)

	handled := map[string][]line{}
	for _, l := range journals(c.t, c.dir, "handled") {
		handled[l.id] = append(handled[l.id], l)
	}
	doubled := 0
	for id, ls := range handled {
		slices.SortFunc(ls, func(a, b line) int { return a.at.Compare(b.at) })
		for i := 1; i < len(ls); i++ {
			doubled++
			explained := slices.ContainsFunc(outages, func(o outage) bool { return ls[i-1].at.Before(o.to) && ls[i].at.After(o.from) })
			if ls[i-1].pid == ls[i].pid || !explained {
				c.t.Errorf("event %s is handled by %s at %v, and by %s at %v, and the outages were %v", id, ls[i-1].pid, ls[i-1].at, ls[i].pid, ls[i].at, outages)
			}
		}
	}
	if len(accepted) < 500 {
		c.t.Errorf("%d events were accepted: too few to show anything", len(accepted))
	}
	slices.SortFunc(accepted, func(a, b line) int { return a.at.Compare(b.at) })
	for i, o := range outages {
		at, _ := slices.BinarySearchFunc(accepted, o.from, func(l line, from time.Time) int { return l.at.Compare(from) })
		var gap time.Duration
		for k := max(at, 1); k < len(accepted) && accepted[k-1].at.Before(o.to); k++ {
			gap = max(gap, accepted[k].at.Sub(accepted[k-1].at))
		}
		c.t.Logf("outage %d: no event was accepted for %v", i+1, gap.Round(time.Millisecond))
	}
	span := accepted[len(accepted)-1].at.Sub(accepted[0].at)
	c.t.Logf("%d events accepted in %v, %.0f a second; all handled, %d doubled", len(accepted), span.Round(time.Millisecond), float64(len(accepted))/span.Seconds(), doubled)
}

// lacking are those that were accepted and not handled.
func lacking(accepted, handled []line) (out []string) {
	seen := map[string]bool{}
	for _, l := range handled {
		seen[l.id] = true
	}
	for _, l := range accepted {
		if !seen[l.id] {
			out = append(out, l.id)
		}
	}
	return out
}

// progress waits until more events are accepted than before.
func (c *crew) progress(n int) {
	c.t.Helper()
	before := len(journals(c.t, c.dir, "accepted"))
	testkit.Until(c.t, patience, func() bool { return len(journals(c.t, c.dir, "accepted")) >= before+n })
}

// replace ends the process that runs the hub, and starts another app when one of the
// others has taken over.
func (c *crew) replace(host int, sig syscall.Signal) outage {
	c.t.Helper()
	o := outage{from: time.Now()}
	c.gone(host, sig)
	c.host(host)
	c.progress(100)
	o.to = time.Now()
	c.lively()
	c.start("app")
	return o
}

// Three processes share a directory, and whichever runs the hub is killed, again and
// again: another takes over, nothing accepted is lost, and live events flow.
func TestEmbedSurvivesItsHost(t *testing.T) {
	c := newCrew(t)
	for range 3 {
		c.start("app")
	}
	var outages []outage
	host := 0
	for range 4 {
		host = c.host(host)
		c.progress(300)
		c.lively()
		outages = append(outages, c.replace(host, syscall.SIGKILL))
	}
	c.judge(outages)
}

// A host that ends well hands over: nothing is lost, and the others go on.
func TestEmbedHostCloses(t *testing.T) {
	c := newCrew(t)
	for range 3 {
		c.start("app")
	}
	var outages []outage
	host := 0
	for range 3 {
		host = c.host(host)
		c.progress(200)
		outages = append(outages, c.replace(host, syscall.SIGTERM))
	}
	c.judge(outages)
}
