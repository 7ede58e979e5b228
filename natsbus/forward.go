package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/spool"
)

// How much of a spool is on its way to the broker at once, and how it is looked after.
const (
	forwardMost  = 1024
	forwardBytes = 8 << 20
	forwardNote  = 50 * time.Millisecond // at most so often it is noted how far it came
	forwardAgain = 500 * time.Millisecond
	forwardSay   = 10 * time.Second
)

// Names of notes begin with these, and then comes a stream.
const (
	noteFirst    = "first "    // of when nothing had been sent to it
	noteProgress = "progress " // of later
)

// A base says how far a stream was, as a note: of the records above a number none can
// be stored in it up to that sequence. After a loss of power more records may be there
// than the note of progress was about; for those the first counts.
type base struct {
	Above   uint64    `json:"above"`
	After   uint64    `json:"after"`
	Certain bool      `json:"certain"`
	Created time.Time `json:"created"` // of the stream
}

// baseOf finds what is known of a record of a dead process, and whether it may have been
// sent at all.
func (f *forwarder) baseOf(stream string, n uint64) (b base, sent bool) {
	if b, sent = f.adopted[noteProgress+stream]; sent && n > b.Above {
		return b, true
	}
	b, sent = f.adopted[noteFirst+stream]
	return b, sent
}

// A forwarder sends what lies in one spool, in its order: the connection's own, or one
// that it has adopted. What it has sent and the broker has acknowledged is trimmed.
//
// Nobody knows of a dead process what it had sent of what lies in its spool: so all
// of it is in doubt from when it was accepted, if anything was sent at all.
type forwarder struct {
	c       *conn
	sp      *spool.Spool
	own     *spooling       // nil: adopted
	adopted map[string]base // what its owner has noted; nil: it is our own
	run     *loop.Loop
	results *mailbox[forwardResult]
	refused atomic.Uint64 // events that were set aside

	// What follows belongs to the loop.
	sent   []*forwardItem // in order, and not all done
	bytes  int
	noted  map[*outbox]bool // a base is on the disk
	noteAt time.Time
	full   time.Time // until then nothing is sent
	absent int       // so many, one after the other, were looked up and not there
	sure   bool      // the rest was never sent
	saidAt time.Time
}

type forwardItem struct {
	n    uint64
	it   *item
	data []byte
	done bool
}

type forwardResult struct {
	f   *forwardItem
	err error
}

func (c *conn) forward(sp *spool.Spool, own *spooling, after ...<-chan struct{}) *forwarder {
	f := &forwarder{c: c, sp: sp, own: own, results: newMailbox[forwardResult](), noted: map[*outbox]bool{}}
	if own == nil {
		f.adopted = map[string]base{}
		for k, v := range sp.Notes() {
			var b base
			if err := json.Unmarshal(v, &b); err != nil {
				b = base{} // nothing is certain
			}
			f.adopted[k] = b
		}
	}
	f.run = loop.Go(func(ctx context.Context) {
		for _, before := range after {
			select {
			case <-before:
			case <-ctx.Done():
				return
			}
		}
		f.main(ctx)
	})
	return f
}

