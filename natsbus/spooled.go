package natsbus

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/spool"
)

// spooling is what a connection keeps in its own spool: with the broker away all
// durable events, and at any time those of routes with Ack: Spool. As long as anything
// lies there, whatever is durable goes that way, so that nothing overtakes.
type spooling struct {
	sp *spool.Spool
	w  *writer

	// mu is taken with the writer's held, never the other way round, and not held
	// while the spool is called.
	mu      sync.Mutex
	on      bool
	away    bool             // the broker does not answer: what is on the disk is accepted
	open    int              // events that were given to the spool and are not done
	waiting map[uint64]*item // on the disk, for callers that wait for the broker
	over    map[uint64]error // of those that are done already, while the spool calls back
	done    uint64           // up to here all are
}

// diverts reports whether an item goes to the spool. The writer's mu is held, so that
// those before it are where they go.
func (s *spooling) diverts(it *item) bool {
	if s == nil || it.forwarded || it.internal {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.class == adapter.Spooled {
		s.on = true
	}
	return s.on
}

// begin counts an item that is given to the spool.
func (s *spooling) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
}

// take gives an item to the spool, which is counted already. The writer's mu is held.
func (s *spooling) take(it *item) {
	it.state.Store(spooledState)
	s.sp.Append(encodeRecord(it), func(n uint64, err error) {
		stopAt("stored")
		// Of a spool that is closed Append itself says so, and the writer's mu is held.
		if it.reserved && !errors.Is(err, spool.ErrClosed) && s.w.release(&s.w.keep, []*item{it}) {
			s.w.notes.poke() // somebody may wait until it is idle
		}
		s.stored(it, n, err)
	})
}

// stored says that an item is on the disk, or is not.
func (s *spooling) stored(it *item, n uint64, err error) {
	s.mu.Lock()
	over, known := s.over[n]
	switch {
	case err != nil:
		s.open--
		err = spoolError(it, err)
	case known:
		delete(s.over, n)
		err = over
	case n <= s.done || it.class == adapter.Spooled || s.away || it.hurried:
	default:
		s.waiting[n] = it
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	it.settle(err)
}

func spoolError(it *item, err error) error {
	switch {
	case errors.Is(err, spool.ErrFull):
		return fmt.Errorf("natsbus: %s: %w: %w", it.topic, adapter.ErrFull, err)
	case errors.Is(err, spool.ErrSync):
		return fmt.Errorf("natsbus: %s: %w: %w", it.topic, adapter.ErrInDoubt, err)
	case errors.Is(err, spool.ErrClosed):
		return errClosed
	}
	return fmt.Errorf("natsbus: %s: not accepted: %w", it.topic, err)
}

// settle gives an item that is not the writer's its result, once.
func (it *item) settle(err error) {
	switch {
	case it.state.Swap(done) == done:
	case it.tell != nil:
		it.tell(err)
	default:
		it.done <- err
	}
}

// hurry is for a caller that waits no longer: its event is on the disk, or will be in
// a moment, and that is enough.
func (s *spooling) hurry(it *item) {
	s.mu.Lock()
	it.hurried = true
	var found bool
	for n, w := range s.waiting {
		if w == it {
			delete(s.waiting, n)
			found = true
		}
	}
	s.mu.Unlock()
	if found {
		it.settle(nil)
	}
}

// forwarded says what became of a record: it is with the broker, or was set aside.
func (s *spooling) forwarded(n uint64, err error) {
	s.mu.Lock()
	it := s.waiting[n]
	delete(s.waiting, n)
	if it == nil && err != nil {
		s.over[n] = err // the caller may not wait yet, or not any more
	}
	s.away = false
	s.mu.Unlock()
	if it != nil {
		it.settle(err)
	}
}

// trimmed says that so many more are done, all up to n.
func (s *spooling) trimmed(n uint64, more int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open -= more
	s.done = n
	for k := range s.over {
		if k+1000 < n {
			delete(s.over, k) // nobody has waited for it
		}
	}
}

// leave has what waits for the broker be accepted, as it is on the disk.
func (s *spooling) leave() {
	s.mu.Lock()
	s.on, s.away = true, true
	left := s.waiting
	s.waiting = map[uint64]*item{}
	s.mu.Unlock()
	for _, it := range left {
		it.settle(nil)
	}
}

// whenClosed is the cause at the end of an adapter.
const whenClosed = "closed"

// divert moves all durable events that are on their way, in the order in which they
// were accepted, to the spool, and has later ones follow: the broker is away.
func (w *writer) divert(cause string) {
	s := w.c.spool
	if s == nil {
		return
	}
	s.mu.Lock()
	before := s.away
	s.mu.Unlock()
	if before {
		return
	}
	w.mu.Lock()
	s.mu.Lock()
	s.on, s.away = true, true
	s.mu.Unlock()
	moved, stay := split(w.keep.items)
	w.keep.items = stay
	for _, o := range w.boxes {
		moved = append(moved, o.takeOwn()...)
	}
	slices.SortStableFunc(moved, func(a, b *item) int { return int(int64(a.order - b.order)) })
	for _, it := range moved {
		if !it.placed {
			w.keep.n--
			w.keep.bytes -= it.size
		}
		was := it.state.Load()
		if was >= gone || !it.state.CompareAndSwap(was, spooledState) {
			continue // the caller has given up
		}
		if it.token != "" {
			w.c.mux.forget(it.token)
			it.token = ""
		}
		if it.tell != nil {
			w.untold-- // it cannot expire there
		}
		s.begin()
		s.take(it)
	}
	w.tellRoom()
	w.mu.Unlock()
	stopAt("diverted")
	s.leave()
	switch {
	case cause != whenClosed:
		w.c.log.Warn("natsbus: the broker is away: durable events go to the spool", "spool", s.sp.Path(), "cause", cause, "moved", len(moved))
	case len(moved) > 0:
		w.c.log.Warn("natsbus: durable events that are not acknowledged stay in the spool: the next process of the app sends them", "spool", s.sp.Path(), "cause", cause, "moved", len(moved))
	}
}

// split tells what may go to a spool from what has come from one, where it keeps its
// place, and from what never does.
func split(items []*item) (move, stay []*item) {
	for _, it := range items {
		switch {
		case it.forwarded || it.internal:
			stay = append(stay, it)
		case it.state.Load() < done:
			move = append(move, it)
		}
	}
	return move, stay
}

// takeOwn takes out what is not there from a spool, and may go to one.
func (o *outbox) takeOwn() (own []*item) {
	for _, list := range []*[]*item{&o.unacked, &o.fresh} {
		move, stay := split(*list)
		own = append(own, move...)
		*list = stay
	}
	o.again, o.batch = nil, nil
	o.probing = o.probing && len(o.unacked) > 0
	return own
}

// undivert has durable events go straight to the broker again, once the spool is empty
// and the connection is up.
func (w *writer) undivert() {
	s := w.c.spool
	w.mu.Lock()
	defer w.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on && s.open == 0 && w.c.link.isUp() {
		if s.away { // else it is a route's whose events go that way each time
			w.c.log.Info("natsbus: the spool is empty: durable events go to the broker", "spool", s.sp.Path())
		}
		s.on, s.away = false, false
	}
}
