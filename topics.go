package tidings

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/topic"
)

// entry is one topic of a bus.
type entry struct {
	bus   *Bus
	topic string
	plain record               // of all its events that need no other
	view  atomic.Pointer[view] // nil: nobody listens, nothing to do

	// Written by every publish that somebody listens to, so kept away from the line
	// that all read.
	_     [64]byte
	count atomic.Uint64 // events: the last part of their ids, and the clock of samples
	stamp atomic.Int32  // how many more events get the time whether asked for or not; stampAlways: all
	_     [48]byte

	// Guarded by bus.mu.
	forgotten bool
	typed     typed // its typed topic, which keeps it from being forgotten; nil: none
}

// typed is a *typedTopic of any T.
type typed interface {
	follow(*view)
	alone() uint64
	payload() string
}

// setView is called with bus.mu held.
func (e *entry) setView(v *view) {
	e.view.Store(v)
	if e.typed != nil {
		e.typed.follow(v)
	}
}

const (
	stampLearning = 64
	stampAlways   = -1
)

// view is where events of one topic go: an immutable snapshot.
type view struct {
	inline, queued []*Subscription // in the order they are served
	shares         []share         // the queues of queued
	publish        adapter.Class   // 0: stays in this process
	instr          adapter.Class   // the same for instrumented events
	fast           bool            // nothing but subscribers here, none with options that cost
	filters        bool            // some have to be asked first
	starts         bool            // some want to see blocks begin
	around         bool            // there is middleware around Publish
	watchers       int             // of inline, those of Debugger.Watch
}

// What stands in place of a view that has to be made anew, and of all views of a
// closed bus: publishing then takes the slow way without having to ask.
var staleView, closedView = &view{}, &view{}

// wanted reports whether instrumenting reaches anybody.
func (v *view) wanted() bool { return len(v.inline)+len(v.queued) > 0 || v.instr != 0 }

// maxNamed bounds the topics remembered by name alone: published names that
// contain ids must not accumulate.
const maxNamed = 4096

// names finds entries by topic. Looking one up takes no lock: measured, a plain
// map read through one atomic load costs 8 ns where sync.Map costs 13. New ones
// are collected beside it until copying it is worth it, so that n names cost n.
// All methods but load are called with the bus's mu held.
type names struct {
	read   atomic.Pointer[map[string]*entry]
	recent map[string]*entry
	misses int
}

func (n *names) load(name string) *entry {
	if m := n.read.Load(); m != nil {
		return (*m)[name]
	}
	return nil
}

func (n *names) find(name string) *entry {
	if e := n.load(name); e != nil {
		return e
	}
	e := n.recent[name]
	if e != nil {
		n.misses++
		n.settle()
	}
	return e
}

func (n *names) add(e *entry) {
	if n.recent == nil {
		n.recent = map[string]*entry{}
	}
	n.recent[e.topic] = e
	n.misses++
	n.settle()
}

// settle copies once the names that were looked for in vain are as many as the
// copies to make.
func (n *names) settle() {
	if n.misses >= len(n.recent)+n.settled()/8 {
		n.keep(func(*entry) bool { return true })
	}
}

func (n *names) settled() int {
	if m := n.read.Load(); m != nil {
		return len(*m)
	}
	return 0
}

func (n *names) len() int { return n.settled() + len(n.recent) }

// keep drops the others.
func (n *names) keep(want func(*entry) bool) {
	all := make(map[string]*entry, n.len())
	for e := range n.all {
		if want(e) {
			all[e.topic] = e
		}
	}
	n.read.Store(&all)
	n.recent, n.misses = nil, 0
}

func (n *names) all(yield func(*entry) bool) {
	each := func(m map[string]*entry) bool {
		for e := range maps.Values(m) {
			if !yield(e) {
				return false
			}
		}
		return true
	}
	if m := n.read.Load(); m == nil || each(*m) {
		each(n.recent)
	}
}

