package natsbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/spool"
)

// refusedDir is where, beside the spools, events lie that no stream would take.
const refusedDir = "refused"

// A SpoolState is a spool on this machine's disk.
type SpoolState struct {
	Path    string    `json:"path"`
	App     string    `json:"app"` // whose it is, as its stream is named: with the prefix before, if there is one
	Owned   bool      `json:"owned"`
	Pid     int       `json:"pid,omitempty"` // of the owner; 0: unknown
	Events  uint64    `json:"events"`
	Bytes   int64     `json:"bytes"`
	Oldest  time.Time `json:"oldest,omitzero"` // when the first of the events was accepted
	Damaged int       `json:"damaged"`         // parts that were set aside
}

// Spools describes the spools of a directory, oldest first, and changes nothing.
// refused are the files of events that no stream would take. What lies in the spool
// of a process that lives may change meanwhile.
func Spools(dir string) (all []SpoolState, refused []string, err error) {
	infos, err := spool.List(dir)
	for _, i := range infos {
		all = append(all, SpoolState{Path: i.Path, App: i.Name, Owned: i.Owned, Pid: i.Pid, Events: i.Records, Bytes: i.Bytes, Oldest: i.Oldest, Damaged: i.Corrupt})
	}
	slices.SortStableFunc(all, func(a, b SpoolState) int { return a.Oldest.Compare(b.Oldest) })
	refused, failed := filepath.Glob(filepath.Join(dir, refusedDir, "*"))
	return all, refused, errors.Join(err, failed)
}

// A SpooledEvent is one that lies in a spool.
type SpooledEvent struct {
	adapter.Message
	Subject string
	Number  uint64    // in its spool; 0 of a refused one
	Stored  time.Time // when it was accepted; zero of a refused one
	Doubt   time.Time // since when it may have been with the broker already; zero: it was not sent before it was spooled
}

// SpoolEvents are the events of the spool at a path, or the one in a file of a refused
// event, in order. Nothing is changed, and nothing sent. An error concerns one event,
// or is the last.
func SpoolEvents(path string) iter.Seq2[SpooledEvent, error] {
	return func(yield func(SpooledEvent, error) bool) {
		st, err := os.Stat(path)
		if err == nil && !st.IsDir() {
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				yield(spooledEvent(spool.Record{Data: b}))
				return
			}
		}
		if err == nil {
			more := true
			err = spool.View(path, func(r spool.Record) bool { more = yield(spooledEvent(r)); return more })
			if !more {
				return
			}
		}
		if err != nil {
			yield(SpooledEvent{}, fmt.Errorf("natsbus: the spool %s cannot be read: %w", path, err))
		}
	}
}

func spooledEvent(r spool.Record) (e SpooledEvent, err error) {
	e.Number, e.Stored = r.N, r.At
	it, doubted, err := decodeRecord(r.Data)
	if err != nil {
		return e, fmt.Errorf("natsbus: event %d of the spool: %w", r.N, err)
	}
	e.Subject = it.msg.Subject
	if e.Message, err = decode(it.topic, it.msg.Header, it.msg.Data); err != nil {
		err = fmt.Errorf("natsbus: event %d of the spool: %w", r.N, err)
	}
	if doubted != nil {
		e.Doubt = doubted.Since
	}
	return e, err
}

// A SpoolDrained says what became of one spool, or of one refused event.
type SpoolDrained struct {
	Path    string
	Sent    uint64
	Left    uint64 // that still lie there
	Refused uint64 // that no stream takes: they are set aside
	Err     error  // why there are any of these
}