func (f *forwarder) main(ctx context.Context) {
	select {
	case <-f.c.placed:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(forwardAgain)
	defer tick.Stop()
	for {
		f.settle(ctx)
		f.feed(ctx)
		if len(f.sent) == 0 {
			if f.own == nil && f.sp.Stats().Waiting == 0 {
				return
			}
			if f.own != nil {
				f.c.w.undivert()
			}
		}
		select {
		case <-f.results.wake:
		case <-f.sp.Ready():
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// feed hands over what there is room for. What is in doubt is looked up together.
func (f *forwarder) feed(ctx context.Context) {
	if f.adopted != nil && !f.sure && len(f.sent) > 0 {
		return
	}
	for len(f.sent) < forwardMost && f.bytes < forwardBytes && time.Now().After(f.full) && ctx.Err() == nil {
		r, ok, err := f.sp.Next()
		if err != nil {
			f.say(fmt.Errorf("natsbus: the spool %s cannot be read: what lies in it waits: %w", f.sp.Path(), err))
			f.full = time.Now().Add(forwardAgain)
			return
		}
		if !ok {
			return
		}
		x := &forwardItem{n: r.N, data: r.Data}
		f.sent = append(f.sent, x)
		f.bytes += len(x.data)
		if x.it, _, err = decodeRecord(r.Data); err != nil {
			f.setAside(x, err)
			continue
		}
		x.it.box = f.c.boxOf(x.it.msg.Subject)
		if !f.prepare(x, r) {
			f.sent = f.sent[:len(f.sent)-1]
			f.bytes -= len(x.data)
			f.sp.Rewind(r.N - 1)
			f.full = time.Now().Add(forwardAgain)
			return
		}
		f.send(x)
		if broken(mutantTrimEarly) {
			f.sp.Trim(x.n)
		}
		stopAt("sent")
	}
}

// stopAt is where tests kill the process.
var stopAt = func(point string) {}

func (f *forwarder) send(x *forwardItem) {
	x.it.tell = func(err error) { f.results.put(forwardResult{x, err}) }
	f.c.w.acceptForwarded(x.it)
}

// prepare says of an event what is known of its doubt, and notes before the first is
// sent to a stream where that is.
func (f *forwarder) prepare(x *forwardItem, r spool.Record) bool {
	o := x.it.box
	b, sent := f.baseOf(o.stream, r.N)
	if sent && !f.sure && x.it.first.IsZero() {
		x.it.first, x.it.after, x.it.lost = longAgo(r.At), b.After, true
		x.it.certain = b.Certain && b.Created.Equal(o.created)
	}
	if f.noted[o] || sent {
		return true
	}
	b = base{Created: o.created}
	b.After, b.Certain = o.position()
	if err := f.note(noteFirst, o, b, true); err != nil {
		f.say(fmt.Errorf("natsbus: what lies in the spool waits: %w", err))
		return false
	}
	f.noted[o] = true
	stopAt("noted")
	return true
}

func (f *forwarder) note(kind string, o *outbox, b base, sync bool) error {
	v, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return f.sp.Note(kind+o.stream, v, sync)
}

// settle takes the outcomes.
func (f *forwarder) settle(ctx context.Context) {
	for _, r := range f.results.take() {
		var full *streamFull
		switch {
		case r.err == nil:
			f.finish(r.f, nil)
		case errors.Is(r.err, adapter.ErrClosed):
			// It stays, for whoever adopts it.
		case errors.As(r.err, &full):
			f.noRoom(ctx, r.f, full)
		default:
			f.setAside(r.f, r.err)
		}
	}
	n, last := 0, uint64(0)
	for n < len(f.sent) && f.sent[n].done {
		last = f.sent[n].n
		f.bytes -= len(f.sent[n].data)
		n++
	}
	if n == 0 {
		return
	}
	f.sent = f.sent[n:]
	stopAt("acknowledged")
	f.sp.Trim(last)
	stopAt("trimmed")
	f.noteProgress(last)
	stopAt("progress noted")
	if f.own != nil {
		f.own.trimmed(last, n)
	}
}

func (f *forwarder) finish(x *forwardItem, err error) {
	x.done = true
	if f.absent++; x.it != nil && !x.it.absent {
		f.absent = 0
	}
	if f.absent >= forwardMost {
		f.sure = true // its owner sent them in order, and no more at once
	}
	if f.own != nil {
		f.own.forwarded(x.n, err)
	}
}

// noteProgress notes where in each stream the rest can be.
func (f *forwarder) noteProgress(above uint64) {
	if now := time.Now(); f.own == nil || now.Sub(f.noteAt) < forwardNote {
		return
	} else {
		f.noteAt = now
	}
	least := map[*outbox]base{}
	for o := range f.noted {
		b := base{Above: above, Created: o.created}
		b.After, b.Certain = o.position()
		least[o] = b
	}
	for _, x := range f.sent {
		b, written := least[x.it.box], x.it.writtenAfter.Load()
		if written > 0 && written-1 < b.After {
			b.After = written - 1
			least[x.it.box] = b
		}
	}
	for o, b := range least {
		if err := f.note(noteProgress, o, b, false); err != nil {
			f.say(fmt.Errorf("natsbus: %w", err))
		}
	}
}

// noRoom has what a full stream has refused be sent again when there is room.
func (f *forwarder) noRoom(ctx context.Context, x *forwardItem, full *streamFull) {
	x.it = x.it.again()
	x.it.forwarded = true
	made, why := f.c.keeper.makeRoom(ctx, x.it, full)
	if made || ctx.Err() != nil {
		f.send(x)
		return
	}
	full.why = why
	f.say(fmt.Errorf("natsbus: what lies in the spool %s waits: %w", f.sp.Path(), full))
	f.full = time.Now().Add(forwardAgain)
	f.c.aside(func(ctx context.Context) {
		select {
		case <-time.After(forwardAgain):
			f.send(x)
		case <-ctx.Done():
		}
	})
}

// setAside keeps an event that no stream will ever take, and says so: it was accepted.
func (f *forwarder) setAside(x *forwardItem, cause error) {
	dir := filepath.Join(filepath.Dir(f.sp.Path()), refusedDir)
	err := os.MkdirAll(dir, 0o700)
	path := filepath.Join(dir, fmt.Sprintf("%s-%d", filepath.Base(f.sp.Path()), x.n))
	if err == nil {
		err = renameio.WriteFile(path, x.data, 0o600)
	}
	if err != nil {
		f.say(fmt.Errorf("natsbus: an event of the spool %s was refused and cannot be set aside: %w: %w", f.sp.Path(), cause, err))
		f.c.aside(func(ctx context.Context) {
			select {
			case <-time.After(forwardAgain):
				f.results.put(forwardResult{x, cause})
			case <-ctx.Done():
			}
		})
		return
	}
	f.refused.Add(1)
	f.c.drop(1, fmt.Errorf("natsbus: an event that was accepted by the spool was refused by the broker; it is kept in %s: %w", path, cause))
	f.finish(x, cause)
}

// say reports what lasts, now and then.
func (f *forwarder) say(err error) {
	if now := time.Now(); now.Sub(f.saidAt) > forwardSay {
		f.saidAt = now
		f.c.report(err)
	}
}

// stop ends the forwarder; what is not done stays in the spool.
func (f *forwarder) stop() error {
	f.run.StopAndWait()
	return f.sp.Close()
}