// entry finds or makes the entry of a topic.
func (b *Bus) entry(name string) (*entry, error) {
	if e := b.names.load(name); e != nil {
		return e, nil
	}
	if err := topic.Check(name); err != nil {
		return nil, err
	}
	if isOwn(name) {
		return nil, fmt.Errorf("%w %q: topics that begin with tidings. are the bus's own", ErrTopic, name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.makeEntry(name), nil
}

// makeEntry is called with mu held.
func (b *Bus) makeEntry(name string) *entry {
	if e := b.names.find(name); e != nil {
		return e
	}
	if b.named == maxNamed {
		b.forgetNamed()
	}
	b.named++
	e := &entry{bus: b, topic: strings.Clone(name)}
	e.plain = e.record()
	e.view.Store(staleView)
	b.names.add(e)
	b.refreshLocked(e)
	return e
}

// record begins a count of events. mu is held.
func (e *entry) record() record {
	e.bus.numbers++
	return record{bus: e.bus, entry: e, number: e.bus.numbers}
}

// forgetNamed drops the entries that no typed topic holds; the next publish
// makes them again. mu is held.
func (b *Bus) forgetNamed() {
	b.names.keep(func(e *entry) bool {
		if e.typed != nil {
			return true
		}
		e.forgotten = true
		b.unfresh(e)
		return false
	})
	b.named = 0
}

// unfresh takes an entry out of use until its view is made anew. mu is held.
func (b *Bus) unfresh(e *entry) {
	if v := e.view.Load(); v != nil {
		for _, s := range v.inline {
			s.ran.unfollow(e)
		}
	}
	e.setView(staleView)
	b.fresh.remove(e.topic, e)
}

// current is the entry's view, made anew if subscriptions have changed.
func (e *entry) current() *view {
	if v := e.view.Load(); v != staleView {
		return v
	}
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	return e.bus.refreshLocked(e)
}

// renew has the view made anew if it is still this one, since queues have moved.
func (e *entry) renew(v *view) {
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	if e.view.Load() == v {
		e.bus.unfresh(e)
	}
}

// refreshLocked makes a view when it is needed and not when it changes: of a
// hundred thousand subscriptions to one topic only the last builds anything.
func (b *Bus) refreshLocked(e *entry) *view {
	v := e.view.Load()
	if v != staleView {
		return v
	}
	v = b.look(e.topic)
	if v != nil && len(v.inline)+len(v.queued) > 0 && e.stamp.Load() != stampAlways {
		e.stamp.Store(stampLearning)
	}
	if e.forgotten {
		return v // whoever holds it still uses it once; nothing may keep it alive
	}
	if v != nil {
		for _, s := range v.inline {
			if s.opts.Filter == nil {
				s.ran.follow(e)
			}
		}
	}
	e.setView(v)
	b.fresh.insert(e.topic, e)
	return v
}

// changed marks the views that a pattern touches. mu is held.
func (b *Bus) changed(pattern string) {
	var touched []*entry
	b.fresh.covered(pattern, func(e *entry) {
		if isOwn(e.topic) == isOwn(pattern) {
			touched = append(touched, e)
		}
	})
	for _, e := range touched {
		b.unfresh(e)
	}
}

// allChanged is changed for every topic, the bus's own too. mu is held.
func (b *Bus) allChanged() {
	b.changed(">")
	b.changed(ownTopics)
}

// look computes a view. mu is held.
func (b *Bus) look(name string) *view {
	state := b.state.Load()
	if state == stateClosed && !isOwn(name) {
		return closedView
	}
	v := &view{}
	v.fast = state == stateOpen && !b.opts.AlwaysEncode && !b.opts.Strict && b.opts.Redact == nil
	var all []*Subscription
	b.patterns.match(name, func(s *Subscription) {
		if isOwn(s.pattern) == isOwn(name) && !(s.opts.Durable && b.remote) {
			all = append(all, s)
		}
	})
	slices.SortFunc(all, func(x, y *Subscription) int {
		return cmp.Or(boolCompare(x.wild, y.wild), cmp.Compare(x.order, y.order))
	})
	for _, s := range all {
		v.add(s)
	}
	v.shares = b.shares(v.queued)
	if !isOwn(name) {
		if b.remote {
			v.publish, v.instr = b.classes(name)
		}
		v.around = b.around != nil
	}
	if v.publish != 0 || v.instr != 0 || v.around {
		v.fast = false
	} else if len(all) == 0 {
		return nil
	}
	return v
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (v *view) add(s *Subscription) {
	if s.opts.Inline {
		v.inline = append(v.inline, s)
	} else {
		v.queued = append(v.queued, s)
	}
	if s.watcher {
		v.watchers++
	}
	v.filters = v.filters || s.opts.Filter != nil
	v.starts = v.starts || s.opts.Start != nil
	v.fast = v.fast && s.opts.Filter == nil && s.opts.Start == nil && !(s.opts.Inline && s.opts.Timeout > 0)
}

// pick asks the filters.
func (v *view) pick(name string) (inline, queued []*Subscription) {
	if !v.filters {
		return v.inline, v.queued
	}
	return wanting(v.inline, name), wanting(v.queued, name)
}

func wanting(subs []*Subscription, name string) []*Subscription {
	var out []*Subscription
	for _, s := range subs {
		if s.wants(name) {
			out = append(out, s)
		}
	}
	return out
}

// classes applies the routes: without any, what is published is live and what is
// instrumented stays here.
func (b *Bus) classes(name string) (publish, instr adapter.Class) {
	if len(b.opts.Routes) == 0 {
		return adapter.Live, 0
	}
	for _, r := range b.opts.Routes {
		if !topic.Match(r.Pattern, name) {
			continue
		}
		switch r.Class {
		case Live:
			return adapter.Live, adapter.Live
		case Durable:
			if r.Ack == AckSpool {
				return adapter.Spooled, adapter.Spooled
			}
			return adapter.Durable, adapter.Durable
		default:
			return 0, 0
		}
	}
	return 0, 0
}

// ownTopics covers the bus's own events, which only patterns that begin with
// "tidings." get.
const ownTopics = "tidings.>"

// isOwn reports whether a topic or pattern is one of the bus's own events.
func isOwn(name string) bool { return strings.HasPrefix(name, "tidings.") }
