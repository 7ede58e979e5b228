package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/supervisor"
)

// perKind is how often each kind is sent in a burst, but for those that count.
const perKind = 3

// burst sends kinds to a process that is held meanwhile: all of them are pending
// when it goes on. But for TTIN and TTOU, which come just after: they are stop
// signals, and SIGCONT discards those that are pending.
func (s *subject) burst(kinds ...string) error {
	if err := s.stop(s.pid); err != nil {
		return err
	}
	s.at, s.events = witness.Now(), len(s.m.events)
	for range perKind {
		for _, name := range kinds {
			if name == "TTIN" || name == "TTOU" {
				continue
			}
			if err := unix.Kill(s.pid, numbers[name]); err != nil {
				return err
			}
		}
	}
	s.resume()
	for _, name := range []string{"TTIN", "TTOU"} {
		if slices.Contains(kinds, name) {
			if err := unix.Kill(s.pid, numbers[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

// survivesBurst: everything that a master can be asked for happens.
func (s *subject) survivesBurst() (string, error) {
	kinds := []string{"USR1", "TTIN", "HUP", "USR2"}
	if err := s.burst(kinds...); err != nil {
		return "", err
	}
	if err := s.took(kinds...); err != nil {
		return "", err
	}
	next, err := s.upgraded()
	s.want++
	err = errors.Join(err, s.rolled(), s.reopened())
	return fmt.Sprintf("each took effect: %s of a next generation, new master, log", countWorkers(s.want)),
		errors.Join(err, s.untouched(pidsOf(s.serving(next))))
}

// survivesPause: WINCH takes the workers away, and HUP has them back, or has had
// them replaced before: signals that come at once have no order.
func (s *subject) survivesPause() (string, error) {
	kinds := []string{"WINCH", "HUP", "TTIN", "TTOU", "USR1"}
	if err := s.burst(kinds...); err != nil {
		return "", err
	}
	if err := s.took(kinds...); err != nil {
		return "", err
	}
	if err := s.await("the end of the workers", func() bool {
		return !slices.ContainsFunc(s.before, func(w *workerState) bool { return w.gone == 0 })
	}); err != nil {
		return "", err
	}
	now, err := s.status(s.master)
	if err != nil {
		return "", err
	}
	if now.Want > signalWorkers+1 {
		err = fmt.Errorf("%s wanted in the end", countWorkers(now.Want))
	}
	return fmt.Sprintf("each took effect: the workers end, then %s", countWorkers(now.Want)), errors.Join(err, s.has(now.Want), s.reopened())
}

// endsInBurst: the master ends, whatever it took before that. If that was USR2, a
// new master goes on.
func endsInBurst(kinds ...string) effect {
	return func(s *subject) (string, error) {
		if err := s.burst(kinds...); err != nil {
			return "", err
		}
		if err := errors.Join(s.took("QUIT"), s.await("the end of the master", func() bool { return s.ended(s.master) })); err != nil {
			return "", err
		}
		text, next := "status 0, after "+countWorkers(len(s.before)), 0
		if all := s.masters(); len(all) > 1 {
			text, next = text+"; a new master was there before", all[1]
		}
		return text, errors.Join(s.endedWell(s.master), s.names(next, 0))
	}
}

// workerEndsInBurst: a second request to go ends a worker at once.
func (s *subject) workerEndsInBurst() (string, error) {
	if err := s.burst("QUIT", "TERM", "INT", "USR1"); err != nil {
		return "", err
	}
	return s.isReplaced()
}

// counts: of requests each one counts.
func (s *subject) counts() (string, error) {
	const n, clients = 1000, 8
	s.at, s.events = witness.Now(), len(s.m.events)
	c := supervisor.Control{Path: supervisor.ControlPath(s.pidFile(s.files))}
	var left atomic.Int64
	left.Store(n)
	var asking sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		asking.Go(func() {
			for left.Add(-1) >= 0 && errs[i] == nil {
				_, errs[i] = c.Request(context.WithoutCancel(s.ctx), "reopen")
			}
		})
	}
	asking.Wait()
	now, err := s.status(s.master)
	err = errors.Join(err, s.look())
	if err == nil && now.Requests != n {
		err = fmt.Errorf("%d requests were counted, not %d", now.Requests, n)
	}
	done := 0
	for _, e := range s.m.events[s.events:] {
		if e.Event == supervisor.EventRequest && e.Master == s.master && e.Reason == "" {
			done++
		}
	}
	if done != n {
		err = errors.Join(err, fmt.Errorf("%d requests had an effect, not %d", done, n))
	}
	return fmt.Sprintf("%d requests, each opened the log again", n), errors.Join(append(errs, err)...)
}
