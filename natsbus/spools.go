package natsbus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/spool"
)

const (
	adoptEvery = 5 * time.Second       // how often it is looked for spools of dead processes
	awayAfter  = 2 * time.Second       // without a word of the stream
	emptyLook  = 20 * time.Millisecond // how often a drain looks whether a spool is empty
)

// spools are those that a connection looks after: its own and the adopted ones.
type spools struct {
	c    *conn
	dir  string
	name string
	opts spool.Options
	own  *forwarder
	run  *loop.Loop

	mu      sync.Mutex
	adopted []*forwarder
}

// spools reports whether this connection is to have a spool.
func (c *conn) spools() bool { return c.cfg.SpoolDir != "" && len(c.cfg.Durable) > 0 }

// openSpool makes the connection's own spool, and adopts those of dead processes of
// the app, which come first.
func (c *conn) openSpool() error {
	if !c.spools() {
		return nil
	}
	s := &spools{c: c, dir: c.cfg.SpoolDir, name: streamName(c.cfg.Prefix, c.cfg.App), opts: c.spoolOptions()}
	sp, err := spool.Open(s.dir, s.name, s.opts)
	if err != nil {
		return fmt.Errorf("natsbus: Options.SpoolDir: %w", err)
	}
	c.spool = &spooling{sp: sp, w: c.w, waiting: map[uint64]*item{}, over: map[uint64]error{}}
	c.spoolers = s
	var before []<-chan struct{}
	for _, f := range s.adopt() {
		before = append(before, f.run.Done())
	}
	if c.spool.on = len(before) > 0; c.spool.on {
		c.spool.open = 1 // the turn of those
	}
	s.own = c.forward(sp, c.spool, before...)
	s.run = loop.Go(s.main)
	if len(before) > 0 {
		c.aside(func(ctx context.Context) {
			for _, done := range before {
				select {
				case <-done:
				case <-ctx.Done():
					return
				}
			}
			c.spool.trimmed(0, 1)
			s.own.results.poke()
		})
	}
	return nil
}

// spoolNow is the clock of spools; tests set it.
var spoolNow = time.Now

func (c *conn) spoolOptions() spool.Options {
	return spool.Options{Max: c.cfg.SpoolMax, Logger: c.log, Now: spoolNow, OnError: func(err error) { c.drop(0, fmt.Errorf("natsbus: %w", err)) }}
}

func (s *spools) adopt() (now []*forwarder) {
	all, err := spool.Adopt(s.dir, s.name, s.opts)
	if err != nil {
		s.c.report(fmt.Errorf("natsbus: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range all {
		s.c.log.Info("natsbus: a process of this app has left events in its spool; they are sent now", "spool", sp.Path(), "events", sp.Stats().Waiting)
		stopAt("adopted")
		var before []<-chan struct{} // the oldest comes first
		if len(now) > 0 {
			before = append(before, now[len(now)-1].run.Done())
		}
		now = append(now, s.c.forward(sp, nil, before...))
	}
	s.adopted = append(s.adopted, now...)
	return now
}

func (s *spools) main(ctx context.Context) {
	tick := time.NewTicker(jitter(adoptEvery))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.closeEnded()
		s.adopt()
	}
}

// closeEnded lets go of adopted spools that are empty.
func (s *spools) closeEnded() {
	s.mu.Lock()
	var left, ended []*forwarder
	for _, f := range s.adopted {
		if f.run.Ended() {
			ended = append(ended, f)
		} else {
			left = append(left, f)
		}
	}
	s.adopted = left
	s.mu.Unlock()
	for _, f := range ended {
		s.close(f)
	}
}

func (s *spools) close(f *forwarder) {
	if err := f.stop(); err != nil {
		s.c.report(fmt.Errorf("natsbus: %w", err))
	}
}

// waiting is how many events lie in spools.
func (s *spools) waiting() (n int) {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range append([]*forwarder{s.own}, s.adopted...) {
		n += int(f.sp.Stats().Waiting)
	}
	return n
}

// drain waits until the spools are empty. With the broker away it does not: what lies
// there is safe.
func (s *spools) drain(ctx context.Context) {
	if s == nil {
		return
	}
	tick := time.NewTicker(emptyLook)
	defer tick.Stop()
	for (s.waiting() > 0 || s.c.spool.hasOpen()) && !s.c.spool.isAway() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// hasOpen reports whether anything was given to the spool that is not done; it may not
// be on the disk yet.
func (s *spooling) hasOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open > 0
}

func (s *spooling) isAway() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// stop leaves what is not done to whoever adopts it. The writer has stopped.
func (s *spools) stop() {
	if s == nil {
		return
	}
	s.run.StopAndWait()
	s.mu.Lock()
	all := append(s.adopted, s.own)
	s.adopted = nil
	s.mu.Unlock()
	if n := s.waiting(); n > 0 {
		s.c.log.Warn("natsbus: durable events stay in the spool: the next process of this app sends them, or tidings spool drain", "spool", s.dir, "events", n)
	}
	for _, f := range all {
		s.close(f)
	}
}