// DrainSpools sends what dead processes have left in the spools of dir, of the apps
// that are named, or of all, and with refused also what no stream would take before;
// tell hears of each. It is what the next process of an app does when it starts: in
// order, with the ids that they have, looked up where they are in doubt. Spools of
// processes that live are theirs. It ends when all is sent or ctx is over; what is not
// sent stays. An event whose subject is of no stream is an error before anything is
// sent: the way out is to start its app once.
func (a *Admin) DrainSpools(ctx context.Context, dir string, apps []string, refused bool, tell func(SpoolDrained)) error {
	all, files, err := Spools(dir)
	if err != nil {
		return fmt.Errorf("natsbus: %w", err)
	}
	all = slices.DeleteFunc(all, func(s SpoolState) bool { return s.Owned || len(apps) > 0 && !slices.Contains(apps, s.App) })
	if !refused {
		files = nil
	}
	paths := slices.Clone(files)
	for _, s := range all {
		paths = append(paths, s.Path)
	}
	if err := a.placeSpools(ctx, paths); err != nil {
		return err
	}
	var names []string
	for _, s := range all {
		if !slices.Contains(names, s.App) {
			names = append(names, s.App)
		}
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, a.drainApp(ctx, dir, name, tell))
	}
	for _, path := range files {
		d := SpoolDrained{Path: path, Sent: 1}
		if d.Err = a.sendRefused(ctx, path); d.Err != nil {
			d.Sent, d.Left = 0, 1
		}
		tell(d)
		errs = append(errs, d.Err)
	}
	return errors.Join(errs...)
}

// placeSpools finds the streams that take what lies there.
func (a *Admin) placeSpools(ctx context.Context, paths []string) error {
	var streams []*jetstream.StreamInfo
	of := func(subject string) bool {
		return slices.ContainsFunc(streams, func(i *jetstream.StreamInfo) bool { return covers(i, subject) })
	}
	for _, path := range paths {
		for e, err := range SpoolEvents(path) {
			if e.Subject == "" || of(e.Subject) {
				if err != nil {
					a.c.log.Warn("natsbus: this cannot be read, and is set aside", "err", err)
				}
				continue
			}
			near, err := a.c.streamsNear(ctx, e.Subject)
			if err != nil {
				return fmt.Errorf("natsbus: look for the stream of %s: %w", e.Subject, err)
			}
			if streams = append(streams, near...); !of(e.Subject) {
				return fmt.Errorf("natsbus: %s: no stream at %s takes %q: start its app once, or make the stream (tidings apply)", path, a.c.addr.public, e.Subject)
			}
		}
	}
	a.c.w.call(func() {
		var placings []placing
		for _, info := range streams {
			box := a.c.w.box(info, a.c.batchSync())
			for _, subject := range info.Config.Subjects {
				placings = append(placings, placing{subject, box})
			}
		}
		a.c.placings.Store(&placings)
	})
	return nil
}

// drainApp adopts the spools of an app, and waits until they are empty.
func (a *Admin) drainApp(ctx context.Context, dir, name string, tell func(SpoolDrained)) error {
	s := &spools{c: a.c, dir: dir, name: name, opts: a.c.spoolOptions()}
	adopted := s.adopt()
	before := make([]uint64, len(adopted))
	for i, f := range adopted {
		before[i] = f.sp.Stats().Waiting
	}
	var errs []error
	for i, f := range adopted {
		err := f.run.Wait(ctx)
		left := f.sp.Stats().Waiting
		err = errors.Join(err, f.stop())
		if left == 0 {
			err = nil // it could not be told so before the end
		}
		d := SpoolDrained{Path: f.sp.Path(), Left: left, Refused: f.refused.Load()}
		d.Sent = before[i] - min(before[i], left+d.Refused)
		if left > 0 {
			d.Err = fmt.Errorf("natsbus: %d events of the spool %s were not sent: %w", left, d.Path, err)
		}
		if d.Refused > 0 {
			d.Err = errors.Join(d.Err, fmt.Errorf("natsbus: %d events of the spool %s were refused, and are kept in %s", d.Refused, d.Path, filepath.Join(dir, refusedDir)))
		}
		errs = append(errs, d.Err)
		tell(d)
	}
	return errors.Join(errs...)
}

// sendRefused sends an event that was set aside, and removes its file.
func (a *Admin) sendRefused(ctx context.Context, path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else has
	}
	if err != nil {
		return fmt.Errorf("natsbus: %w", err)
	}
	it, _, err := decodeRecord(b)
	if err != nil {
		return fmt.Errorf("natsbus: %s: %w", path, err)
	}
	out, err := a.c.newItem(it.msg, it.topic, adapter.Durable)
	if err == nil {
		out.internal = true
		err = a.c.publishDurable(ctx, out)
	}
	if err != nil {
		return fmt.Errorf("natsbus: %s: %w", path, err)
	}
	return os.Remove(path)
}
