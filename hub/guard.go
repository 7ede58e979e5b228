package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// When a disk is too full. What the streams may still take can be less than what is
// left of a large disk; then it does not matter how full that is.
const highWater = 0.9

// Times of the guard. Tests change them.
var (
	guardEvery = time.Second
	probeEvery = 5 * time.Second
	healAgain  = 10 * time.Second // after a try to start JetStream again that failed
)

// A disk has total bytes, of which some are free.
type disk struct{ total, free uint64 }

// full reports whether a store that may grow by so much more is about to fill it.
func (d disk) full(more int64) bool {
	return d.total > 0 && float64(d.free) < (1-highWater)*float64(d.total) && int64(d.free) < more
}

// A guard watches over what nats-server tells nobody: that a store cannot be written,
// after which it answers no publisher of that stream as long as it runs, or switches
// JetStream off.
type guard struct {
	h *Hub

	mu       sync.Mutex
	disk     disk
	full     bool
	unwrite  error // why nothing can be written, nil if it can
	gone     bool  // the store was removed while the server has it open; until the hub is started again
	enabled  bool  // JetStream
	healing  bool
	stopping bool

	// The loop's own.
	store   fs.FileInfo // as it was first
	probed  time.Time
	healed  time.Time // last tried
	said    string    // what was reported last
	saidFul bool
}

// run looks around until ctx ends.
func (g *guard) run(ctx context.Context) {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		g.look()
		g.act()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look finds out how things are.
func (g *guard) look() {
	d, err := diskOf(g.h.dir.path)
	if g.removed() {
		g.lose()
		return
	}
	unwrite := g.unwritable()
	if broken := g.h.log.fault() != "" || unwrite != nil; broken || time.Since(g.probed) >= probeEvery {
		g.probed = time.Now()
		unwrite = errors.Join(g.probe(), err)
	}
	var more int64
	enabled := g.h.srv.JetStreamEnabled()
	if js, err := g.h.srv.Jsz(nil); err == nil && enabled {
		more = js.Config.MaxStore - int64(js.Store)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.disk, g.full, g.unwrite, g.enabled = d, d.full(more), unwrite, enabled
}

// removed reports whether the store is another directory than it was, or none: by rm, or
// by what cleans /tmp. The server writes on into files that nobody will find again, and
// acknowledges that.
func (g *guard) removed() bool {
	st, err := os.Stat(filepath.Join(g.h.dir.store(), server.JetStreamStoreDir))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	if g.store == nil {
		g.store = st
	}
	return !os.SameFile(g.store, st)
}

// lose has the server take nothing any more.
func (g *guard) lose() {
	g.mu.Lock()
	before := g.gone
	g.gone, g.enabled = true, false
	g.mu.Unlock()
	if before {
		return
	}
	g.h.cfg.Logger.Error("hub: no durable event is taken: the store was removed while the hub had it open, and what lay in it is lost: restart the hub, which begins with an empty one, and restore a backup if there is one (tidings restore)", "store", g.h.dir.store())
	g.h.reloading.Lock()
	defer g.h.reloading.Unlock()
	if err := g.h.srv.ShutdownJetStream(); err != nil {
		g.h.cfg.Logger.Error("hub: JetStream could not be stopped", "err", err)
	}
}

func (g *guard) unwritable() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unwrite
}

// probe writes as nats-server does, and syncs.
func (g *guard) probe() error {
	name := filepath.Join(g.h.dir.path, "probe")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4<<10))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(name))
}

// act says what is wrong, once as long as it is the same, and heals what can be.
func (g *guard) act() {
	log := g.h.cfg.Logger
	g.mu.Lock()
	full, d, unwrite, enabled, gone := g.full, g.disk, g.unwrite, g.enabled, g.gone
	g.mu.Unlock()
	if gone {
		return
	}
	if full != g.saidFul {
		if g.saidFul = full; full {
			log.Warn("hub: the disk is nearly full: when it is, no durable event is taken; make room, or move the hub's directory to a larger disk", "dir", g.h.dir.path, "free", d.free, "total", d.total)
		} else {
			log.Info("hub: there is room on the disk again", "dir", g.h.dir.path, "free", d.free, "total", d.total)
		}
	}
	fault := g.h.log.fault()
	why := fault
	switch {
	case unwrite != nil:
		why = unwrite.Error()
	case why == "" && !enabled:
		why = "JetStream was switched off"
	}
	if why != g.said {
		if g.said = why; why == "" {
			log.Info("hub: the store can be written again", "dir", g.h.dir.path)
		} else {
			log.Error("hub: no durable event is taken: "+why+": "+g.wayOut(fault), "dir", g.h.dir.path, "free", d.free)
		}
	}
	if fault != "" && unwrite == nil && !full && time.Since(g.healed) >= healAgain {
		g.heal(fault)
	}
}

func (g *guard) wayOut(fault string) string {
	if fault == "" && g.unwritable() == nil {
		return "the lines of nats-server before this one say why; restart the hub when that is settled"
	}
	return "make room on the disk, or let this user write there; JetStream is then started again by itself"
}

// stop has /readyz say so, and nothing be started again.
func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopping = true
}

// heal starts JetStream anew. What a store could not write it never tries again: only
// opening it once more does, which finds all that was acknowledged.
func (g *guard) heal(fault string) {
	h := g.h
	h.reloading.Lock()
	defer h.reloading.Unlock()
	g.mu.Lock()
	stopping := g.stopping
	g.mu.Unlock()
	if stopping {
		return
	}
	g.healed = time.Now()
	h.cfg.Logger.Info("hub: the store can be written again, JetStream is started anew", "after", fault)
	g.setHealing(true)
	defer g.setHealing(false)
	h.log.forget() // what is said from now on is news
	err := h.srv.ShutdownJetStream()
	if err == nil {
		err = h.restartJetStream()
	}
	if err != nil {
		h.log.blame("JetStream could not be started again: " + err.Error())
		h.cfg.Logger.Error("hub: JetStream could not be started again, it is tried once more: restart the hub if that goes on", "err", err, "again", healAgain)
		return
	}
	g.said = ""
	g.look()
	h.cfg.Logger.Info("hub: durable events are taken again")
}

func (g *guard) setHealing(is bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.healing = is
}

// restartJetStream has the server open its store. reloading is held.
func (h *Hub) restartJetStream() error {
	if err := h.srv.ReloadOptions(h.built.Load().opts.Clone()); err != nil { // which does that if JetStream should be on and is not
		return err
	}
	if !h.srv.JetStreamEnabled() {
		return errors.New("nats-server has not started it; its log says why")
	}
	return nil
}

// reasons say why the hub is not ready; none: it is.
func (g *guard) reasons() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var why []string
	if g.stopping {
		why = append(why, "it is being stopped")
	}
	if g.healing {
		why = append(why, "JetStream is being started again")
	}
	if g.gone {
		why = append(why, "the store was removed while the hub had it open: restart the hub")
	}
	if !g.enabled {
		why = append(why, "JetStream is off: no durable event is taken")
	}
	if g.unwrite != nil {
		why = append(why, "the store cannot be written: "+g.unwrite.Error())
	}
	if f := g.h.log.fault(); f != "" {
		why = append(why, "nats-server has met a fault: "+f)
	}
	if g.full {
		why = append(why, fmt.Sprintf("the disk is nearly full: %d of %d bytes are free", g.disk.free, g.disk.total))
	}
	return why
}
